"""From the formulas of a paper to rows of coefficients.

A solver's state is always a linear combination of the starting sample, of what the network said, and of noise. So a
solver can be run once on *names* instead of tensors: it writes its formulas with :class:`Vector`, and :class:`Tape`
turns each model call into the row that leads to the next one. What a formula says of earlier samples (Heun's
"x + h/2 (d + d')", after the network was called at x + h d) is rewritten in terms of the current sample and of the kept
models, because nothing else is at hand on the device; what then needs to be kept, and for how long, follows.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch

from fastdiff.diffusion import get_prediction
from fastdiff.ops import StepColumn
from fastdiff.sampling.schedule import Level, NoiseSchedule
from fastdiff.sampling.table import SolverTable

Name = tuple[str, int]
"""("sample" | "guided" | "model" | "noise", row)"""

MAX_HISTORY = 4
"""History tensors of :func:`fastdiff.ops.sampler_step`."""

CANCELLED = 1e-11
"""Coefficients below this part of a row's largest are what rounding left of terms that cancel."""


class Vector:
    """A linear combination of named tensors."""

    __slots__ = ("terms",)

    def __init__(self, terms: dict[Name, float]) -> None:
        self.terms = terms

    def __add__(self, other: Vector) -> Vector:
        terms = dict(self.terms)
        for name, coefficient in other.terms.items():
            terms[name] = terms.get(name, 0.0) + coefficient
        return Vector(terms)

    def __sub__(self, other: Vector) -> Vector:
        return self + -1.0 * other

    def __mul__(self, factor: float) -> Vector:
        return Vector({name: factor * coefficient for name, coefficient in self.terms.items()} if factor else {})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Vector:
        return self * (1.0 / divisor)

    def without_rounding(self) -> Vector:
        """Without what rounding left of terms that cancel."""
        bound = CANCELLED * max((abs(value) for value in self.terms.values()), default=0.0)
        return Vector({name: value for name, value in self.terms.items() if not abs(value) <= bound})  # NaN stays


ZERO = Vector({})


@dataclass(frozen=True)
class Estimate:
    """What one model call says at its level."""

    sample: Vector
    """The state that the network was called on."""
    x0: Vector
    """Clean data; clipped, if the tape clips."""
    epsilon: Vector
    """The noise that goes with x0."""
    unclipped_epsilon: Vector
    """The noise that the network itself said."""
    model: Vector
    """The kept prediction itself."""


@dataclass
class _Row:
    level: Level
    calls: bool
    model_map: tuple[float, float]
    clip: float
    solved: Vector = ZERO
    """The state that the row leads to, in terms of what is at hand there."""


