"""DPM-Solver and DPM-Solver++: exponential integrators in lambda = log(alpha / sigma).

DPM-Solver (arXiv:2206.00927) integrates the predicted noise, DPM-Solver++ (arXiv:2211.01095) the predicted data; their
SDE variants solve the reverse SDE instead of the probability-flow ODE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastdiff.sampling.schedule import Level, NoiseSchedule
from fastdiff.sampling.table import SolverTable
from fastdiff.sampling.tape import Tape, Vector

ALGORITHMS = ("dpmsolver", "dpmsolver++")
VARIANTS = ("midpoint", "heun")


def dpm_multistep(
    schedule: NoiseSchedule,
    prediction: str,
    *,
    algorithm: str = "dpmsolver++",
    stochastic: bool = False,
    order: int = 2,
    variant: str = "midpoint",
    uncorrected: bool = False,
    few_steps: int = 15,
    euler_at_final: bool = False,
    clip: float = math.inf,
    threshold: tuple[float, float] | None = None,
) -> SolverTable:
    """Multistep DPM-Solver: one model call a step, derivatives from the calls before (arXiv:2211.01095, section 4).

    Args:
        algorithm: "dpmsolver++" or "dpmsolver".
        stochastic: solve the SDE.
        order: 1 to 3.
        variant: of second order, "midpoint" or "heun" (Taylor).
        uncorrected: of third order, the form of the authors' code and of diffusers, in which the second derivative
            lacks a factor 2 (and, for the SDE, its weight a sign), so that it converges with second order only.
            Without a name that says so it would pass for third order; for 32 steps and fewer it is often better.
        few_steps: with fewer steps than this, the last is of first and the one before of at most second order.
        euler_at_final: the last step is of first order in any case; if it leads to clean data, it always is.
        clip, threshold: as for :func:`ddim`; only for DPM-Solver++.
    """
    check_options(algorithm, order, variant)
    if algorithm == "dpmsolver" and (threshold is not None or math.isfinite(clip)):
        raise ValueError("clip and threshold need algorithm 'dpmsolver++', which keeps x0, got 'dpmsolver'")
    tape = Tape(prediction, keep=kept_model(algorithm), clip=clip, threshold=threshold)
    x = tape.start
    said: list[Vector] = []
    lambdas: list[float] = []
    for i, (here, there) in enumerate(schedule.pairs):
        estimate = tape.evaluate(x, here)
        said.insert(0, estimate.model)
        lambdas.insert(0, here.log_ratio)
        left = schedule.steps - i
        usable = min(order, len(said), left) if schedule.steps < few_steps else min(order, len(said))
        if left == 1 and (euler_at_final or there.sigma == 0):
            usable = 1
        step = ExponentialStep.between(here, there, algorithm, stochastic)
        x = step.linear * estimate.sample + step.noise * tape.noise() + step.first * said[0]
        if usable == 2:
            slope = (said[0] - said[1]) * step.per_step(lambdas[0] - lambdas[1])
            x = x + (0.5 * step.first if variant == "midpoint" else step.second) * slope
        elif usable == 3:
            slope, curvature = _derivatives(said, lambdas, step, uncorrected)
            third = step.third - step.scale if uncorrected and stochastic else step.third
            x = x + step.second * slope + third * curvature
    return tape.finish(x, schedule)


@dataclass(frozen=True)
class ExponentialStep:
    """``x' = linear * x + first * m + second * h m' + third * h^2 m'' + noise * z`` for a kept model m(lambda)."""

    linear: float
    first: float
    second: float
    third: float
    noise: float
    scale: float
    length: float
    """h"""

    @classmethod
    def between(cls, here: Level, there: Level, algorithm: str, stochastic: bool) -> ExponentialStep:
        h = there.log_ratio - here.log_ratio
        if algorithm == "dpmsolver++":
            # integral of exp(lambda - lambda') m; the SDE's has twice the rate (arXiv:2211.01095, appendix B.3)
            rate = 2 * h if stochastic else h
            phi = -math.expm1(-rate)
            moments = (1 - phi / rate, 0.5 - (rate - phi) / rate**2) if math.isfinite(rate) else (0.0, 0.0)
            linear = there.sigma / here.sigma * (math.exp(-h) if stochastic else 1.0)
            scale, noise = there.alpha, there.sigma * math.sqrt(-math.expm1(-2 * h))
        elif not math.isfinite(h):
            raise ValueError("algorithm 'dpmsolver' cannot step from pure noise or to clean data: use 'dpmsolver++'")
        else:
            # minus the integral of exp(lambda' - lambda) m (arXiv:2206.00927, equation 3.4)
            phi = math.expm1(h)
            moments = (phi / h - 1, (phi - h) / h**2 - 0.5)
            linear = there.alpha / here.alpha
            scale = -there.sigma * (2 if stochastic else 1)
            noise = there.sigma * math.sqrt(math.expm1(2 * h))
        return cls(linear, scale * phi, scale * moments[0], scale * moments[1], noise if stochastic else 0.0, scale, h)

    def per_step(self, distance: float) -> float:
        """The factor that makes a difference of models over `distance` in lambda a slope over the step."""
        return self.length / distance


def _derivatives(
    said: list[Vector], lambdas: list[float], step: ExponentialStep, uncorrected: bool
) -> tuple[Vector, Vector]:
    """First and second derivative of the model at the newest of three calls, in units of the step."""
    r0, r1 = ((lambdas[k] - lambdas[k + 1]) / step.length for k in (0, 1))
    newer, older = (said[0] - said[1]) / r0, (said[1] - said[2]) / r1
    bend = (newer - older) / (r0 + r1)
    return newer + r0 * bend, bend if uncorrected else 2 * bend


def kept_model(algorithm: str) -> str:
    """What DPM-Solver and DPM-Solver++ keep of a model call."""
    return "sample" if algorithm == "dpmsolver++" else "epsilon"


def check_options(algorithm: str, order: int, variant: str) -> None:
    """ValueError for an unknown algorithm or variant, or an order that there is not."""
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {list(ALGORITHMS)}, got {algorithm!r}")
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {list(VARIANTS)}, got {variant!r}")
    if not 1 <= order <= 3:
        raise ValueError(f"order must be from 1 to 3, got {order}")
