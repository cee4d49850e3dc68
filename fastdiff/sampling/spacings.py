"""Schedules of equally spaced times, and those that come from them."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.diffusion import DiscreteVP, FlowMatching, Process, shifted_time
from fastdiff.sampling.schedule import NoiseSchedule, schedule_of_times

FINALS = ("zero", "sigma_min")


def timesteps(
    process: Process,
    steps: int,
    *,
    spacing: str = "trailing",
    steps_offset: int = 0,
    extra_point: bool = False,
    rounded: bool = True,
    final: str = "zero",
) -> NoiseSchedule:
    """Equally spaced times of a :class:`fastdiff.diffusion.DiscreteVP` (arXiv:2305.08891, table 2).

    For 4 steps of 1000 times: "trailing" 999, 749, 499, 249; "leading" 750, 500, 250, 0; "linspace" 999, 666, 333, 0.

    Args:
        spacing: "trailing" starts at the last time, "leading" ends at the first, "linspace" does both.
        steps_offset: added to the times of "leading" (1 for Stable Diffusion).
        extra_point: lay out one more time and leave the last out, as DPM-Solver's authors do: "leading" is then 800,
            600, 400, 200 and "linspace" 999, 749, 500, 250. "trailing" is the same.
        rounded: round the times of "linspace" to whole numbers.
        final: after the last call, "zero" goes to clean data, "sigma_min" to the first time of the process.
    """
    if not isinstance(process, DiscreteVP):
        raise ValueError(f"schedule 'timesteps' needs a DiscreteVP process, got {type(process).__name__}")
    total = process.num_train_timesteps
    if not 1 <= steps <= total:
        raise ValueError(f"steps must be from 1 to the process's {total} timesteps, got {steps}")
    points = steps + extra_point
    if spacing == "leading" and points > total:
        raise ValueError(f"steps must be below the process's {total} timesteps with an extra point, got {steps}")
    if spacing == "trailing":
        times = torch.round(total - torch.arange(steps, dtype=torch.float64) * (total / steps)) - 1
    elif spacing == "leading":
        times = torch.arange(points - 1, -1, -1, dtype=torch.float64)[:steps] * (total // points) + steps_offset
    elif spacing == "linspace":
        times = torch.linspace(total - 1, 0, points, dtype=torch.float64)[:steps]
        times = times.round() if rounded else times
    else:
        raise ValueError(f"spacing must be 'trailing', 'leading' or 'linspace', got {spacing!r}")
    return _ended(process, times, final)


def uniform(process: Process, steps: int, *, final: str = "sigma_min") -> NoiseSchedule:
    """Equally spaced times from the process's first to its last, as for SDEs (arXiv:2011.13456, appendix G).

    Args:
        final: "sigma_min" ends there, after `steps` steps; "zero" calls the network there, too, as the last of `steps`
            calls, and goes to clean data.
    """
    check_steps(steps)
    points = steps + (final == "sigma_min")
    times = torch.linspace(process.first_time, process.last_time, points, dtype=torch.float64)
    return schedule_of_times(process, times, clean_end=ends_clean(final))


def sgm_uniform(process: Process, steps: int) -> NoiseSchedule:
    """steps + 1 equally spaced times from the process's first to its last, the last of them replaced by clean data."""
    check_steps(steps)
    times = torch.linspace(process.first_time, process.last_time, steps + 1, dtype=torch.float64)[:-1]
    return schedule_of_times(process, times)


def flow(
    process: Process, steps: int, *, shift: float = 1.0, spacing: str = "trailing", terminal: float | None = None
) -> NoiseSchedule:
    """Times of a :class:`fastdiff.diffusion.FlowMatching`, shifted.

    Args:
        shift: see :func:`fastdiff.diffusion.shifted_time`; :func:`fastdiff.diffusion.dynamic_shift` has FLUX's.
        spacing: "trailing" places the times at 1, 1 - 1/steps ... 1/steps before the shift; "linspace" from 1 to the
            shifted time 1/1000, as diffusers' FlowMatchEulerDiscreteScheduler does, whose last times are therefore
            shifted twice. Both then end at 0.
        terminal: stretch the times so that the last call is at this one (diffusers' shift_terminal); of one step, whose
            call is at 1, there is nothing to stretch.
    """
    if not isinstance(process, FlowMatching):
        raise ValueError(f"schedule 'flow' needs a FlowMatching process, got {type(process).__name__}")
    check_steps(steps)
    if spacing == "trailing":
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]
    elif spacing == "linspace":
        last = shifted_time(torch.tensor(process.last_time, dtype=torch.float64), shift).item()
        times = torch.linspace(1, last, steps, dtype=torch.float64)
    else:
        raise ValueError(f"spacing must be 'trailing' or 'linspace', got {spacing!r}")
    if terminal is not None and steps == 1:
        raise ValueError(f"terminal needs at least 2 steps, the first of which is at time 1, got {terminal} and 1 step")
    times = shifted_time(times, shift)
    if terminal is not None:
        times = 1 - (1 - times) * ((1 - terminal) / (1 - times[-1]))
    return schedule_of_times(process, times)


def lcm(process: Process, steps: int, *, original_steps: int = 50, final: str = "zero") -> NoiseSchedule:
    """Times of latent consistency models (arXiv:2310.04378): a subset of the `original_steps` of the distillation.

    Args:
        original_steps: must be at least `steps`.
        final: as for :func:`timesteps`.
    """
    if not isinstance(process, DiscreteVP):
        raise ValueError(f"schedule 'lcm' needs a DiscreteVP process, got {type(process).__name__}")
    if not 1 <= steps <= original_steps <= process.num_train_timesteps:
        raise ValueError(
            "steps must be from 1 to original_steps, and original_steps at most the process's "
            f"{process.num_train_timesteps} timesteps, got {steps} and {original_steps}"
        )
    stride = process.num_train_timesteps // original_steps
    known = torch.arange(original_steps, 0, -1, dtype=torch.float64) * stride - 1
    chosen = torch.linspace(0, original_steps, steps + 1, dtype=torch.float64)[:-1].floor().long()
    return _ended(process, known[chosen], final)


def _ended(process: Process, times: Tensor, final: str) -> NoiseSchedule:
    if ends_clean(final):
        return schedule_of_times(process, times)
    last = torch.tensor([process.last_time], dtype=torch.float64)
    return schedule_of_times(process, torch.cat((times, last)), clean_end=False)


def ends_clean(final: str) -> bool:
    """Whether sampling goes on to clean data after the last call."""
    if final not in FINALS:
        raise ValueError(f"final must be one of {list(FINALS)}, got {final!r}")
    return final == "zero"


def check_steps(steps: int) -> None:
    """ValueError for less than one step."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
