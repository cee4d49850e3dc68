"""Solvers with two model calls a step: Heun, the midpoint rule (DPM2) and EDM's sampler."""

from __future__ import annotations

import math

from fastdiff.sampling.schedule import NoiseSchedule
from fastdiff.sampling.solvers.first_order import ancestral_split, in_data_units, moved
from fastdiff.sampling.table import SolverTable
from fastdiff.sampling.tape import Tape


def heun(schedule: NoiseSchedule, prediction: str, *, clip: float = math.inf) -> SolverTable:
    """Heun's method in sigma / alpha (arXiv:2206.00364, algorithm 1). The last step to clean data is Euler's.

    N steps take 2 N - 1 model calls.

    Args:
        clip: x0 is clipped to -clip ... clip.
    """
    tape = Tape(prediction, keep="epsilon", clip=clip)
    x = tape.start
    for here, there in schedule.pairs:
        first = tape.evaluate(x, here)
        euler = moved(first.sample, first.epsilon, here, there)
        if there.sigma == 0:
            x = euler
        else:
            second = tape.evaluate(euler, there)
            x = moved(first.sample, 0.5 * (first.epsilon + second.epsilon), here, there)
    return tape.finish(x, schedule)


def flow_heun(schedule: NoiseSchedule, prediction: str) -> SolverTable:
    """Heun's method in the time of the straight path: ``x' = x + (t' - t) (v + v') / 2``.

    The last step to clean data is Euler's. N steps take 2 N - 1 model calls. The process must be
    :class:`fastdiff.diffusion.FlowMatching`.
    """
    tape = Tape(prediction, keep="flow")
    x = tape.start
    for here, there in schedule.pairs:
        first, change = tape.evaluate(x, here), there.sigma - here.sigma
        euler = first.sample + change * first.model
        if there.sigma == 0:
            x = euler
        else:
            second = tape.evaluate(euler, there)
            x = first.sample + (0.5 * change) * (first.model + second.model)
    return tape.finish(x, schedule)


def edm(
    schedule: NoiseSchedule,
    prediction: str,
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    noise_scale: float = 1.0,
) -> SolverTable:
    """EDM's stochastic sampler (arXiv:2206.00364, algorithm 2): noise up to t-hat, then Heun's step down.

    N steps take 2 N - 1 model calls.

    Args:
        churn: S_churn; gamma = min(S_churn / N, sqrt(2) - 1).
        churn_min, churn_max: S_tmin and S_tmax, the range of sigma / alpha in which noise is added.
        noise_scale: S_noise.
    """
    tape = Tape(prediction, keep="epsilon")
    x = tape.start
    gamma = min(churn / schedule.steps, math.sqrt(2) - 1)
    for here, there in schedule.pairs:
        if gamma > 0 and churn_min <= here.ratio <= churn_max:
            if x is tape.start:
                tape.store(x, here)
            raised = schedule.at_ratio(here.ratio * (1 + gamma))
            added = noise_scale * math.sqrt(raised.ratio**2 - here.ratio**2) * tape.noise()
            x, here = raised.alpha * (in_data_units(x, here) + added), raised
        first = tape.evaluate(x, here)
        euler = moved(first.sample, first.epsilon, here, there)
        if there.sigma == 0:
            x = euler
        else:
            second = tape.evaluate(euler, there)
            x = moved(first.sample, 0.5 * (first.epsilon + second.epsilon), here, there)
    return tape.finish(x, schedule)


def dpm2(schedule: NoiseSchedule, prediction: str) -> SolverTable:
    """The midpoint rule with the geometric mean of the two levels (DPM-Solver-2 as in k-diffusion).

    The last step to clean data is Euler's. N steps take 2 N - 1 model calls.
    """
    return dpm2_ancestral(schedule, prediction, eta=0.0)


def dpm2_ancestral(
    schedule: NoiseSchedule, prediction: str, *, eta: float = 1.0, noise_scale: float = 1.0
) -> SolverTable:
    """:func:`dpm2` down to below the next level, then noise up to it.

    Args:
        eta, noise_scale: as for :func:`euler_ancestral`.
    """
    tape = Tape(prediction, keep="epsilon")
    x = tape.start
    for here, there in schedule.pairs:
        down, up = ancestral_split(here.ratio, there.ratio, eta)
        said = tape.evaluate(x, here)
        start = said.sample
        if down > 0:
            middle = schedule.at_ratio(math.sqrt(here.ratio * down))
            said = tape.evaluate(moved(start, said.epsilon, here, middle), middle)
        x = there.alpha * (
            in_data_units(start, here) + (down - here.ratio) * said.epsilon + noise_scale * up * tape.noise()
        )
    return tape.finish(x, schedule)
