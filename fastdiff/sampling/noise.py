from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def seeded_noise(
    shape: Sequence[int],
    seeds: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal noise in which sample i depends on seeds[i] alone, whatever else is in the batch.

    Args:
        shape: (N, ...).
        seeds: N integers of 64 bits.

    Returns:
        A tensor of `shape`. The numbers are drawn on the CPU in float32, so they are the same on every device.
    """
    if len(seeds) != shape[0]:
        raise ValueError(f"seeds must have one entry for each of the {shape[0]} samples, got {len(seeds)}")
    noise = torch.empty(tuple(shape), dtype=torch.float32)
    generator = torch.Generator()
    for row, seed in zip(noise, seeds, strict=True):
        generator.manual_seed(seed)
        row.copy_(torch.randn(row.shape, generator=generator))
    return noise.to(device=device, dtype=dtype)
