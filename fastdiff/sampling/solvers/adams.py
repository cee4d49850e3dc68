"""Adams-Bashforth methods on the predicted noise: LMS, PNDM, iPNDM and DEIS. One model call a step."""

from __future__ import annotations

from fastdiff.sampling.schedule import Level, NoiseSchedule
from fastdiff.sampling.solvers.first_order import in_data_units, moved
from fastdiff.sampling.solvers.lagrange import lagrange_weights
from fastdiff.sampling.table import SolverTable
from fastdiff.sampling.tape import ZERO, Estimate, Tape, Vector

# For equal steps: orders 1 to 4, the newest value first.
ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def lms(schedule: NoiseSchedule, prediction: str, *, order: int = 4) -> SolverTable:
    """Linear multistep in sigma / alpha: the noise interpolated by a polynomial of it (k-diffusion's LMS).

    Args:
        order: 1 to 4, the number of values that are interpolated.
    """
    _check_order(order, 4)
    tape = Tape(prediction, keep="epsilon")
    x = tape.start
    said: list[Estimate] = []
    ratios: list[float] = []
    for here, there in schedule.pairs:
        said.insert(0, tape.evaluate(x, here))
        ratios.insert(0, here.ratio)
        x = in_data_units(said[0].sample, here)
        x = there.alpha * (x + _mean(said, lagrange_weights(ratios[:order], here.ratio, there.ratio)))
    return tape.finish(x, schedule)


def deis(schedule: NoiseSchedule, prediction: str, *, order: int = 2, few_steps: int = 15) -> SolverTable:
    """DEIS tAB in log(sigma / alpha) (arXiv:2204.13902, equation 15): the noise interpolated by a polynomial of it.

    Args:
        order: 1 to 3, the number of values that are interpolated.
        few_steps: with fewer steps than this, the last is of first and the one before of at most second order.
    """
    _check_order(order, 3)
    tape = Tape(prediction, keep="epsilon")
    x = tape.start
    said: list[Estimate] = []
    logs: list[float] = []
    for i, (here, there) in enumerate(schedule.pairs):
        said.insert(0, tape.evaluate(x, here))
        logs.insert(0, -here.log_ratio)
        usable = min(order, schedule.steps - i) if schedule.steps < few_steps else order
        if there.sigma == 0 or min(usable, len(said)) == 1:  # log(0) is out of any polynomial's reach
            x = moved(said[0].sample, said[0].epsilon, here, there)
            continue
        weights = lagrange_weights(logs[:usable], logs[0], -there.log_ratio, rate=1.0)
        change = there.ratio * _mean(said, weights)
        x = there.alpha * (in_data_units(said[0].sample, here) + change)
    return tape.finish(x, schedule)


def ipndm(schedule: NoiseSchedule, prediction: str) -> SolverTable:
    """Improved PNDM (arXiv:2204.13902, section 4): Adams-Bashforth of fourth order as if all steps were equal."""
    tape = Tape(prediction, keep="epsilon")
    x = tape.start
    said: list[Estimate] = []
    for here, there in schedule.pairs:
        said.insert(0, tape.evaluate(x, here))
        if len(said) == 1:  # also where alpha = 0
            x = there.alpha * said[0].x0 + there.sigma * said[0].epsilon
        else:
            x = moved(said[0].sample, _mean(said, ADAMS_BASHFORTH[min(len(said), 4) - 1]), here, there)
    return tape.finish(x, schedule)


def pndm(schedule: NoiseSchedule, prediction: str, *, average: str = "epsilon") -> SolverTable:
    """PNDM's linear multistep phase, PLMS (arXiv:2202.09778, equations 11 and 12), started by one step of Heun's.

    As in latent diffusion: there is no Runge-Kutta phase. N steps take N + 1 model calls.

    Args:
        average: "epsilon", or "prediction" to average what the network returns whatever it is, as diffusers does: with
            another prediction than epsilon that is of first order only.
    """
    if average not in ("epsilon", "prediction"):
        raise ValueError(f"average must be 'epsilon' or 'prediction', got {average!r}")
    tape = Tape(prediction, keep="epsilon" if average == "epsilon" else None)
    x = tape.start
    said: list[Estimate] = []
    for i, (here, there) in enumerate(schedule.pairs):
        said.insert(0, tape.evaluate(x, here))
        weights = ADAMS_BASHFORTH[min(len(said), 4) - 1]
        mean = sum((weight * one.model for weight, one in zip(weights, said, strict=False)), ZERO)
        x = _transfer(tape, said[0].sample, mean, here, there)
        if i == 0:
            again = tape.evaluate(x, there)
            x = _transfer(tape, said[0].sample, 0.5 * (said[0].model + again.model), here, there)
    return tape.finish(x, schedule)


def _transfer(tape: Tape, x: Vector, model: Vector, here: Level, there: Level) -> Vector:
    """PNDM's phi (arXiv:2202.09778, equation 11): DDIM's step with a mean of predictions."""
    x0, epsilon = tape.interpret(x, model, here)
    return there.alpha * x0 + there.sigma * epsilon


def _mean(said: list[Estimate], weights: list[float] | tuple[float, ...]) -> Vector:
    return sum((weight * one.epsilon for weight, one in zip(weights, said, strict=False)), ZERO)


def _check_order(order: int, highest: int) -> None:
    if not 1 <= order <= highest:
        raise ValueError(f"order must be from 1 to {highest}, got {order}")
