"""Every kernel of qk_norm_rope: three dtypes, both kinds of pairs, aligned or not, in units and in elements."""

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
# Weights have code of their own for each dtype: both kinds of 16 bits are in every case.
WEIGHT_DTYPES = (torch.float16, torch.bfloat16)
TEXT_TOKENS = 1


class QkNormRope:
    """2 samples of 5 tokens, one of them text; 3 query heads and 2 key heads."""

    def __init__(
        self, head_dim: int, rotary_dim: int, dtype: torch.dtype, interleaved: bool, aligned: bool = True
    ) -> None:
        self.dtype = dtype
        self.interleaved = interleaved
        self.query, self.dquery = (_tensor((2, 5, 3, head_dim), dtype, aligned) for _ in range(2))
        self.key, self.dkey = (_tensor((2, 5, 2, head_dim), dtype, aligned) for _ in range(2))
        self.weights = [torch.randn(head_dim).to(weight_dtype) for weight_dtype in WEIGHT_DTYPES]
        self.tables = [torch.randn(5 - TEXT_TOKENS, rotary_dim) for _ in range(2)]

    def run(self, ops: Any) -> Sequence[Tensor]:
        operands = (self.query, self.key, *self.weights, *self.tables)
        settings = (TEXT_TOKENS, 1e-6, self.interleaved)
        outputs = ops.qk_norm_rope(*operands, *settings)
        return [*outputs, *ops.qk_norm_rope_backward(self.dquery, self.dkey, *operands, *settings)]

    def define(self, dtype: torch.dtype) -> Sequence[Tensor]:
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in (self.query, self.key, *self.weights)]
        tables = [table.to(dtype) for table in self.tables]
        outputs = reference.qk_norm_rope(
            *leaves, *tables, interleaved=self.interleaved, text_tokens=TEXT_TOKENS, eps=1e-6
        )
        gradients = torch.autograd.grad(outputs, leaves, [self.dquery.to(dtype), self.dkey.to(dtype)])
        return [*(output.detach() for output in outputs), *gradients]


def _tensor(shape: Sequence[int], dtype: torch.dtype, aligned: bool) -> Tensor:
    values = torch.randn(shape).to(dtype)
    storage = torch.zeros(values.numel() + 16, dtype=dtype)
    first = -storage.data_ptr() % 16 // storage.element_size() + (0 if aligned else 1)
    return storage[first : first + values.numel()].view(shape).copy_(values)


def _cases() -> list[Case]:
    cases = []
    for dtype, interleaved, aligned in itertools.product(DTYPES, (True, False), (True, False)):
        names = (
            str(dtype).removeprefix("torch."),
            "interleaved" if interleaved else "half_split",
            "aligned" if aligned else "unaligned",
        )
        make = functools.partial(QkNormRope, 64, 32, dtype, interleaved, aligned)
        cases.append(Case("-".join(("qk_norm_rope", *names)), make, sm_count=1))
    for dtype in DTYPES:
        make = functools.partial(QkNormRope, 33, 10, dtype, True)
        cases.append(Case(f"qk_norm_rope-{str(dtype).removeprefix('torch.')}-elements", make, sm_count=1))
    return cases


CASES = _cases()
