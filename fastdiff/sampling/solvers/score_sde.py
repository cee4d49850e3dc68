"""Solvers of the reverse-time SDE of the score-based view (arXiv:2011.13456)."""

from __future__ import annotations

import math

import torch

from fastdiff.sampling.rates import rates
from fastdiff.sampling.schedule import NoiseSchedule
from fastdiff.sampling.solvers.first_order import in_data_units, transition
from fastdiff.sampling.table import SolverTable
from fastdiff.sampling.tape import Tape


def euler_maruyama(schedule: NoiseSchedule, prediction: str) -> SolverTable:
    """Euler-Maruyama on the reverse SDE (arXiv:2011.13456, equation 6): ``x' = x - (f x - g^2 score) dt + g dw``.

    The step to clean data, where a schedule has one, returns x0: the score has no limit there.
    """
    tape = Tape(prediction)
    x = tape.start
    for here, there in schedule.pairs:
        said = tape.evaluate(x, here)
        if there.sigma == 0:
            x = there.alpha * said.x0
            continue
        in_data_units(x, here)  # an error where the process starts from pure noise: its drift is infinite there
        now = rates(schedule.process, torch.tensor([here.time], dtype=torch.float64))
        drift, diffusion = now.drift.item(), now.diffusion.item()
        step = here.time - there.time
        score = (-1 / here.sigma) * said.epsilon
        x = said.sample - step * (drift * said.sample - diffusion**2 * score)
        x = x + (diffusion * math.sqrt(step)) * tape.noise()
    return tape.finish(x, schedule)


def reverse_diffusion(schedule: NoiseSchedule, prediction: str, *, denoise: bool = True) -> SolverTable:
    """The reverse diffusion sampler (arXiv:2011.13456, equation 46): the forward process's own steps, reversed.

    For a forward step ``x_i = a x_{i-1} + b noise``: ``x_{i-1} = (2 - a) x_i + b^2 score + b noise``.

    Args:
        denoise: without noise in the last step.
    """
    tape = Tape(prediction)
    x = tape.start
    for i, (here, there) in enumerate(schedule.pairs):
        said = tape.evaluate(x, here)
        decay, variance = transition(there, here)
        x = (2 - decay) * said.sample - (variance / here.sigma) * said.epsilon
        if not (denoise and i == schedule.steps - 1):
            x = x + math.sqrt(variance) * tape.noise()
    return tape.finish(x, schedule)
