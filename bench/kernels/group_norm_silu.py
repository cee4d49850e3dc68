"""Benchmark of group_norm_silu with a time bias, the head of a U-Net residual block and of a VAE's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from bench.kernels.case import DTYPES, LAYOUTS, Case, Op, Problem
from fastdiff import reference

GROUPS = 32
SHAPES = {
    "unet": ((2, 320, 64, 64), (2, 640, 32, 32), (2, 1280, 16, 16)),
    "vae": ((1, 128, 512, 512),),
}
FORWARD_UNITS = 3  # read x for the statistics, read it again, write y
BACKWARD_UNITS = 5  # read x and dy for the sums, read both again, write dx


def check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 4:
        raise ValueError(f"group_norm_silu is benchmarked on (N, C, H, W), got {len(shape)} sizes")
    if shape[1] % GROUPS:
        raise ValueError(f"the channels must be a multiple of {GROUPS} (the groups), got {shape[1]}")


def build(case: Case, implementations: Mapping[str, Callable[..., Tensor]], device: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    batch, channels = case.shape[:2]
    sizes = (case.shape, (channels,), (channels,), (batch, channels))
    x, weight, bias, time_bias = (torch.randn(size, generator=generator) for size in sizes)
    x = x.contiguous(memory_format=LAYOUTS[case.layout])
    operands = tuple(t.to(device, DTYPES[case.dtype]) for t in (x, weight, bias, time_bias))
    x = operands[0]
    target = torch.empty_like(x)
    backward = case.direction == "backward"
    dy = torch.randn(case.shape, generator=generator).to(x).contiguous(memory_format=LAYOUTS[case.layout])
    make = partial(_gradients, dy=dy) if backward else _outputs
    return Problem(
        contenders={name: make(function, operands) for name, function in implementations.items()},
        copy=lambda: target.copy_(x),
        # Built when called, and dropped after, since it is the largest thing in memory.
        expected=lambda: (partial(_gradients, dy=dy.double()) if backward else _outputs)(
            reference.group_norm_silu, tuple(t.double() for t in operands)
        )(),
        output_names=("dx", "dweight", "dbias", "dtime_bias") if backward else ("y",),
        unit_bytes=x.numel() * x.element_size(),
        floor_units=BACKWARD_UNITS if backward else FORWARD_UNITS,
    )


def _outputs(function: Callable[..., Tensor], operands: tuple[Tensor, ...]) -> Callable[[], tuple[Tensor, ...]]:
    x, weight, bias, time_bias = operands
    return lambda: (function(x, GROUPS, weight, bias, time_bias=time_bias),)


def _gradients(
    function: Callable[..., Tensor], operands: tuple[Tensor, ...], *, dy: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    """The backward pass alone: the forward pass runs here, once, and its graph is kept."""
    leaves = tuple(operand.detach().requires_grad_() for operand in operands)
    x, weight, bias, time_bias = leaves
    y = function(x, GROUPS, weight, bias, time_bias=time_bias)
    return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)


OP = Op(shapes=SHAPES, check_shape=check_shape, build=build)