class Tape:
    """Records a solver's model calls and the states between them.

    Args:
        prediction: what the network returns, a name in :data:`fastdiff.diffusion.PREDICTIONS`.
        keep: the prediction that is kept of each call, in its place; default the same.
        clip: bound on x0, which is then what is kept.
        threshold: dynamic threshold of x0, in place of a clip; likewise.
    """

    def __init__(
        self,
        prediction: str,
        *,
        keep: str | None = None,
        clip: float = math.inf,
        threshold: tuple[float, float] | None = None,
    ) -> None:
        if not clip > 0:
            raise ValueError(f"clip must be positive, got {clip}")
        bounded = threshold is not None or math.isfinite(clip)
        self.prediction = get_prediction(prediction)
        self.keep = get_prediction("sample" if bounded else keep or prediction)
        self.clip = clip
        self.threshold = threshold
        self.bounded = bounded
        self.rows: list[_Row] = []
        self.start = Vector({("sample", 0): 1.0})

    def evaluate(self, x: Vector, level: Level, *, denoise: tuple[float, float] | None = None) -> Estimate:
        """Call the network on the state x at `level`.

        With `denoise`, (a, b), x0 is a * x + b * prediction whatever the prediction; needs ``keep="sample"``.
        """
        self._arrive(x)
        index = len(self.rows)
        sample, guided, model = (Vector({(kind, index): 1.0}) for kind in ("sample", "guided", "model"))
        alpha, sigma = torch.tensor([level.alpha, level.sigma], dtype=torch.float64)
        if denoise is not None:
            of_prediction = torch.tensor([denoise, (-denoise[0], -denoise[1])], dtype=torch.float64)
            of_prediction[1] = (of_prediction[1] * alpha + torch.tensor([1.0, 0.0])) / sigma
        else:
            of_prediction = self.prediction.solve(alpha, sigma)
        raw_x0, raw_epsilon = _apply(of_prediction, sample, guided)
        weights = torch.stack(self.keep.weights(alpha, sigma))
        kept_as_it_is = self.keep is self.prediction and denoise is None
        of_sample, of_guided = (0.0, 1.0) if kept_as_it_is else (weights @ of_prediction).tolist()
        of_x0, of_epsilon = weights.tolist()
        if level.alpha * of_epsilon != level.sigma * of_x0:
            x0, epsilon = self.interpret(sample, model, level)
        else:  # what is kept is x0 or eps and says nothing of the other, but the network's own prediction does
            x0 = model / of_x0 if of_epsilon == 0 else raw_x0
            epsilon = model / of_epsilon if of_x0 == 0 else raw_epsilon
        self.rows.append(_Row(level, True, (of_sample, of_guided), self.clip))
        return Estimate(sample, x0, epsilon, raw_epsilon if self.bounded else epsilon, model)

    def interpret(self, x: Vector, model: Vector, level: Level) -> tuple[Vector, Vector]:
        """(x0, eps) of a state at `level` if a call there had given `model`: the kept prediction, or a mean of some."""
        alpha, sigma = torch.tensor([level.alpha, level.sigma], dtype=torch.float64)
        return _apply(self.keep.solve(alpha, sigma), x, model)

    def store(self, x: Vector, level: Level) -> Vector:
        """Go to the state x at `level` without a model call, and keep the state itself."""
        self._arrive(x)
        self.rows.append(_Row(level, False, (1.0, 0.0), math.inf))
        return Vector({("model", len(self.rows) - 1): 1.0})

    def noise(self) -> Vector:
        """Standard normal noise, new with each row, to be part of the next state."""
        if not self.rows:
            raise RuntimeError("the first row has not been recorded: call store() before the first noise")
        return Vector({("noise", len(self.rows) - 1): 1.0})

    def finish(self, x: Vector, schedule: NoiseSchedule) -> SolverTable:
        """End on the state x at the schedule's last level, in units of data."""
        self._arrive(schedule.end_scale * x)
        rows, last = self.rows, schedule.levels[-1]
        end = dataclasses.replace(last, alpha=schedule.end_scale * last.alpha, sigma=schedule.end_scale * last.sigma)
        levels = (*(row.level for row in rows), end)
        slots, writes = _allocate([row.solved for row in rows])
        coefficients = torch.zeros(len(rows), len(StepColumn), dtype=torch.float64)
        coefficients[:, StepColumn.GUIDANCE] = 1.0
        for index, row in enumerate(rows):
            line = coefficients[index]
            line[StepColumn.MODEL_SAMPLE], line[StepColumn.MODEL_GUIDED] = row.model_map
            line[StepColumn.CLIP] = row.clip
            for (kind, source), value in row.solved.terms.items():
                if source == index:
                    line[StepColumn[kind.upper()]] = value
                else:
                    line[StepColumn.HISTORY_0 + slots[source]] = value
        if not coefficients[:, StepColumn.SAMPLE :].isfinite().all():
            raise ValueError("the solver's coefficients are not finite on this schedule")
        calls = tuple(row.calls for row in rows)
        return SolverTable(levels, coefficients, calls, writes, schedule.start_scale, self.threshold)

    def _arrive(self, x: Vector) -> None:
        """The last row leads to x."""
        if not self.rows:
            if x.terms != self.start.terms:
                raise RuntimeError("the first call is on the starting sample")
            return
        self.rows[-1].solved = self.simplified(x)

    def simplified(self, x: Vector) -> Vector:
        """x without samples and noises of earlier rows, but what the state since then tells of them."""
        now = len(self.rows) - 1
        for earlier in range(min((row for kind, row in x.terms if kind != "model"), default=now), now):
            row = self.rows[earlier].solved
            x = _without(x, ("sample", earlier), row, earlier + 1)
            if ("sample", earlier) not in row.terms:
                x = _without(x, ("noise", earlier), row, earlier + 1)
        x = x.without_rounding()
        for kind, row_of in x.terms:
            if row_of != now and kind != "model":
                raise RuntimeError(f"row {now} needs the {kind} of row {row_of}, which is not at hand any more")
        return x


def _without(x: Vector, name: Name, row: Vector, then: int) -> Vector:
    """x with `name` replaced by what the row "sample of row `then` = ... + own * name" says of it."""
    coefficient, own = x.without_rounding().terms.get(name, 0.0), row.terms.get(name, 0.0)
    if coefficient == 0.0:
        return Vector({other: value for other, value in x.terms.items() if other != name})
    if own == 0.0:
        raise RuntimeError(f"the row to {then} has no use for the {name[0]} of row {name[1]}, so none can recover it")
    others = Vector({other: value for other, value in x.terms.items() if other != name})
    rest = Vector({other: value for other, value in row.terms.items() if other != name})
    return others + (Vector({("sample", then): 1.0}) - rest) * (coefficient / own)


def _apply(matrix: torch.Tensor, sample: Vector, other: Vector) -> tuple[Vector, Vector]:
    (a, b), (c, d) = matrix.tolist()
    return a * sample + b * other, c * sample + d * other


def _allocate(rows: list[Vector]) -> tuple[dict[int, int], tuple[int | None, ...]]:
    """A history slot for each model that a later row uses: the lowest that is free from its row to its last use.

    A row's slot may be that of a model which the row itself uses for the last time: it is read before it is written.
    """
    last_use: dict[int, int] = {}
    for index, row in enumerate(rows):
        for kind, source in row.terms:
            if kind == "model" and source < index:
                last_use[source] = index
    slots: dict[int, int] = {}
    for source in sorted(last_use):
        taken = {slots[other] for other in slots if last_use[other] > source}
        slots[source] = next(slot for slot in range(len(rows) + 1) if slot not in taken)
    if slots and max(slots.values()) >= MAX_HISTORY:
        raise RuntimeError(f"the solver keeps more than {MAX_HISTORY} models at a time")
    return slots, tuple(slots.get(index) for index in range(len(rows)))
