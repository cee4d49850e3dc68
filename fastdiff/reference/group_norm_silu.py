from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    time_bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "silu",
) -> Tensor:
    """Definition of :func:`fastdiff.ops.group_norm_silu` in PyTorch's own operators."""

    def per_channel(vector: Tensor) -> Tensor:
        return vector.reshape(*vector.shape, *(1,) * (x.dim() - 2))

    if time_bias is not None:
        x = x + per_channel(time_bias).to(x.dtype)
    weight, bias = (None if p is None else p.to(x.dtype) for p in (weight, bias))
    y = F.group_norm(x, num_groups, weight, bias, eps)
    if scale is not None:
        y = y * (1 + per_channel(scale).to(x.dtype))
    if shift is not None:
        y = y + per_channel(shift).to(x.dtype)
    return F.silu(y) if activation == "silu" else y
