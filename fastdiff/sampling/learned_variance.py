"""DDPM with a variance that the network says for every element, which no table of coefficients can hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.diffusion import DiscreteVP
from fastdiff.sampling.denoiser import Denoiser, predicted, starting_noise
from fastdiff.sampling.samplers import solver_table
from fastdiff.sampling.solvers.first_order import posterior_deviation, transition


@torch.no_grad()
def ddpm_learned_variance(
    denoiser: Denoiser,
    noise_or_shape: Tensor | Sequence[int],
    *,
    process: DiscreteVP,
    prediction: str,
    steps: int,
    seeds: Sequence[int] | None = None,
    sampler_options: dict[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Ancestral sampling with "learned range" variances (arXiv:2102.09672, equation 15; ADM and DiT are such networks).

    Args:
        denoiser: as for :func:`fastdiff.sampling.sample`, but it returns (N, 2 C, ...): the prediction, and where
            between the two fixed variances, -1 and 1, that of each element lies.
        noise_or_shape, process, prediction, steps, seeds, device: as for :func:`fastdiff.sampling.sample`.
        sampler_options: of "ddpm" and its schedule, such as {"spacing": "leading", "clip": 1.0}.

    Returns:
        (N, C, ...) in the dtype of the noise.
    """
    table = solver_table("ddpm", process, prediction, steps, **(sampler_options or {}))
    noise, device_seeds = starting_noise(noise_or_shape, seeds, device)
    x = noise * table.start_scale
    precision = torch.promote_types(x.dtype, torch.float32)
    coefficients = table.coefficients.to(x.device, precision)
    timesteps = table.timesteps.to(x.device, precision).unsqueeze(1).expand(-1, len(x))
    for row, (here, there) in enumerate(zip(table.levels, table.levels[1:], strict=False)):
        mean, fraction = predicted(denoiser, x, timesteps[row]).chunk(2, dim=1)
        ops.sampler_step_(x, mean, coefficients, row)  # without seeds it adds no noise: the mean
        if there.sigma > 0:
            small, large = math.log(posterior_deviation(here, there)), 0.5 * math.log(transition(there, here)[1])
            log_deviation = small + (large - small) * (fraction.to(precision) + 1) / 2
            noise = ops.philox_normal(tuple(x.shape), device_seeds, offset=row + 1)
            x += (log_deviation.exp() * noise).to(x.dtype)
    return x
