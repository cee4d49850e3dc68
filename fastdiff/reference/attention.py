from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, kv_lengths: Tensor | None = None
) -> Tensor:
    """The definition of `fastdiff.ops.attention`, by PyTorch's own attention, for any floating dtype."""
    mask = None
    if kv_lengths is not None:
        absent = torch.arange(key.shape[1], device=key.device) >= kv_lengths[:, None]  # (N, Lkv)
        # What an absent key holds must not reach the sum, not even as 0 * NaN.
        key, value = (operand.masked_fill(absent[:, :, None, None], 0) for operand in (key, value))
        # PyTorch leaves open what a query without keys gives: it sees the zeros above instead, and gives 0.
        mask = (~absent | (kv_lengths == 0)[:, None])[:, None, None, :]
    output = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        scale=scale,
        enable_gqa=query.shape[2] != key.shape[2],
    )
    return output.transpose(1, 2)
