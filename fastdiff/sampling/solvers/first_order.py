"""Solvers with one model call a step and no memory: DDPM, DDIM, Euler and its ancestral variant."""

from __future__ import annotations

import dataclasses
import math

from fastdiff.sampling.schedule import Level, NoiseSchedule
from fastdiff.sampling.table import SolverTable
from fastdiff.sampling.tape import Tape, Vector


def ddim(
    schedule: NoiseSchedule,
    prediction: str,
    *,
    eta: float = 0.0,
    noise_scale: float = 1.0,
    clip: float = math.inf,
    threshold: tuple[float, float] | None = None,
) -> SolverTable:
    """DDIM (arXiv:2010.02502, equation 12): ``x' = alpha' * x0 + sqrt(sigma'^2 - s^2) * eps + s * noise``.

    With eta 0 a first-order exponential integrator of the probability-flow ODE, the same as Euler's method in
    sigma / alpha, and on the straight path of flow matching the same as Euler's method in time.

    Args:
        eta: s is eta times the deviation of the posterior q(x' | x, x0): 0 is deterministic, 1 is DDPM.
        noise_scale: a further factor of the noise alone.
        clip: x0 is clipped to -clip ... clip; eps stays what the network said.
        threshold: (ratio, max_value), dynamic thresholding of x0 in place of a clip: see
            :func:`fastdiff.ops.sampler_step`.
    """
    tape = Tape(prediction, clip=clip, threshold=threshold)
    x = tape.start
    for here, there in schedule.pairs:
        said = tape.evaluate(x, here)
        deviation = eta * posterior_deviation(here, there) if eta else 0.0  # also from clean data, to invert
        direction = math.sqrt(max(there.sigma**2 - deviation**2, 0.0))
        x = there.alpha * said.x0 + direction * said.unclipped_epsilon + noise_scale * deviation * tape.noise()
    return tape.finish(x, schedule)


def ddim_inverse(schedule: NoiseSchedule, prediction: str) -> SolverTable:
    """DDIM's steps in reverse, from a sample to the noise that it comes from (arXiv:2010.02502, section 4.3).

    The "noise" that sampling starts with is the sample, in units of data, and its result is noise for "ddim". Exact in
    the limit of many steps, and for few with an error of first order: each step takes the noise that the network says
    at its start for that at its end. At clean data the network is told the lowest timestep of the schedule.
    """
    *levels, last = schedule.levels
    if last.sigma == 0:
        last = dataclasses.replace(last, timestep=levels[-1].timestep)
    rising = (last, *reversed(levels))
    return ddim(NoiseSchedule(schedule.process, rising, 1 / schedule.end_scale, 1 / schedule.start_scale), prediction)


def ddpm(
    schedule: NoiseSchedule,
    prediction: str,
    *,
    variance: str = "fixed_small",
    clip: float = math.inf,
    threshold: tuple[float, float] | None = None,
) -> SolverTable:
    """Ancestral sampling of DDPM (arXiv:2006.11239, algorithm 2), for any process and any subset of its times.

    ``x'`` is drawn from the posterior q(x' | x, x0) (equations 6 and 7), with x0 clipped. The last step draws no noise.

    Args:
        variance: "fixed_small", that of the posterior, or "fixed_large", that of the forward step (section 3.2).
        clip, threshold: as for :func:`ddim`.
    """
    if variance not in ("fixed_small", "fixed_large"):
        raise ValueError(f"variance must be 'fixed_small' or 'fixed_large', got {variance!r}")
    tape = Tape(prediction, clip=clip, threshold=threshold)
    x = tape.start
    for here, there in schedule.pairs:
        said = tape.evaluate(x, here)
        decay, step_variance = transition(there, here)
        x = (there.alpha * step_variance / here.sigma**2) * said.x0 + (
            decay * there.sigma**2 / here.sigma**2
        ) * said.sample
        if there.sigma > 0:
            small = variance == "fixed_small"
            x = x + (posterior_deviation(here, there) if small else math.sqrt(step_variance)) * tape.noise()
    return tape.finish(x, schedule)


def euler_ancestral(
    schedule: NoiseSchedule, prediction: str, *, eta: float = 1.0, noise_scale: float = 1.0
) -> SolverTable:
    """Euler's method in sigma / alpha down to below the next level, then noise up to it (k-diffusion's ancestral).

    Args:
        eta: 0 is Euler's method; 1 has the noise of DDPM.
        noise_scale: a further factor of the noise.
    """
    tape = Tape(prediction)
    x = tape.start
    for here, there in schedule.pairs:
        said = tape.evaluate(x, here)
        down, up = ancestral_split(here.ratio, there.ratio, eta)
        x = there.alpha * (said.x0 + down * said.epsilon + noise_scale * up * tape.noise())
    return tape.finish(x, schedule)


def transition(earlier: Level, later: Level) -> tuple[float, float]:
    """(a, b^2) of the forward process q(x_later | x_earlier) = N(a * x_earlier, b^2), later being the noisier."""
    decay = later.alpha / earlier.alpha
    return decay, max(later.sigma**2 - (decay * earlier.sigma) ** 2, 0.0)


def posterior_deviation(here: Level, there: Level) -> float:
    """The deviation of q(x_there | x_here, x0) (arXiv:2006.11239, equation 7)."""
    _, step_variance = transition(there, here)
    return there.sigma / here.sigma * math.sqrt(step_variance)


def ancestral_split(ratio: float, next_ratio: float, eta: float) -> tuple[float, float]:
    """The level to step down to, and the noise that leads back up: down^2 + up^2 = next_ratio^2."""
    if next_ratio == 0:
        return 0.0, 0.0
    shrink = 1.0 if math.isinf(ratio) else 1 - (next_ratio / ratio) ** 2
    up = min(next_ratio, eta * next_ratio * math.sqrt(shrink))
    return math.sqrt(next_ratio**2 - up**2), up


def moved(x: Vector, epsilon: Vector, here: Level, there: Level) -> Vector:
    """Euler's step in sigma / alpha from `here` to `there` along `epsilon`, wherever x and epsilon come from."""
    return there.alpha * (in_data_units(x, here) + (there.ratio - here.ratio) * epsilon)


def in_data_units(x: Vector, level: Level) -> Vector:
    """x / alpha, the state of EDM and k-diffusion, in which the noise level is sigma / alpha."""
    if level.alpha == 0:
        raise ValueError(
            "the sampler steps in sigma / alpha, which is infinite where a process starts from pure noise: "
            "take a schedule with a sigma_max, or a sampler such as ddim, dpmpp_2m or flow_heun"
        )
    return x / level.alpha
