"""What every way of sampling starts from: a network, and noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff import ops

Denoiser = Callable[[Tensor, Tensor], Any]
"""(sample (N, ...), timestep (N,) float32) -> prediction (N, ...), or a tuple whose first entry that is."""


def predicted(denoiser: Denoiser, x: Tensor, timestep: Tensor) -> Tensor:
    """The prediction of a denoiser, whether it comes alone or in a tuple."""
    output = denoiser(x, timestep)
    return output if isinstance(output, Tensor) else output[0]


@dataclass(frozen=True)
class PairedDenoiser:
    """The weaker denoiser of a guidance, for a network that evaluates both in one call, of twice the batch.

    Args:
        alone: the weaker denoiser by itself.
        both: (sample (N, ...), timestep (N,)) -> the sampler's own prediction and the weaker one, (N, ...) each.
    """

    alone: Denoiser
    both: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

    def __call__(self, x: Tensor, timestep: Tensor) -> Any:
        return self.alone(x, timestep)


def predicted_pair(denoiser: Denoiser, weaker: Denoiser, x: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
    """The predictions of a denoiser and of the weaker one that guides it."""
    if isinstance(weaker, PairedDenoiser):
        return weaker.both(x, timestep)
    return predicted(denoiser, x, timestep), predicted(weaker, x, timestep)


def starting_noise(
    noise_or_shape: Tensor | Sequence[int], seeds: Sequence[int] | None, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Standard normal noise (N, ...), as given or drawn for a shape, and the seeds (N,) int64 on its device.

    Seeds are 0 ... N - 1 where none are given. ValueError if there are not N.
    """
    count = noise_or_shape.shape[0] if isinstance(noise_or_shape, Tensor) else noise_or_shape[0]
    seeds = range(count) if seeds is None else seeds
    if len(seeds) != count:
        raise ValueError(f"seeds must have one entry for each of the {count} samples, got {len(seeds)}")
    if isinstance(noise_or_shape, Tensor):
        noise = noise_or_shape.detach()
    else:
        noise = ops.philox_normal(noise_or_shape, seeds, device=device)
    return noise, torch.tensor(list(seeds), dtype=torch.int64, device=noise.device)
