"""Benchmark of timestep_embedding. A shape is (batch, channels): it is small, and what counts is the calls it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bench.kernels.case import DTYPES, Case, Op, Problem
from fastdiff import reference

SHAPES = {"timestep": ((2, 320), (64, 256))}


def check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 2:
        raise ValueError(f"timestep_embedding is benchmarked on (batch, channels), got {len(shape)} sizes")


def build(case: Case, implementations: Mapping[str, Callable[..., Tensor]], device: str) -> Problem:
    batch, channels = case.shape
    timestep = (torch.rand(batch, generator=torch.Generator().manual_seed(0)) * 1000).to(device)
    dtype = DTYPES[case.dtype]
    source, target = torch.zeros(2, *case.shape, dtype=dtype, device=device)

    def make(function: Callable[..., Tensor], timestep: Tensor, dtype: torch.dtype) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: (function(timestep, channels, flip_sin_to_cos=True, downscale_freq_shift=0.0, dtype=dtype),)

    return Problem(
        contenders={name: make(function, timestep, dtype) for name, function in implementations.items()},
        copy=lambda: target.copy_(source),
        expected=make(reference.timestep_embedding, timestep.double(), torch.float64),
        output_names=("embedding",),
        unit_bytes=target.numel() * target.element_size(),
        floor_units=1,
    )


# Forward and one layout only: nothing asks for the gradient of a timestep in training or sampling.
OP = Op(shapes=SHAPES, check_shape=check_shape, build=build, directions=("forward",), layouts=("NCHW",))
