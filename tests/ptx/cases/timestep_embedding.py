"""timestep_embedding: three dtypes, both orders, even and odd widths."""

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


class TimestepEmbedding:
    def __init__(self, channels: int, dtype: torch.dtype, flip_sin_to_cos: bool) -> None:
        self.dtype = dtype
        self.channels = channels
        self.flip_sin_to_cos = flip_sin_to_cos
        self.timestep = 1000 * torch.rand(9, dtype=torch.float64)

    def run(self, ops: Any) -> Sequence[Tensor]:
        settings = (self.channels, self.flip_sin_to_cos, 1.0, 1.0, 10000.0, self.dtype)
        return [ops.timestep_embedding(self.timestep, *settings)]

    def define(self, dtype: torch.dtype) -> Sequence[Tensor]:
        # Eager in 16 bits has float32 timesteps, too: nobody rounds them further.
        timestep = self.timestep if dtype == torch.float64 else self.timestep.float()
        settings = {"flip_sin_to_cos": self.flip_sin_to_cos, "dtype": dtype}
        return [reference.timestep_embedding(timestep, self.channels, **settings)]


def _cases() -> list[Case]:
    cases = []
    for dtype, (channels, flip_sin_to_cos) in itertools.product(DTYPES, ((64, False), (33, True))):
        make = functools.partial(TimestepEmbedding, channels, dtype, flip_sin_to_cos)
        name = f"timestep_embedding-{str(dtype).removeprefix('torch.')}-{channels}"
        cases.append(Case(name, make))
    return cases


CASES = _cases()
