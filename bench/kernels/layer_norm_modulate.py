"""Benchmark of layer_norm_modulate: the seam between two branches of a DiT, SD3 or FLUX block.

A shape is (batch, tokens, channels).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bench.kernels.case import DTYPES, Case, Op, Problem
from fastdiff import reference

SHAPES = {"tokens": ((1, 4096, 3072), (2, 1024, 1536), (8, 256, 1152))}
FORWARD_UNITS = 4  # read x and the residual, write their sum and y
BACKWARD_UNITS = 6  # read x, the sum and two gradients, write those of x and of the residual
OUTPUTS = {"forward": ("y", "total"), "backward": ("dx", "dscale", "dshift", "dgate", "dresidual")}


def check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 3:
        raise ValueError(f"layer_norm_modulate is benchmarked on (batch, tokens, channels), got {shape}")


def build(case: Case, implementations: Mapping[str, Callable[..., tuple[Tensor, Tensor]]], device: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    batch, _, channels = case.shape

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device, DTYPES[case.dtype])

    x, residual = randn(*case.shape), randn(*case.shape)
    scale, shift, gate = (randn(batch, channels) for _ in range(3))
    gradients = [randn(*case.shape), randn(*case.shape)]
    target = torch.empty_like(x)

    def make(
        function: Callable[..., tuple[Tensor, Tensor]], operands: list[Tensor]
    ) -> Callable[[], tuple[Tensor, ...]]:
        if case.direction == "forward":
            return lambda: _call(function, operands)
        # The backward pass alone: the forward pass runs here, once, and its graph is kept.
        leaves = [operand.detach().requires_grad_() for operand in operands]
        outputs = _call(function, leaves)
        seeds = [gradient.to(output) for gradient, output in zip(gradients, outputs, strict=True)]
        return lambda: torch.autograd.grad(outputs, leaves, seeds, retain_graph=True)

    operands = [x, scale, shift, gate, residual]
    return Problem(
        contenders={name: make(function, operands) for name, function in implementations.items()},
        copy=lambda: target.copy_(x),
        expected=lambda: make(reference.layer_norm_modulate, [operand.double() for operand in operands])(),
        output_names=OUTPUTS[case.direction],
        unit_bytes=x.numel() * x.element_size(),
        floor_units=BACKWARD_UNITS if case.direction == "backward" else FORWARD_UNITS,
    )


def _call(function: Callable[..., tuple[Tensor, Tensor]], operands: list[Tensor]) -> tuple[Tensor, Tensor]:
    x, scale, shift, gate, residual = operands
    return function(x, scale, shift, gate=gate, residual=residual)


# One layout: (batch, tokens, channels), as a projection leaves it.
OP = Op(shapes=SHAPES, check_shape=check_shape, build=build, layouts=("NCHW",))
