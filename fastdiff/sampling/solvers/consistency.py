"""Samplers of distilled models, which jump to clean data in one call and take noise back: CM, LCM and TCD."""

from __future__ import annotations

import math

import torch

from fastdiff.sampling.schedule import NoiseSchedule, levels_at
from fastdiff.sampling.table import SolverTable
from fastdiff.sampling.tape import Tape


def consistency(
    schedule: NoiseSchedule, prediction: str, *, clip: float = math.inf, noise_scale: float = 1.0
) -> SolverTable:
    """Multistep consistency sampling (arXiv:2303.01469, algorithm 1): ``x' = alpha' * x0 + sigma' * noise``.

    Args:
        prediction: what the network returns; "sample" if it is the consistency function itself. With "edm", on an
            :class:`fastdiff.diffusion.EDM` process, F is given the boundary condition of consistency models
            (appendix C): c_skip and c_out with sigma_min.
        clip: x0 is clipped to -clip ... clip.
        noise_scale: a factor of the noise.
    """
    tape = Tape(prediction, keep="sample", clip=clip)
    x = tape.start
    smallest = getattr(schedule.process, "sigma_min", 0.0)
    for here, there in schedule.pairs:
        if prediction == "edm":
            skip, out = boundary_condition(here.ratio, schedule.process.sigma_data, smallest)  # type: ignore[attr-defined]
            # sigma_min is as good as clean data here: the noise that is added leads to it from there.
            noise = there.alpha * math.sqrt(max(there.ratio**2 - smallest**2, 0.0))
            said = tape.evaluate(x, here, denoise=(skip / here.alpha, out))
        else:
            noise, said = there.sigma, tape.evaluate(x, here)
        x = there.alpha * said.x0 + noise_scale * noise * tape.noise()
    return tape.finish(x, schedule)


def boundary_condition(sigma: float, sigma_data: float, sigma_min: float) -> tuple[float, float]:
    """(c_skip, c_out) of ``x0 = c_skip * x + c_out * F``: x0 = x at sigma_min (arXiv:2303.01469, appendix C)."""
    skip = sigma_data**2 / ((sigma - sigma_min) ** 2 + sigma_data**2)
    return skip, (sigma - sigma_min) * sigma_data / math.sqrt(sigma**2 + sigma_data**2)


def lcm(
    schedule: NoiseSchedule,
    prediction: str,
    *,
    sigma_data: float = 0.5,
    timestep_scaling: float = 10.0,
    clip: float = math.inf,
    threshold: tuple[float, float] | None = None,
) -> SolverTable:
    """Latent consistency models (arXiv:2310.04378): x0, mixed with the state near t = 0, and noise to the next level.

    ``c_skip = sigma_data^2 / (s^2 + sigma_data^2)`` and ``c_out = s / sqrt(s^2 + sigma_data^2)`` with
    ``s = timestep_scaling * timestep``. The last step adds no noise, whatever the last level.

    Args:
        clip, threshold: as for :func:`ddim`.
    """
    tape = Tape(prediction, keep="sample", clip=clip, threshold=threshold)
    x = tape.start
    for i, (here, there) in enumerate(schedule.pairs):
        said, scaled = tape.evaluate(x, here), timestep_scaling * here.timestep
        skip = sigma_data**2 / (scaled**2 + sigma_data**2)
        x = (scaled / math.hypot(scaled, sigma_data)) * said.x0 + skip * said.sample
        if i < schedule.steps - 1:
            x = there.alpha * x + there.sigma * tape.noise()
    return tape.finish(x, schedule)


def tcd(schedule: NoiseSchedule, prediction: str, *, gamma: float = 0.3) -> SolverTable:
    """Trajectory consistency distillation (arXiv:2402.19159, algorithm 4): down to time s, then noise up to t'.

    ``s = floor((1 - gamma) * t')``, on a :class:`fastdiff.diffusion.DiscreteVP`.

    Args:
        gamma: 0 is deterministic, 1 is multistep consistency sampling.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be from 0 to 1, got {gamma}")
    tape = Tape(prediction)
    x = tape.start
    for i, (here, there) in enumerate(schedule.pairs):
        said = tape.evaluate(x, here)
        if i == schedule.steps - 1:
            x = there.alpha * said.x0 + there.sigma * said.epsilon
            continue
        time = torch.tensor([(1 - gamma) * there.time], dtype=torch.float64).floor()
        below = levels_at(schedule.process, time)[0]
        back = there.alpha / below.alpha
        x = back * (below.alpha * said.x0 + below.sigma * said.epsilon)
        x = x + math.sqrt(1 - back**2) * tape.noise()
    return tape.finish(x, schedule)
