"""Interleaved timing: all contenders take turns, so that a slow moment of the machine hits them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Call = Callable[[], object]
Contender = TypeVar("Contender")


@dataclass(frozen=True)
class Budget:
    """How long one comparison may repeat: until `seconds` have passed, within the two bounds."""

    seconds: float
    min_repetitions: int
    max_repetitions: int

    def allows(self, repetitions: int, elapsed: float) -> bool:
        if repetitions < self.min_repetitions:
            return True
        return repetitions < self.max_repetitions and elapsed < self.seconds


@dataclass(frozen=True)
class Timing:
    """The statistics of one contender, in milliseconds."""

    median_ms: float
    min_ms: float
    repetitions: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        return cls(1e3 * statistics.median(seconds), 1e3 * min(seconds), len(seconds))


def interleave(
    contenders: dict[str, Contender],
    measure: Callable[[Contender], float],
    budget: Budget,
    prepare: Callable[[Contender], object],
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time the contenders in turns, one call each a repetition, starting each repetition with another of them.

    Args:
        contenders: what to time, by name: calls, or whatever `measure` and `prepare` take.
        measure: seconds that a contender takes, by the clock of the device.
        budget: bounds the repetitions; its seconds count everything, preparation too.
        prepare: run before each measurement and not timed. It is given the contender: running it once leaves the caches
            warm, flushing the caches instead leaves them cold.
        now: the clock of the budget.
    """
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    start, repetitions = now(), 0
    collecting = gc.isenabled()
    gc.disable()  # a collection inside one contender's turn would be charged to it
    try:
        while budget.allows(repetitions, now() - start):
            first = repetitions % len(names)
            for name in names[first:] + names[:first]:
                prepare(contenders[name])
                seconds[name].append(measure(contenders[name]))
            repetitions += 1
    finally:
        if collecting:
            gc.enable()
    return {name: Timing.of(values) for name, values in seconds.items()}
