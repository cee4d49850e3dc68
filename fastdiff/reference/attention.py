from __future__ import annotations

import torch
from torch import Tensor


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, kv_lengths: Tensor | None = None
) -> Tensor:
    """The definition of `fastdiff.ops.attention`, in PyTorch's own operators, for any floating dtype."""
    if scale is None:
        scale = query.shape[-1] ** -0.5
    group = query.shape[2] // key.shape[2]
    key, value = (operand.repeat_interleave(group, dim=2) for operand in (key, value))
    scores = torch.einsum("bihd,bjhd->bhij", query, key) * scale
    if kv_lengths is None:
        return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), value)
    # A masked key counts as absent, so what it holds (NaN, too) must not reach the sum.
    masked = torch.arange(key.shape[1], device=key.device) >= kv_lengths.to(key.device)[:, None]
    scores = scores.masked_fill(masked[:, None, None, :], -torch.inf)
    probabilities = scores.softmax(-1).masked_fill(masked[:, None, None, :], 0)
    return torch.einsum("bhij,bjhd->bihd", probabilities, value.masked_fill(masked[:, :, None, None], 0))
