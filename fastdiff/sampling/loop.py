from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastdiff import ops
from fastdiff.diffusion import FlowMatching, Process
from fastdiff.sampling.denoiser import Denoiser, predicted, predicted_pair, starting_noise
from fastdiff.sampling.guidance import ClassifierGuidance, Guidance, ProjectedGuidance
from fastdiff.sampling.samplers import solver_table
from fastdiff.sampling.schedule import NoiseSchedule
from fastdiff.sampling.table import SolverTable

Callback = Callable[[int, Tensor], None]
"""(rows done, the sample after them); the tensor is the loop's own and changes with the next row."""
AnyGuidance = Guidance | ProjectedGuidance | ClassifierGuidance


def sample(
    denoiser: Denoiser,
    noise_or_shape: Tensor | Sequence[int],
    *,
    sampler: str = "ddim",
    steps: int = 20,
    process: Process | None = None,
    prediction: str = "flow",
    schedule: str | NoiseSchedule | None = None,
    guidance: AnyGuidance | None = None,
    seeds: Sequence[int] | None = None,
    sampler_options: dict[str, Any] | None = None,
    device: torch.device | str = "cpu",
    callback: Callback | None = None,
    progress: bool = False,
) -> Tensor:
    """Draw samples: start from noise and follow the solver's table.

    Args:
        denoiser: called as ``denoiser(x, timestep)`` with x (N, ...) and timestep (N,) in float32. A model of this
            package or of diffusers, or any function; its output may be a tensor or a tuple. It must not keep x, which
            the next step overwrites.
        noise_or_shape: the starting noise (N, ...), standard normal, or its shape.
        sampler: a name in :data:`SAMPLERS`.
        steps: number of steps; the solvers' docstrings say how many model calls that takes.
        process: what the network was trained on; default :class:`fastdiff.diffusion.FlowMatching`.
        prediction: what the network returns, a name in :data:`fastdiff.diffusion.PREDICTIONS`.
        schedule: where the steps lie, a name in :data:`SCHEDULES` or the levels themselves.
        guidance: classifier-free, negative, projected or by a classifier.
        seeds: one integer a sample (default 0 ... N - 1), for the starting noise and for that of stochastic samplers.
            Sample i depends on seed i only.
        sampler_options: further options of the solver and of the schedule, such as {"eta": 1.0} or {"shift": 3.0}.
        device: with a shape, where to sample.
        callback: called after each step.
        progress: show a progress bar.

    Returns:
        (N, ...) in the dtype and on the device of the noise.

    Raises:
        ValueError: an unknown name, or shapes, seeds and options that do not fit.
    """
    process = FlowMatching() if process is None else process
    table = solver_table(sampler, process, prediction, steps, schedule=schedule, **(sampler_options or {}))
    noise, noise_seeds = starting_noise(noise_or_shape, seeds, device)
    return run_table(
        table,
        denoiser,
        noise * table.start_scale,
        prediction=prediction,
        guidance=guidance,
        seeds=noise_seeds,
        callback=callback,
        progress=progress,
    )


@torch.no_grad()
def run_table(
    table: SolverTable,
    denoiser: Denoiser,
    start: Tensor,
    *,
    prediction: str,
    guidance: AnyGuidance | None = None,
    seeds: Tensor | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> Tensor:
    """Follow a table from a state at its first level: :func:`sample` for those who have the table and the state.

    The loop allocates nothing but what the network does, and never waits for the device. (What allocates: a dynamic
    threshold, projected and classifier guidance, and predictions that do not lie in memory like `start`.)

    Args:
        start: (N, ...) the state at ``table.levels[0]``; it is not changed. float64 runs on the definitions only, under
            :func:`fastdiff.use_reference`, and then with the table in float64.
        prediction: that of the table.
        seeds: (N,) int64 on the device of `start`, for a table that is stochastic.
        denoiser, guidance, callback, progress: as :func:`sample` takes them.

    Returns:
        (N, ...) the state at ``table.levels[-1]``.
    """
    if isinstance(guidance, Guidance):
        scales = [guidance.scale_at(level) for level in table.levels[:-1]]
        table = table.with_guidance(torch.tensor(scales, dtype=torch.float64), guidance.rescale)
    x = start.clone(memory_format=torch.contiguous_format if table.is_stochastic else torch.preserve_format)
    precision = torch.promote_types(x.dtype, torch.float32)
    coefficients = table.coefficients.to(x.device, precision)
    timesteps = table.timesteps.to(x.device, precision).unsqueeze(1).expand(-1, len(x)).unbind()
    history = [torch.zeros_like(x) for _ in range(table.history_slots)]
    if table.is_stochastic and seeds is None:
        raise ValueError("seeds must be given for a sampler that draws noise, got None")
    draws, reads = table.draws, table.history_reads
    p, u, average = x, None, None
    for row in tqdm(range(len(table)), desc="sampling", disable=not progress):
        level, slot = table.levels[row], table.writes[row]
        if table.calls[row]:
            timestep, u = timesteps[row], None
            if isinstance(guidance, Guidance) and scales[row] != 1:
                p, u = predicted_pair(denoiser, guidance.denoiser, x, timestep)
            elif isinstance(guidance, ProjectedGuidance):
                p, weak = predicted_pair(denoiser, guidance.denoiser, x, timestep)
                p, average = guidance.guided(x, p, weak, level, prediction, average)
            else:
                p = predicted(denoiser, x, timestep)
                if isinstance(guidance, ClassifierGuidance):
                    p = guidance.guided(x, timestep, p, level, prediction)
        ops.sampler_step_(
            x,
            p,
            coefficients,
            row,
            uncond_prediction=u,
            history=history[: reads[row]],
            seeds=seeds if draws[row] else None,
            threshold=table.threshold,
            model_out=None if slot is None else history[slot],
        )
        if callback is not None:
            callback(row + 1, x)
    return x
