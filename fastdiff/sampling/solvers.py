"""Solvers as tables: everything that is known before the loop starts, in float64."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff.diffusion import DiscreteVP, FlowMatching, Process, get_prediction
from fastdiff.ops import StepColumn


@dataclass(frozen=True)
class SolverTable:
    """A solver for one process, prediction and number of steps.

    Step i calls the network at ``times[i]`` and then :func:`fastdiff.ops.sampler_step` with ``coefficients[i]``.
    """

    times: Tensor
    """(steps,) float64: the process's time of each model call, falling."""
    coefficients: Tensor
    """(steps, 13) float64: the rows of :func:`fastdiff.ops.sampler_step`, whose columns `StepColumn` names."""

    def __len__(self) -> int:
        return len(self.times)


def ddim(
    process: Process, prediction: str, steps: int, *, spacing: str = "trailing", steps_offset: int = 0
) -> SolverTable:
    """DDIM without noise (arXiv:2010.02502, equation 12 with sigma = 0), for any process and prediction.

    ``x' = alpha' * x0 + sigma' * eps`` with x0 and eps from the prediction: a first-order exponential integrator.
    The last step ends on clean data.

    Args:
        process: on a :class:`DiscreteVP` the times are whole numbers; on a :class:`FlowMatching` the method is
            Euler's and `spacing` is that of :func:`flow_euler`.
        prediction: a name in :data:`fastdiff.diffusion.PREDICTIONS`.
        steps: number of model calls.
        spacing: "trailing" starts at the last time, "leading" ends at the first, "linspace" does both
            (arXiv:2305.08891, table 2).
        steps_offset: added to the times of "leading" (1 for Stable Diffusion).
    """
    if isinstance(process, DiscreteVP):
        times = _discrete_times(process.num_train_timesteps, steps, spacing, steps_offset)
    else:
        if steps_offset:
            raise ValueError(f"steps_offset must be 0 for a process in continuous time, got {steps_offset}")
        times = _flow_times(steps, shift=1.0, spacing=spacing)
    alpha, sigma = process.alpha(times), process.sigma(times)
    return SolverTable(times[:-1], _to_next_level(prediction, alpha, sigma))


def flow_euler(
    process: Process, prediction: str, steps: int, *, shift: float = 1.0, spacing: str = "trailing"
) -> SolverTable:
    """Euler's method for the flow from noise to data: ``x' = x + (t' - t) * velocity``.

    Args:
        process: a :class:`FlowMatching`.
        prediction: a name in :data:`fastdiff.diffusion.PREDICTIONS`; converted to a velocity if it is not "flow".
        steps: number of model calls.
        shift: ``t -> shift * t / (1 + (shift - 1) * t)`` spends more steps at high noise, for larger images
            (arXiv:2403.03206, equation 23).
        spacing: "trailing" places the times at 1, 1 - 1/steps ... 1/steps before the shift; "linspace" from 1 to the
            shifted time 1/1000, as diffusers' FlowMatchEulerDiscreteScheduler does. Both then end at 0.
    """
    if not isinstance(process, FlowMatching):
        raise ValueError(f"sampler 'flow_euler' needs a FlowMatching process, got {type(process).__name__}")
    times = _flow_times(steps, shift, spacing)
    # On the straight path Euler's step is DDIM's: (1 - t') * x0 + t' * eps = x + (t' - t) * (eps - x0).
    return SolverTable(times[:-1], _to_next_level(prediction, process.alpha(times), process.sigma(times)))


SAMPLERS: dict[str, Callable[..., SolverTable]] = {"ddim": ddim, "flow_euler": flow_euler}


def solver_table(sampler: str, process: Process, prediction: str, steps: int, **options: Any) -> SolverTable:
    """The table of the solver named `sampler`. ValueError for an unknown name or an option that it does not have."""
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {sorted(SAMPLERS)}, got {sampler!r}")
    solver = SAMPLERS[sampler]
    known = [name for name, p in inspect.signature(solver).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise ValueError(f"sampler {sampler!r} has no option {name!r}; it has {known}")
    return solver(process, prediction, steps, **options)


def _to_next_level(prediction: str, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Coefficients (steps, 13) of the steps between neighbours among steps + 1 levels (alpha, sigma)."""
    to_x0_and_eps = get_prediction(prediction).solve(alpha[:-1], sigma[:-1])  # (steps, 2, 2)
    next_level = torch.stack((alpha[1:], sigma[1:]), dim=-1)  # (steps, 2)
    rows = _plain_rows(len(next_level))
    rows[:, [StepColumn.SAMPLE, StepColumn.GUIDED]] = torch.einsum("sk,skj->sj", next_level, to_x0_and_eps)
    return rows


def _plain_rows(steps: int) -> Tensor:
    """(steps, 13) float64: zeros, without guidance and clip."""
    rows = torch.zeros(steps, len(StepColumn), dtype=torch.float64)
    rows[:, StepColumn.GUIDANCE] = 1
    rows[:, StepColumn.CLIP] = torch.inf
    return rows


def _discrete_times(train_steps: int, steps: int, spacing: str, steps_offset: int) -> Tensor:
    """Times of the model calls and, last, -1 for clean data: (steps + 1,) float64."""
    if not 1 <= steps <= train_steps:
        raise ValueError(f"steps must be from 1 to the process's {train_steps} timesteps, got {steps}")
    if spacing == "trailing":
        times = torch.round(train_steps - torch.arange(steps, dtype=torch.float64) * (train_steps / steps)) - 1
    elif spacing == "leading":
        times = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (train_steps // steps) + steps_offset
    elif spacing == "linspace":
        times = torch.linspace(train_steps - 1, 0, steps, dtype=torch.float64).round()
    else:
        raise ValueError(f"spacing must be 'trailing', 'leading' or 'linspace', got {spacing!r}")
    return torch.cat((times, torch.full((1,), -1.0, dtype=torch.float64)))


def _flow_times(steps: int, shift: float, spacing: str) -> Tensor:
    """Times of the model calls and, last, 0 for clean data: (steps + 1,) float64."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if shift <= 0:
        raise ValueError(f"shift must be positive, got {shift}")

    def shifted(t: Tensor) -> Tensor:
        return shift * t / (1 + (shift - 1) * t)

    if spacing == "trailing":
        return shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64))
    if spacing == "linspace":
        last = float(shifted(torch.tensor(1e-3, dtype=torch.float64)))
        times = shifted(torch.linspace(1, last, steps, dtype=torch.float64))
        return torch.cat((times, torch.zeros(1, dtype=torch.float64)))
    raise ValueError(f"spacing must be 'trailing' or 'linspace', got {spacing!r}")
