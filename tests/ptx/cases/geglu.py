"""geglu: three dtypes, both kinds of GELU, aligned and not."""

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


class Geglu:
    def __init__(self, features: int, dtype: torch.dtype, approximate: str) -> None:
        self.dtype = dtype
        self.approximate = approximate
        self.x = (3 * torch.randn(33, 2 * features)).to(dtype)
        self.dy = torch.randn(33, features).to(dtype)

    def run(self, ops: Any) -> Sequence[Tensor]:
        tanh = self.approximate == "tanh"
        return [ops.geglu(self.x, tanh), ops.geglu_backward(self.dy, self.x, tanh)]

    def define(self, dtype: torch.dtype) -> Sequence[Tensor]:
        x = self.x.to(dtype).requires_grad_()
        y = reference.geglu(x, approximate=self.approximate)
        return [y.detach(), *torch.autograd.grad(y, x, self.dy.to(dtype))]


def _cases() -> list[Case]:
    cases = []
    # 23 features: neither rows nor halves of rows are aligned.
    for dtype, approximate, features in itertools.product(DTYPES, ("none", "tanh"), (32, 23)):
        make = functools.partial(Geglu, features, dtype, approximate)
        cases.append(Case(f"geglu-{str(dtype).removeprefix('torch.')}-{approximate}-{features}", make))
    return cases


CASES = _cases()
