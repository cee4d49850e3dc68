"""Predictor-corrector sampling: Langevin steps at each noise level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.diffusion import Process, get_prediction
from fastdiff.diffusion.broadcasting import per_sample
from fastdiff.sampling.denoiser import Denoiser, predicted, starting_noise
from fastdiff.sampling.samplers import solver_table
from fastdiff.sampling.schedule import Level

CORRECTOR_OFFSET = 2**41  # of Philox, beyond the rows of any sampler


@torch.no_grad()
def predictor_corrector(
    denoiser: Denoiser,
    noise_or_shape: Tensor | Sequence[int],
    *,
    process: Process,
    prediction: str = "score",
    steps: int = 1000,
    corrector_steps: int = 1,
    snr: float = 0.16,
    batch_norms: bool = False,
    seeds: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Corrector, then reverse diffusion, at each level (arXiv:2011.13456, algorithm 1).

    Args:
        denoiser, noise_or_shape, process, prediction, steps, seeds, device: as for :func:`fastdiff.sampling.sample`.
        corrector_steps: Langevin steps at each level; each is a model call.
        snr: r, the size of a Langevin step (algorithms 4 and 5).
        batch_norms: see :func:`langevin_step`.

    Returns:
        (N, ...), without the noise of the last step.
    """
    table = solver_table("reverse_diffusion", process, prediction, steps)
    noise, device_seeds = starting_noise(noise_or_shape, seeds, device)
    x = noise * table.start_scale
    precision = torch.promote_types(x.dtype, torch.float32)
    coefficients = table.coefficients.to(x.device, precision)
    timesteps = table.timesteps.to(x.device, precision).unsqueeze(1).expand(-1, len(x))
    for row in range(len(table)):
        for repeat in range(corrector_steps):
            score = _score(predicted(denoiser, x, timesteps[row]), x, table.levels[row], prediction)
            offset = CORRECTOR_OFFSET + row * corrector_steps + repeat
            noise = ops.philox_normal(tuple(x.shape), device_seeds, offset=offset).to(x.dtype)
            # VP's step is shorter by the factor that its forward step shrinks the variance by (algorithm 5).
            shrink = min(1.0, (table.levels[row].alpha / table.levels[row + 1].alpha) ** 2)
            x = langevin_step(x, score, noise, snr=snr, shrink=shrink, batch_norms=batch_norms)
        output = predicted(denoiser, x, timesteps[row])
        ops.sampler_step_(x, output, coefficients, row, seeds=device_seeds)
    return x


def langevin_step(
    x: Tensor, score: Tensor, noise: Tensor, *, snr: float, shrink: float = 1.0, batch_norms: bool = False
) -> Tensor:
    """``x + e * score + sqrt(2 e) * noise`` with ``e = 2 * shrink * (snr * |noise| / |score|)^2``.

    Args:
        x, score, noise: (N, ...).
        batch_norms: use the mean of the norms over the batch, as the paper's code and diffusers do, so that a sample
            depends on the others. Otherwise each sample has its own, which in the many dimensions of an image is near
            its mean; in a few dimensions it is not, and the step would be biased.
    """
    norms = [tensor.flatten(1).norm(dim=1) for tensor in (noise, score)]
    if batch_norms:
        norms = [norm.mean().expand(len(x)) for norm in norms]
    size = per_sample(2 * shrink * (snr * norms[0] / norms[1]) ** 2, x)
    return x + size * score + torch.sqrt(2 * size) * noise


def _score(output: Tensor, x: Tensor, level: Level, prediction: str) -> Tensor:
    alpha, sigma = torch.tensor([level.alpha, level.sigma], dtype=torch.float64)
    of_x, of_prediction = get_prediction(prediction).solve(alpha, sigma)[1].tolist()  # eps
    return (-of_x / level.sigma) * x + (-of_prediction / level.sigma) * output
