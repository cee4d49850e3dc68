"""The same work with the kernels and in pure PyTorch, timed side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

import fastdiff

ROUNDS = 2


@dataclass(frozen=True)
class Timing:
    seconds: float
    """With the kernels."""
    reference_seconds: float | None
    """In pure PyTorch; None where it was not run."""

    @property
    def ratio(self) -> float | None:
        """How many times faster the kernels are; below 1 they are slower."""
        return None if self.reference_seconds is None else self.reference_seconds / self.seconds


def timed(work: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float]:
    _synchronize(device)
    start = time.perf_counter()
    result = work()
    _synchronize(device)
    return result, time.perf_counter() - start


def compare(work: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, Tensor, Timing]:
    """The result with the kernels, that in pure PyTorch, and the fastest time of each.

    Rounds are interleaved and begin with the other side each time, so that a busy machine disturbs both alike.
    """
    sides: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "kernels": nullcontext,
        "reference": fastdiff.use_reference,
    }
    results: dict[str, Tensor] = {}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(ROUNDS):
        for name in reversed(sides) if turn % 2 else sides:
            with sides[name]():
                results[name], elapsed = timed(work, device)
            seconds[name].append(elapsed)
    timing = Timing(min(seconds["kernels"]), min(seconds["reference"]))
    return results["kernels"], results["reference"], timing


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
