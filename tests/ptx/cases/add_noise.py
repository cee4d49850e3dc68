"""add_noise: three dtypes, coefficients of both, vectors and a rest of single elements."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from ptx.case import Case
from torch import Tensor

from fastdiff import reference


class AddNoise:
    def __init__(self, dtype: torch.dtype, factors: torch.dtype) -> None:
        self.dtype = dtype
        self.clean, self.noise = (torch.randn(1, 45).to(dtype) for _ in range(2))
        self.factors = [torch.randn(1, dtype=factors) for _ in range(4)]

    def run(self, ops: Any) -> Sequence[Tensor]:
        return ops.add_noise(self.clean, self.noise, *self.factors)

    def define(self, dtype: torch.dtype) -> Sequence[Tensor]:
        return reference.add_noise(self.clean.to(dtype), self.noise.to(dtype), *self.factors)


CASES = [
    Case(
        "-".join(str(d).removeprefix("torch.") for d in ("add_noise", dtype, factors)),
        functools.partial(AddNoise, dtype, factors),
    )
    for dtype, factors in itertools.product(
        (torch.float32, torch.bfloat16, torch.float16), (torch.float32, torch.float64)
    )
]
