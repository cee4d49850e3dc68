from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastdiff import ops
from fastdiff.diffusion import FlowMatching, Process
from fastdiff.ops import StepColumn
from fastdiff.sampling.noise import seeded_noise
from fastdiff.sampling.solvers import solver_table

Denoiser = Callable[[Tensor, Tensor], Any]
"""(sample (N, ...), timestep (N,) float32) -> prediction (N, ...), or a tuple whose first entry that is."""


@dataclass(frozen=True)
class Guidance:
    """``guided = u + scale * (p - u)``: away from a weaker prediction u, through and beyond the prediction p.

    Classifier-free guidance if `denoiser` is the network without its condition (arXiv:2207.12598), autoguidance if
    it is a smaller or less trained network (arXiv:2406.02507).
    """

    denoiser: Denoiser
    scale: float


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    noise_or_shape: Tensor | Sequence[int],
    *,
    sampler: str = "ddim",
    steps: int = 20,
    process: Process | None = None,
    prediction: str = "flow",
    seeds: Sequence[int] | None = None,
    guidance: Guidance | None = None,
    sampler_options: dict[str, Any] | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Tensor:
    """Draw samples: start from noise and follow the solver's table.

    Args:
        denoiser: called as ``denoiser(x, timestep)`` with x (N, ...) and timestep (N,) in float32, once a step.
            A model of this package or of diffusers, or any function; its output may be a tensor or a tuple.
        noise_or_shape: the starting noise (N, ...), standard normal, or its shape.
        sampler: a name in :data:`SAMPLERS`.
        steps: number of steps; each is one model call (two with guidance).
        process: what the network was trained on; default :class:`fastdiff.diffusion.FlowMatching`.
        prediction: what the network returns, a name in :data:`fastdiff.diffusion.PREDICTIONS`.
        seeds: with a shape, one integer a sample (default 0 ... N - 1). Sample i depends on seed i only.
        guidance: a second network to be guided away from.
        sampler_options: further arguments of the solver, such as {"shift": 3.0} or {"spacing": "leading"}.
        device: with a shape, where to sample.
        progress: show a progress bar.

    Returns:
        (N, ...) in the dtype and on the device of the noise.

    Raises:
        ValueError: an unknown name, or shapes, seeds and options that do not fit.
    """
    process = FlowMatching() if process is None else process
    table = solver_table(sampler, process, prediction, steps, **(sampler_options or {}))
    timesteps = process.timestep(table.times).float()
    x = _start(noise_or_shape, seeds, device)
    rows = table.coefficients.clone()
    if guidance is not None:
        rows[:, StepColumn.GUIDANCE] = guidance.scale
    coefficients = rows.to(device=x.device, dtype=torch.float32)
    for step, timestep in enumerate(tqdm(timesteps, desc="sampling", disable=not progress)):
        timestep = timestep.to(x.device).expand(x.shape[0])
        uncond = None if guidance is None else _prediction(guidance.denoiser, x, timestep)
        prediction_of_x = _prediction(denoiser, x, timestep)
        x, _ = ops.sampler_step(x, prediction_of_x, coefficients, step, uncond_prediction=uncond)
    return x


def _start(noise_or_shape: Tensor | Sequence[int], seeds: Sequence[int] | None, device: torch.device | str) -> Tensor:
    if isinstance(noise_or_shape, Tensor):
        if seeds is not None:
            raise ValueError("seeds must be None when noise_or_shape is the noise itself")
        return noise_or_shape
    seeds = range(noise_or_shape[0]) if seeds is None else seeds
    return seeded_noise(noise_or_shape, seeds, device=device)


def _prediction(denoiser: Denoiser, x: Tensor, timestep: Tensor) -> Tensor:
    output = denoiser(x, timestep)
    return output if isinstance(output, Tensor) else output[0]
