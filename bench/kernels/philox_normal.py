"""Benchmark of philox_normal: the noise of latents and images. U is the bytes of the output."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bench.kernels.case import DTYPES, Case, Op, Problem
from fastdiff import reference

SHAPES = {"latent": ((1, 4, 64, 64), (4, 4, 128, 128)), "pixels": ((64, 3, 64, 64),)}
UNITS = 1  # nothing is read


def check_shape(shape: tuple[int, ...]) -> None:
    """Any shape with a batch will do."""


def build(case: Case, implementations: Mapping[str, Callable[..., Tensor]], device: str) -> Problem:
    seeds = torch.arange(case.shape[0], device=device)
    dtype = DTYPES[case.dtype]
    source = torch.zeros(case.shape, device=device, dtype=dtype)
    target = torch.empty_like(source)

    def make(function: Callable[..., Tensor], dtype: torch.dtype) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: (function(case.shape, seeds, offset=1, dtype=dtype),)

    return Problem(
        contenders={name: make(function, dtype) for name, function in implementations.items()},
        copy=lambda: target.copy_(source),
        expected=make(reference.philox_normal, torch.float64),
        output_names=("noise",),
        unit_bytes=source.numel() * source.element_size(),
        floor_units=UNITS,
    )


# Without a backward pass, and always contiguous.
OP = Op(shapes=SHAPES, check_shape=check_shape, build=build, directions=("forward",), layouts=("NCHW",))
