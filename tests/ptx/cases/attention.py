"""Every kernel of attention: three dtypes, narrow heads, odd and wide ones and those in parts, aligned or not."""

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
# 2 samples, 2 query heads and 1 key head: (query tokens, key tokens, head_dim).
SHAPES = {
    "resident": (40, 37, 40),
    "resident_odd": (18, 21, 33),
    "resident_wide": (20, 21, 72),
    "split_queries": (260, 18, 40),
    "streaming": (20, 165, 40),
    "streaming_odd": (5, 165, 33),
    "streaming_wide": (20, 165, 72),
    "streaming_parts": (18, 70, 136),
}


class Attention:
    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, aligned: bool) -> None:
        queries, keys, head_dim = shape
        self.dtype = dtype
        self.query, self.doutput = (_tensor((2, queries, 2, head_dim), dtype, aligned) for _ in range(2))
        self.key, self.value = (_tensor((2, keys, 1, head_dim), dtype, aligned) for _ in range(2))
        self.lengths = torch.tensor([keys, 5], dtype=torch.int32)

    def run(self, ops: Any) -> Sequence[Tensor]:
        operands = (self.query, self.key, self.value)
        scale = self.query.shape[-1] ** -0.5
        output, logsumexp = ops.attention(*operands, self.lengths, scale)
        arguments = (self.doutput, *operands, output, logsumexp, self.lengths, scale)
        return [output, *ops.attention_backward(*arguments)]

    def define(self, dtype: torch.dtype) -> Sequence[Tensor]:
        leaves = [operand.to(dtype).requires_grad_() for operand in (self.query, self.key, self.value)]
        output = reference.attention(*leaves, kv_lengths=self.lengths)
        return [output.detach(), *torch.autograd.grad(output, leaves, self.doutput.to(dtype))]


def _tensor(shape: Sequence[int], dtype: torch.dtype, aligned: bool) -> Tensor:
    values = torch.randn(shape).to(dtype)
    storage = torch.zeros(values.numel() + 16, dtype=dtype)
    first = -storage.data_ptr() % 16 // storage.element_size() + (0 if aligned else 1)
    return storage[first : first + values.numel()].view(shape).copy_(values)


def _cases() -> list[Case]:
    cases = []
    for dtype, path in itertools.product(DTYPES, SHAPES):
        make = functools.partial(Attention, SHAPES[path], dtype, aligned=True)
        name = f"attention-{str(dtype).removeprefix('torch.')}-{path}"
        # One multiprocessor: a warp takes several blocks of queries, and loads the next while it works.
        cases.append(Case(name, make, sm_count=1))
    make = functools.partial(Attention, SHAPES["resident"], torch.bfloat16, aligned=False)
    cases.append(Case("attention-bfloat16-unaligned", make))
    return cases


CASES = _cases()
