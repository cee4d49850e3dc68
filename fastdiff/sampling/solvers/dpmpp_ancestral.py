"""k-diffusion's DPM-Solver++ with ancestral noise: a midpoint step in lambda, two model calls a step."""

from __future__ import annotations

import math

from fastdiff.sampling.schedule import NoiseSchedule
from fastdiff.sampling.solvers.first_order import ancestral_split, in_data_units
from fastdiff.sampling.table import SolverTable
from fastdiff.sampling.tape import ZERO, Tape, Vector


def dpmpp_sde(schedule: NoiseSchedule, prediction: str, *, eta: float = 1.0, noise_scale: float = 1.0) -> SolverTable:
    """DPM-Solver++ (stochastic) of k-diffusion: a midpoint step in lambda with ancestral noise in both stages.

    The noises of the two stages are those of one Brownian path over sigma / alpha, as there. The last step to clean
    data is Euler's. N steps take 2 N - 1 model calls.

    Args:
        eta, noise_scale: as for :func:`euler_ancestral`.
    """
    tape = Tape(prediction, keep="sample")
    x = tape.start
    for here, there in schedule.pairs:
        if there.sigma == 0:
            x = there.alpha * tape.evaluate(x, here).x0
            continue
        start = tape.store(x, here)
        middle = schedule.at_ratio(math.sqrt(here.ratio * there.ratio))
        x0 = tape.evaluate(start, here).x0
        down, up = ancestral_split(here.ratio, middle.ratio, eta)
        first_noise = tape.noise()
        x = middle.alpha * (_toward(in_data_units(start, here), x0, down / here.ratio) + noise_scale * up * first_noise)
        x0 = tape.evaluate(x, middle).x0
        down, up = ancestral_split(here.ratio, there.ratio, eta)
        shared = (here.ratio - middle.ratio) / (here.ratio - there.ratio)
        noise = math.sqrt(1 - shared) * tape.noise()
        if eta * noise_scale != 0:
            noise = noise + math.sqrt(shared) * first_noise
        x = there.alpha * (_toward(in_data_units(start, here), x0, down / here.ratio) + noise_scale * up * noise)
    return tape.finish(x, schedule)


def dpmpp_2s_ancestral(
    schedule: NoiseSchedule, prediction: str, *, eta: float = 1.0, noise_scale: float = 1.0
) -> SolverTable:
    """DPM-Solver++(2S) with ancestral noise (k-diffusion): a midpoint step in lambda, then noise.

    The last step to clean data is Euler's. N steps take 2 N - 1 model calls.

    Args:
        eta, noise_scale: as for :func:`euler_ancestral`.
    """
    tape = Tape(prediction, keep="sample")
    x = tape.start
    for here, there in schedule.pairs:
        down, up = ancestral_split(here.ratio, there.ratio, eta)
        said = tape.evaluate(x, here)
        start, x0 = said.sample, said.x0
        if down > 0:
            middle = schedule.at_ratio(math.sqrt(here.ratio * down))
            x = middle.alpha * _toward(in_data_units(start, here), x0, middle.ratio / here.ratio)
            x0 = tape.evaluate(x, middle).x0
        x = there.alpha * (_toward(in_data_units(start, here), x0, down / here.ratio) + noise_scale * up * tape.noise())
    return tape.finish(x, schedule)


def _toward(x: Vector, x0: Vector, part: float) -> Vector:
    """x moved toward x0 so that `part` of the distance is left."""
    return part * x + (1 - part) * x0 if part else x0 + ZERO
