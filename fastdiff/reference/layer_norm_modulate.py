from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from fastdiff.reference.gate_residual import gate_residual


def layer_norm_modulate(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    norm: str = "layer",
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Definition of :func:`fastdiff.ops.layer_norm_modulate` in PyTorch's own operators."""
    total = x
    if residual is not None:
        total = residual + x if gate is None else gate_residual(x, gate, residual)
    scale, shift = (p.to(x.dtype) if p.dim() == 3 else p.to(x.dtype).unsqueeze(1) for p in (scale, shift))
    weight, bias = (None if p is None else p.to(x.dtype) for p in (weight, bias))
    channels = x.shape[-1:]
    if norm == "layer":
        y = F.layer_norm(total, channels, weight, bias, eps)
    else:
        y = F.rms_norm(total, channels, weight, eps)
        y = y if bias is None else y + bias
    return y * (1 + scale) + shift, total
