"""sampler_step: three dtypes, vectors and single elements, with and without its optional operands."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from ptx.case import Case
from torch import Tensor

from fastdiff import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COEFFICIENTS = (0.9, -1.3, 0.4, 0.2, -0.1, 0.7)


class SamplerStep:
    def __init__(self, size: int, dtype: torch.dtype, aligned: bool, guided: bool, history: int) -> None:
        self.dtype = dtype
        first = 0 if aligned else 1
        tensors = [torch.randn(size + first).to(dtype)[first:] for _ in range(3 + history)]
        self.sample, self.prediction, self.uncond, *self.history = tensors
        self.guided = guided
        self.coefficients = list(COEFFICIENTS[: 2 + history])

    def run(self, ops: Any) -> Sequence[Tensor]:
        uncond = self.uncond if self.guided else None
        return [ops.sampler_step(self.sample, self.prediction, uncond, 3.5, self.coefficients, self.history)]

    def define(self, dtype: torch.dtype) -> Sequence[Tensor]:
        result = reference.sampler_step(
            self.sample.to(dtype),
            self.prediction.to(dtype),
            self.coefficients,
            uncond_prediction=self.uncond.to(dtype) if self.guided else None,
            guidance_scale=3.5,
            history=[entry.to(dtype) for entry in self.history],
        )
        return [result]


def _cases() -> list[Case]:
    cases = []
    for dtype, aligned, (guided, history) in itertools.product(DTYPES, (True, False), ((True, 4), (False, 1))):
        # Vectors and a tail, or single elements only; enough for the 8 blocks of one multiprocessor to go round twice.
        size = 2 * 8 * 256 + 3
        names = (str(dtype).removeprefix("torch."), "aligned" if aligned else "unaligned", f"history{history}")
        make = functools.partial(SamplerStep, size, dtype, aligned, guided, history)
        cases.append(Case("-".join(("sampler_step", *names)), make, sm_count=1))
    return cases


CASES = _cases()
