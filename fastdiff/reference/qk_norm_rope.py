from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def qk_norm_rope(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float = 1e-6,
    interleaved: bool = True,
    text_tokens: int = 0,
) -> tuple[Tensor, Tensor]:
    """Definition of :func:`fastdiff.ops.qk_norm_rope` in PyTorch's own operators."""

    def norm_rope(x: Tensor, weight: Tensor | None) -> Tensor:
        z = F.rms_norm(x, x.shape[-1:], None if weight is None else weight.to(x.dtype), eps)
        text, image = z[:, :text_tokens], z[:, text_tokens:]
        turned = _rotate(image[..., : cos.shape[-1]], cos, sin, interleaved)
        if cos.shape[-1] < x.shape[-1]:
            turned = torch.cat((turned, image[..., cos.shape[-1] :]), dim=-1)
        return torch.cat((text, turned), dim=1) if text_tokens else turned

    return norm_rope(query, query_weight), norm_rope(key, key_weight)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    cos, sin = (table.to(dtype).unsqueeze(-2) for table in (cos, sin))  # the same for all heads
    if interleaved:
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        partner = torch.stack((-second, first), dim=-1).flatten(-2)
    else:
        first, second = x.chunk(2, dim=-1)
        partner = torch.cat((-second, first), dim=-1)
    return (x.to(dtype) * cos + partner.to(dtype) * sin).to(x.dtype)
