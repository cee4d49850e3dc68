"""sampler_step: every pair of types, vectors and a rest of single elements, all operands or the fewest."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from ptx.case import Case
from torch import Tensor

from fastdiff import reference
from fastdiff.reference.sampler_step import step_within_limits

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Of a StepColumn each: guidance 3.5, rescale 0.7, clip 1.5, noise 0.25, four factors of the history.
FULL = (3.5, 0.7, 1.2, -0.4, 1.5, 0.9, -0.3, 0.8, 0.25, 0.4, -0.2, 0.1, 0.7)
PLAIN = (1.0, 0.0, 0.0, 1.0, 1.5, 0.9, -0.3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class SamplerStep:
    def __init__(self, dtype: torch.dtype, prediction_dtype: torch.dtype, full: bool) -> None:
        self.dtype = dtype
        shape = (1, 45)
        self.sample, *history = (torch.randn(shape).to(dtype) for _ in range(5))
        self.prediction, uncond = (torch.randn(shape).to(prediction_dtype) for _ in range(2))
        self.uncond, self.history = (uncond, history) if full else (None, [])
        self.rows = torch.tensor([PLAIN, FULL])
        self.step = torch.tensor(int(full))
        self.seeds = torch.tensor([2**40 + 3]) if full else None

    def limits(self, limited: bool) -> Tensor | None:
        return torch.tensor([1.25]) if limited else None

    def run(self, ops: Any) -> Sequence[Tensor]:
        results = []
        for limited in (False, True):
            arguments = (self.rows, self.step, 0, self.uncond, self.history, self.seeds, self.limits(limited))
            results += ops.sampler_step(self.sample, self.prediction, *arguments)
        return results

    def define(self, dtype: torch.dtype) -> Sequence[Tensor]:
        results: list[Tensor] = []
        for limited in (False, True):
            results += step_within_limits(
                self.sample.to(dtype),
                self.prediction.to(dtype),
                self.rows,
                self.step,
                None if self.uncond is None else self.uncond.to(dtype),
                history=[entry.to(dtype) for entry in self.history],
                seeds=self.seeds,
                limits=self.limits(limited),
            )
        return results


def _cases() -> list[Case]:
    assert len(FULL) == len(PLAIN) == len(reference.StepColumn)
    cases = []
    for dtype, prediction_dtype, full in itertools.product(DTYPES, DTYPES, (True, False)):
        if not full and dtype != prediction_dtype:
            continue
        names = [str(d).removeprefix("torch.") for d in (dtype, prediction_dtype)] + ["full" if full else "plain"]
        make = functools.partial(SamplerStep, dtype, prediction_dtype, full)
        cases.append(Case("-".join(("sampler_step", *names)), make))
    return cases


CASES = _cases()
