"""gate_residual: three dtypes, gates of both kinds of 16 bits, of a sample and of a token, aligned and not."""

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


class GateResidual:
    def __init__(self, channels: int, dtype: torch.dtype, gate_dtype: torch.dtype, per_token: bool) -> None:
        self.dtype = dtype
        shape = (2, 35, channels)
        self.x, self.residual, self.dsum = (torch.randn(shape).to(dtype) for _ in range(3))
        self.gate = torch.randn(2, 35 if per_token else 1, channels).to(gate_dtype)

    def run(self, ops: Any) -> Sequence[Tensor]:
        total = ops.gate_residual(self.x, self.gate, self.residual)
        return [total, *ops.gate_residual_backward(self.dsum, self.x, self.gate, True)]

    def define(self, dtype: torch.dtype) -> Sequence[Tensor]:
        leaves = [operand.to(dtype).requires_grad_() for operand in (self.x, self.gate)]
        total = reference.gate_residual(*leaves, self.residual.to(dtype))
        return [total.detach(), *torch.autograd.grad(total, leaves, self.dsum.to(dtype))]


def _cases() -> list[Case]:
    cases = []
    for dtype, gate_dtype, channels in itertools.product(DTYPES, DTYPES[1:], (32, 23)):
        per_token = gate_dtype == torch.float16
        make = functools.partial(GateResidual, channels, dtype, gate_dtype, per_token)
        names = (str(d).removeprefix("torch.") for d in (dtype, gate_dtype))
        cases.append(Case("-".join(("gate_residual", *names, str(channels))), make))
    return cases


CASES = _cases()
