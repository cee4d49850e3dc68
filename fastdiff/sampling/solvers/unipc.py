"""UniPC (arXiv:2302.04867): a predictor and a corrector of one order, with one model call a step for both."""

from __future__ import annotations

import math

import numpy as np

from fastdiff.sampling.schedule import Level, NoiseSchedule
from fastdiff.sampling.table import SolverTable
from fastdiff.sampling.tape import Tape, Vector

VARIANTS = ("bh1", "bh2")


def unipc(
    schedule: NoiseSchedule,
    prediction: str,
    *,
    order: int = 2,
    variant: str = "bh2",
    predict: str = "sample",
    lower_order_final: bool = True,
    threshold: tuple[float, float] | None = None,
) -> SolverTable:
    """UniPC-p (arXiv:2302.04867, algorithms 5 to 8): each model call first corrects the state that it was called on.

    Args:
        order: 1 to 3, of the predictor; the corrector gains one more.
        variant: "bh1", B(h) = h, or "bh2", B(h) = e^h - 1.
        predict: "sample" integrates the predicted data, as DPM-Solver++ does; "epsilon" the predicted noise.
        lower_order_final: the last steps are of order 1, 2, ... counted from the end.
        threshold: as for :func:`ddim`; only with ``predict="sample"``.
    """
    if not 1 <= order <= 3:
        raise ValueError(f"order must be from 1 to 3, got {order}")
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {list(VARIANTS)}, got {variant!r}")
    if predict not in ("sample", "epsilon"):
        raise ValueError(f"predict must be 'sample' or 'epsilon', got {predict!r}")
    if threshold is not None and predict != "sample":
        raise ValueError("threshold needs predict 'sample', which keeps x0, got 'epsilon'")
    tape = Tape(prediction, keep=predict, threshold=threshold)
    x = base = tape.start
    models: list[Vector] = []
    levels: list[Level] = []
    used = 0
    first = 1 if schedule.levels[0].alpha == 0 else 0  # at pure noise lambda is infinite: no polynomial reaches it
    for i, (here, there) in enumerate(schedule.pairs):
        model = tape.evaluate(x, here).model
        if i > first:
            x = tape.simplified(_step(base, models, levels, here, used, variant, predict, model))
        models.insert(0, model)
        levels.insert(0, here)
        used = min(order, max(i + 1 - first, 1), schedule.steps - i if lower_order_final else order)
        if there.sigma == 0:
            used = 1  # as is that of clean data
        base = x
        x = _step(base, models, levels, there, used, variant, predict)
    return tape.finish(x, schedule)


def _step(
    x: Vector,
    models: list[Vector],
    levels: list[Level],
    there: Level,
    order: int,
    variant: str,
    predict: str,
    arrived: Vector | None = None,
) -> Vector:
    """From levels[0] to `there`: the predictor, or, with the model `arrived` at there, the corrector."""
    here = levels[0]
    h = there.log_ratio - here.log_ratio
    if predict == "sample":
        linear, scale, signed = there.sigma / here.sigma, there.alpha, -h
    else:
        linear, scale, signed = there.alpha / here.alpha, there.sigma, h
    x = linear * x - (scale * math.expm1(signed)) * models[0]
    places = [(level.log_ratio - here.log_ratio) / h for level in levels[1:order]]
    values = [(model - models[0]) / place for model, place in zip(models[1:order], places, strict=True)]
    if arrived is not None:
        places, values = [*places, 1.0], [*values, arrived - models[0]]
    if not values:
        return x
    scale *= signed if variant == "bh1" else math.expm1(signed)
    for weight, value in zip(_weights(places, signed, variant), values, strict=True):
        x = x - (scale * weight) * value
    return x


def _weights(places: list[float], signed: float, variant: str) -> list[float]:
    """The solution a of R a = b (arXiv:2302.04867, equation 9), where a single weight is 1/2 (section 3.2)."""
    if len(places) == 1:
        return [0.5]
    bound = signed if variant == "bh1" else math.expm1(signed)
    powers = np.vander(places, increasing=True).T
    phi, factorial, right = math.expm1(signed) / signed - 1, 1.0, []
    for k in range(1, len(places) + 1):
        right.append(phi * factorial / bound)
        factorial *= k + 1
        phi = phi / signed - 1 / factorial
    return np.linalg.solve(powers, np.array(right)).tolist()
