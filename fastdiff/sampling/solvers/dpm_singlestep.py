"""Singlestep DPM-Solver and DPM-Solver++: groups of model calls, each from the group's start."""

from __future__ import annotations

from fastdiff.sampling.schedule import Level, NoiseSchedule
from fastdiff.sampling.solvers.dpm_solver import ExponentialStep, check_options, kept_model
from fastdiff.sampling.table import SolverTable
from fastdiff.sampling.tape import Tape, Vector


def dpm_singlestep(
    schedule: NoiseSchedule,
    prediction: str,
    *,
    algorithm: str = "dpmsolver++",
    stochastic: bool = False,
    order: int = 2,
    variant: str = "midpoint",
    uncorrected: bool = False,
    lower_order_final: bool = True,
    threshold: tuple[float, float] | None = None,
) -> SolverTable:
    """Singlestep DPM-Solver on the schedule's own levels: groups of `order` calls, each from the group's start.

    The k-th call of a group leads to the next level by the method of order k (arXiv:2206.00927, algorithm 1 and 2, with
    the schedule's levels as intermediate points). It has its full order where the levels are equally spaced in lambda
    (schedule "exponential"). N steps take N model calls.

    Args:
        algorithm, stochastic, order, variant, threshold: as for :func:`dpm_multistep`; "heun" of third order uses both
            intermediate points, "midpoint" the last alone.
        uncorrected: in the SDE's "heun" of third order, the weight with diffusers' sign.
        lower_order_final: end on groups of lower order where `order` does not divide the number of steps.
    """
    check_options(algorithm, order, variant)
    tape = Tape(prediction, keep=kept_model(algorithm), threshold=threshold)
    orders = _group_orders(schedule, order, lower_order_final)
    x = start = tape.start
    said: list[Vector] = []
    levels: list[Level] = []
    for place, (here, there) in zip(orders, schedule.pairs, strict=True):
        if place == 1:
            # Noise would make the group's start irrecoverable from the states after it.
            start = tape.store(x, here) if stochastic and order > 1 else x
            said, levels = [], []
        said.append(tape.evaluate(x, here).model)
        levels.append(here)
        step = ExponentialStep.between(levels[0], there, algorithm, stochastic)
        x = step.linear * start + step.noise * tape.noise() + step.first * said[0]
        slopes = [
            (one - said[0]) * step.per_step(level.log_ratio - levels[0].log_ratio)
            for one, level in zip(said[1:], levels[1:], strict=True)
        ]
        if place == 2:
            x = x + (0.5 * step.first if variant == "midpoint" else step.second) * slopes[0]
        elif place == 3 and variant == "midpoint":
            x = x + step.second * slopes[1]
        elif place == 3:
            near, far = (1 / step.per_step(level.log_ratio - levels[0].log_ratio) for level in levels[1:])
            slope = (far * slopes[0] - near * slopes[1]) / (far - near)
            curvature = 2 * (slopes[1] - slopes[0]) / (far - near)
            third = step.third - step.scale if uncorrected and stochastic else step.third
            x = x + step.second * slope + third * curvature
    return tape.finish(x, schedule)


def _group_orders(schedule: NoiseSchedule, order: int, lower_order_final: bool) -> list[int]:
    """The order of each step: 1 ... order in turn, with what is left over, and a last step to clean data, lower."""
    # A step from pure noise, where lambda is infinite, is a group of its own.
    alone = [1] if schedule.levels[0].alpha == 0 else []
    steps = schedule.steps - len(alone)
    orders = alone + [1 + i % order for i in range(steps)]
    if lower_order_final and order > 1 and steps > 0 and steps % order == 0:
        # The last group is split, so that the sampler ends on a step of first order.
        orders[-order:] = [*range(1, order), 1] if order == 3 else [1, 1]
    if schedule.levels[-1].sigma == 0:
        orders[-1] = 1
    return orders
