from __future__ import annotations

import math

import torch
from torch import Tensor


def timestep_embedding(
    timestep: Tensor,
    channels: int,
    *,
    flip_sin_to_cos: bool = False,
    downscale_freq_shift: float = 1.0,
    scale: float = 1.0,
    max_period: float = 10000.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Definition of :func:`fastdiff.ops.timestep_embedding` in PyTorch's own operators."""
    compute_dtype = torch.float64 if torch.float64 in (timestep.dtype, dtype) else torch.float32
    half = channels // 2
    index = torch.arange(half, dtype=compute_dtype, device=timestep.device)
    frequencies = torch.exp(-math.log(max_period) / (half - downscale_freq_shift) * index) if half else index
    angle = scale * timestep.to(compute_dtype)[:, None] * frequencies
    parts = (angle.cos(), angle.sin()) if flip_sin_to_cos else (angle.sin(), angle.cos())
    embedding = torch.cat((*parts, angle.new_zeros(angle.shape[0], channels % 2)), dim=-1)
    return embedding.to(dtype)
