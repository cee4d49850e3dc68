"""philox: bits, and uniform and normal numbers of three types; vectors and a rest."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from ptx.case import Case
from torch import Tensor

from fastdiff import reference

SHAPE = (2, 45)
OFFSET = 2**35 + 1


class Philox:
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.seeds = torch.tensor([7, -(2**40)])

    def run(self, ops: Any) -> Sequence[Tensor]:
        if self.dtype == torch.int64:
            return [ops.philox(SHAPE, self.seeds, OFFSET, 0, torch.int64)]
        return [ops.philox(SHAPE, self.seeds, OFFSET, kind, self.dtype) for kind in (1, 2)]

    def define(self, dtype: torch.dtype) -> Sequence[Tensor]:
        if self.dtype == torch.int64:
            return [reference.philox_bits(SHAPE, self.seeds, offset=OFFSET)]
        functions = (reference.philox_uniform, reference.philox_normal)
        return [function(SHAPE, self.seeds, offset=OFFSET, dtype=dtype) for function in functions]


CASES = [
    Case(f"philox-{str(dtype).removeprefix('torch.')}", functools.partial(Philox, dtype))
    for dtype in (torch.int64, torch.float32, torch.bfloat16, torch.float16)
]
