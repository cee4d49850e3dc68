from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff.ops import philox_normal


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
        A tensor of `shape`: :func:`fastdiff.ops.philox_normal` at offset 0, the noise that a run starts from. Devices
        differ in its last digits only.
    """
    return philox_normal(shape, seeds, dtype=dtype, device=device)
