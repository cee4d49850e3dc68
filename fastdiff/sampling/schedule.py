"""The noise levels that a solver steps through."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.diffusion import Process


@dataclass(frozen=True)
class Level:
    """One noise level: ``x = alpha * x0 + sigma * eps``."""

    alpha: float
    sigma: float
    timestep: float
    """What the network is told there."""
    time: float = math.nan
    """The process's own time; only the solvers of SDEs ask for it."""

    @property
    def ratio(self) -> float:
        """sigma / alpha: the noise level of EDM and k-diffusion."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def log_ratio(self) -> float:
        """``log(alpha / sigma)``: half the log-SNR, the lambda of DPM-Solver (arXiv:2206.00927, section 2)."""
        if self.alpha == 0:
            return -math.inf
        return math.inf if self.sigma == 0 else math.log(self.alpha) - math.log(self.sigma)


@dataclass(frozen=True)
class NoiseSchedule:
    """steps + 1 noise levels, from the noisiest down: the network is called at all but the last."""

    process: Process
    levels: tuple[Level, ...]
    start_scale: float
    """The deviation of the noise to start from."""
    end_scale: float = 1.0
    """What the state at the last level is multiplied by to be in units of data."""

    @property
    def steps(self) -> int:
        return len(self.levels) - 1

    @property
    def pairs(self) -> list[tuple[Level, Level]]:
        """For each step, the level of its model call and the one that it leads to."""
        return list(zip(self.levels, self.levels[1:], strict=False))

    def at_ratio(self, ratio: float) -> Level:
        """The level of the process where sigma / alpha is `ratio`."""
        if ratio == 0:
            return _clean_level(self.process)
        return levels_at(self.process, self.process.time_at(torch.tensor([ratio], dtype=torch.float64)))[0]


def schedule_of_times(process: Process, times: Tensor, *, clean_end: bool = True) -> NoiseSchedule:
    """The schedule through the process's `times`, (steps,) float64, and then clean data.

    With ``clean_end=False`` the last of (steps + 1,) times is where sampling ends.
    """
    levels, start = levels_at(process, times), process.start_scale(times[:1]).item()
    if clean_end:
        levels.append(_clean_level(process))
        return NoiseSchedule(process, tuple(levels), start, 1 / levels[-1].alpha)
    return NoiseSchedule(process, tuple(levels), start, process.data_scale(times[-1:]).item())


def schedule_of_ratios(process: Process, ratios: Tensor, *, clean_end: bool = True) -> NoiseSchedule:
    """The schedule through the levels at which sigma / alpha is one of `ratios`, float64 and falling;
    otherwise as :func:`schedule_of_times`."""
    return schedule_of_times(process, process.time_at(ratios), clean_end=clean_end)


def levels_at(process: Process, times: Tensor) -> list[Level]:
    """The process's levels at `times`, (n,) float64."""
    columns = (process.alpha(times), process.sigma(times), process.timestep(times), times)
    return [Level(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _clean_level(process: Process) -> Level:
    scale = process.data_scale(torch.zeros(1, dtype=torch.float64)).item()
    return Level(alpha=1 / scale, sigma=0.0, timestep=math.nan)
