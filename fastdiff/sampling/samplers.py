"""Every solver by its usual name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastdiff.diffusion import EDM, VE, VP, CosineVP, DiscreteVP, FlowMatching, Process, SubVP
from fastdiff.sampling import solvers
from fastdiff.sampling.schedule import NoiseSchedule
from fastdiff.sampling.schedules import SCHEDULES
from fastdiff.sampling.table import SolverTable


@dataclass(frozen=True)
class Sampler:
    """A solver, what its name says of its options, and where its steps lie unless something else is asked for."""

    solver: Callable[..., SolverTable]
    """(schedule, prediction, **options) -> table"""
    options: dict[str, Any] = field(default_factory=dict)
    """Fixed by the name."""
    schedule: str | None = None
    """A name in :data:`SCHEDULES`, for a discrete process; default "timesteps"."""
    schedule_options: dict[str, Any] = field(default_factory=dict)
    """Defaults for that schedule, as the solver's authors have it."""
    processes: tuple[type, ...] = ()
    """The only processes that the method is made for, if there are any."""


def _k(solver: Callable[..., SolverTable], **options: Any) -> Sampler:
    return Sampler(solver, options, schedule_options={"rounded": False})


def _dpm(solver: Callable[..., SolverTable], **options: Any) -> Sampler:
    return Sampler(solver, options, schedule_options={"extra_point": True})


_DPM, _DPMPP = {"algorithm": "dpmsolver"}, {"algorithm": "dpmsolver++"}
_FLOW = (FlowMatching,)
_SDE = (VP, SubVP, CosineVP, VE, EDM, FlowMatching)

SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(solvers.ddpm),
    "ddim": Sampler(solvers.ddim),
    "ddim_inverse": Sampler(solvers.ddim_inverse),
    "euler": _k(solvers.ddim, eta=0.0),
    "euler_ancestral": _k(solvers.euler_ancestral),
    "heun": _k(solvers.heun),
    "dpm2": _k(solvers.dpm2),
    "dpm2_ancestral": _k(solvers.dpm2_ancestral),
    "lms": _k(solvers.lms),
    "pndm": Sampler(solvers.pndm),
    "ipndm": _k(solvers.ipndm),
    "deis": _dpm(solvers.deis),
    "dpm_solver_2m": _dpm(solvers.dpm_multistep, **_DPM, order=2),
    "dpm_solver_3m": _dpm(solvers.dpm_multistep, **_DPM, order=3),
    "dpm_solver_2s": _dpm(solvers.dpm_singlestep, **_DPM, order=2),
    "dpm_solver_3s": _dpm(solvers.dpm_singlestep, **_DPM, order=3),
    "dpmpp_2m": _dpm(solvers.dpm_multistep, **_DPMPP, order=2),
    "dpmpp_3m": _dpm(solvers.dpm_multistep, **_DPMPP, order=3),
    "dpmpp_3m_uncorrected": _dpm(solvers.dpm_multistep, **_DPMPP, order=3, uncorrected=True),
    "dpmpp_2s": _dpm(solvers.dpm_singlestep, **_DPMPP, order=2),
    "dpmpp_3s": _dpm(solvers.dpm_singlestep, **_DPMPP, order=3),
    "dpmpp_2s_ancestral": _k(solvers.dpmpp_2s_ancestral),
    "dpmpp_sde": _k(solvers.dpmpp_sde),
    "dpmpp_2m_sde": _dpm(solvers.dpm_multistep, **_DPMPP, order=2, stochastic=True),
    "dpmpp_3m_sde": _dpm(solvers.dpm_multistep, **_DPMPP, order=3, stochastic=True),
    "unipc": _dpm(solvers.unipc),
    "sa_solver": _dpm(solvers.sa_solver),
    "edm": _k(solvers.edm),
    "euler_maruyama": Sampler(solvers.euler_maruyama, processes=_SDE),
    "reverse_diffusion": _k(solvers.reverse_diffusion),
    "flow_euler": Sampler(solvers.ddim, {"eta": 0.0}, processes=_FLOW),
    "flow_heun": Sampler(solvers.flow_heun, processes=_FLOW),
    "consistency": _k(solvers.consistency),
    "lcm": Sampler(solvers.lcm, schedule="lcm", processes=(DiscreteVP,)),
    "tcd": Sampler(solvers.tcd, schedule="lcm", schedule_options={"final": "sigma_min"}, processes=(DiscreteVP,)),
}

