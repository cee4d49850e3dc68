"""Benchmark of gate_residual: the end of a DiT, SD3 or FLUX block. A shape is (batch, tokens, channels)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bench.kernels.case import DTYPES, Case, Op, Problem
from fastdiff import reference

SHAPES = {"tokens": ((1, 4096, 3072), (2, 1024, 1536))}
FORWARD_UNITS = 3  # read x and the residual, write their sum
BACKWARD_UNITS = 3  # read x and the gradient, write that of x
OUTPUTS = {"forward": ("total",), "backward": ("dx", "dgate", "dresidual")}


def check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 3:
        raise ValueError(f"gate_residual is benchmarked on (batch, tokens, channels), got {shape}")


def build(case: Case, implementations: Mapping[str, Callable[..., Tensor]], device: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    batch, _, channels = case.shape

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device, DTYPES[case.dtype])

    operands = [randn(*case.shape), randn(batch, channels), randn(*case.shape)]
    gradient = randn(*case.shape)
    target = torch.empty_like(gradient)

    def make(function: Callable[..., Tensor], operands: list[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        if case.direction == "forward":
            return lambda: (function(*operands),)
        # The backward pass alone: the forward pass runs here, once, and its graph is kept.
        leaves = [operand.detach().requires_grad_() for operand in operands]
        output = function(*leaves)
        return lambda: torch.autograd.grad(output, leaves, gradient.to(output), retain_graph=True)

    return Problem(
        contenders={name: make(function, operands) for name, function in implementations.items()},
        copy=lambda: target.copy_(gradient),
        expected=lambda: make(reference.gate_residual, [operand.double() for operand in operands])(),
        output_names=OUTPUTS[case.direction],
        unit_bytes=gradient.numel() * gradient.element_size(),
        floor_units=BACKWARD_UNITS if case.direction == "backward" else FORWARD_UNITS,
    )


# One layout: (batch, tokens, channels), as a projection leaves it.
OP = Op(shapes=SHAPES, check_shape=check_shape, build=build, layouts=("NCHW",))
