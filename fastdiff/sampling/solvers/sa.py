"""SA-Solver (arXiv:2309.05019): stochastic Adams methods, a predictor and a corrector with one model call a step."""

from __future__ import annotations

import math

from fastdiff.sampling.schedule import Level, NoiseSchedule
from fastdiff.sampling.solvers.lagrange import lagrange_weights
from fastdiff.sampling.table import SolverTable
from fastdiff.sampling.tape import Tape, Vector


def sa_solver(
    schedule: NoiseSchedule,
    prediction: str,
    *,
    predictor_order: int = 2,
    corrector_order: int = 2,
    tau: float = 1.0,
    tau_range: tuple[float, float] = (200.0, 800.0),
    lower_order_final: bool = True,
    threshold: tuple[float, float] | None = None,
) -> SolverTable:
    """SA-Solver on the predicted data (arXiv:2309.05019, algorithm 1).

    Args:
        predictor_order: 1 to 3.
        corrector_order: 1 to 4, the calls that the corrector interpolates, the newest included.
        tau: how stochastic: 0 is the ODE, 1 the SDE of the forward process.
        tau_range: the timesteps (what the network is told) within which tau applies; 0 elsewhere.
        lower_order_final: the last steps are of order 1, 2, ... counted from the end.
        threshold: as for :func:`ddim`.
    """
    if not (1 <= predictor_order <= 3 and 1 <= corrector_order <= 4):
        raise ValueError(
            "predictor_order must be from 1 to 3 and corrector_order from 1 to 4, "
            f"got {predictor_order} and {corrector_order}"
        )
    tape = Tape(prediction, keep="sample", threshold=threshold)
    x = noise = tape.start
    models: list[Vector] = []
    levels: list[Level] = []
    memory = max(predictor_order, corrector_order - 1)
    base, tau_here, correcting = x, 0.0, 0
    first = 1 if schedule.levels[0].alpha == 0 else 0  # at pure noise lambda is infinite: no polynomial reaches it
    for i, (here, there) in enumerate(schedule.pairs):
        model = tape.evaluate(x, here).model
        models.insert(0, model)
        if i > 0:
            previous = levels[0]
            levels.insert(0, here)
            corrected = _step(base, models, levels, previous, here, correcting, tau_here, corrects=True)
            x = tape.simplified(corrected + noise)
        else:
            levels.insert(0, here)
        left = schedule.steps - i
        predicting, correcting = predictor_order, corrector_order
        if lower_order_final:
            predicting, correcting = min(predicting, left), min(correcting, left + 1)
        known = max(min(i, memory) - first, 0)
        predicting, correcting = min(predicting, known + 1), min(correcting, known + (1 if i < first else 2))
        tau_here = tau if tau_range[0] <= here.timestep <= tau_range[1] else 0.0
        base, h = x, there.log_ratio - here.log_ratio
        # The corrector keeps this noise: it is part of the state that it corrects.
        noise = (there.sigma * math.sqrt(-math.expm1(-2 * tau_here**2 * h)) if tau_here else 0.0) * tape.noise()
        x = _step(base, models, levels, here, there, predicting, tau_here, corrects=False) + noise
    return tape.finish(x, schedule)


def _step(
    x: Vector,
    models: list[Vector],
    levels: list[Level],
    here: Level,
    there: Level,
    order: int,
    tau: float,
    corrects: bool,
) -> Vector:
    """Equations 14 (predictor) and 17 (corrector) without their noise."""
    h, rate = there.log_ratio - here.log_ratio, 1 + tau**2
    linear = (math.exp(-(tau**2) * h) if tau else 1.0) * there.sigma / here.sigma
    if there.sigma == 0 or order == 1:  # the model is constant, so the integral is known in closed form
        return linear * x + (there.alpha * -math.expm1(-rate * h)) * models[0]
    lambdas = [level.log_ratio for level in levels[:order]]
    weights = [rate * weight for weight in lagrange_weights(lambdas, here.log_ratio, there.log_ratio, rate)]
    if order == 2:
        # Second order alone has the weight h^2 / 2 in place of the exact integral (appendix B, "better for few steps").
        exact = (h * rate + math.expm1(-rate * h)) / rate**2
        span = h if corrects else lambdas[0] - lambdas[1]
        change = rate * (h**2 / 2 - exact) / span
        weights = [weights[0] + change, weights[1] - change]
    x = linear * x
    for weight, model in zip(weights, models, strict=False):
        x = x + (there.alpha * weight) * model
    return x