# Where the steps lie on a process in continuous time, unless something else is asked for.
_CONTINUOUS: dict[type, tuple[str, dict[str, Any]]] = {
    FlowMatching: ("flow", {}),
    VP: ("uniform", {}),
    SubVP: ("uniform", {}),
    CosineVP: ("uniform", {}),
    VE: ("uniform", {}),
    EDM: ("karras", {}),
}


def get_sampler(name: str) -> Sampler:
    """The entry of :data:`SAMPLERS`; ValueError with the known names if there is none."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler {name!r} is unknown, it must be one of {sorted(SAMPLERS)}")
    return SAMPLERS[name]


def solver_table(
    sampler: str,
    process: Process,
    prediction: str,
    steps: int,
    *,
    schedule: str | NoiseSchedule | None = None,
    **options: Any,
) -> SolverTable:
    """The table of the solver named `sampler`.

    Args:
        sampler: a name in :data:`SAMPLERS`.
        process, prediction: what the network was trained on, and what it returns.
        steps: number of steps.
        schedule: where they lie: a name in :data:`SCHEDULES`, or the levels themselves, of which there must be
            steps + 1. Default: that of the solver's authors.
        options: of the solver and of the schedule, by name.

    Returns:
        The table, which is kept for the next call with the same arguments and must not be changed.

    Raises:
        ValueError: an unknown name, an option that neither has, or a process that the solver is not made for.
    """
    hashable = ((name, tuple(value) if isinstance(value, list) else value) for name, value in options.items())
    return _solver_table(sampler, process, prediction, steps, schedule, tuple(sorted(hashable)))


@functools.lru_cache(maxsize=64)
def _solver_table(
    sampler: str,
    process: Process,
    prediction: str,
    steps: int,
    schedule: str | NoiseSchedule | None,
    option_items: tuple[tuple[str, Any], ...],
) -> SolverTable:
    entry, options = get_sampler(sampler), dict(option_items)
    if entry.processes and not isinstance(process, entry.processes):
        allowed = " or ".join(kind.__name__ for kind in entry.processes)
        raise ValueError(f"sampler {sampler!r} needs a {allowed} process, got {type(process).__name__}")
    of_solver = _options(entry.solver) - set(entry.options)
    levels, of_schedule = _schedule(entry, process, steps, schedule, options, of_solver)
    for name in options:
        if name not in of_solver | of_schedule:
            known = sorted(of_solver | of_schedule)
            raise ValueError(f"sampler {sampler!r} has no option {name!r}; with this schedule it has {known}")
    chosen = {name: value for name, value in options.items() if name in of_solver}
    return entry.solver(levels, prediction, **entry.options, **chosen)


def _schedule(
    entry: Sampler,
    process: Process,
    steps: int,
    schedule: str | NoiseSchedule | None,
    options: dict[str, Any],
    of_solver: set[str],
) -> tuple[NoiseSchedule, set[str]]:
    """The noise levels, and the options that were there for them."""
    if isinstance(schedule, NoiseSchedule):
        if schedule.steps != steps:
            raise ValueError(f"schedule must have steps + 1 = {steps + 1} levels, got {len(schedule.levels)}")
        return schedule, set()
    defaults: dict[str, Any] = {}
    if schedule is None and isinstance(process, DiscreteVP):
        schedule, defaults = entry.schedule or "timesteps", entry.schedule_options
    elif schedule is None:
        schedule, defaults = _CONTINUOUS[type(process)]
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {sorted(SCHEDULES)}, got {schedule!r}")
    known = _options(SCHEDULES[schedule]) - of_solver
    given = {name: value for name, value in options.items() if name in known}
    return SCHEDULES[schedule](process, steps, **{**defaults, **given}), known


def _options(function: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(function).parameters.items()
    return {name for name, parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
