"""philox: bits, and uniform and normal numbers of three types; vectors and a rest."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from ptx.case import Case
from torch import Tensor

from fastdiff import reference

SHAPES = ((1, 45), (2, 48))  # vectors and a rest; two samples
OFFSET = 2**35 + 1


class Philox:
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.seeds = torch.tensor([7, -(2**40)])

    def run(self, ops: Any) -> Sequence[Tensor]:
        kinds = (0,) if self.dtype == torch.int64 else (1, 2)
        return [
            ops.philox(shape, self.seeds[: shape[0]], OFFSET, kind, self.dtype) for shape in SHAPES for kind in kinds
        ]

    def define(self, dtype: torch.dtype) -> Sequence[Tensor]:
        results = []
        for shape in SHAPES:
            seeds = self.seeds[: shape[0]]
            if self.dtype == torch.int64:
                results.append(reference.philox_bits(shape, seeds, offset=OFFSET))
                continue
            for function in (reference.philox_uniform, reference.philox_normal):
                results.append(function(shape, seeds, offset=OFFSET, dtype=dtype))
        return results


CASES = [
    Case(f"philox-{str(dtype).removeprefix('torch.')}", functools.partial(Philox, dtype))
    for dtype in (torch.int64, torch.float32, torch.bfloat16, torch.float16)
]
