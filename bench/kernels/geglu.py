"""Benchmark of geglu: the feed-forward layers of SD1.5's and SDXL's transformer blocks.

A shape is (batch, tokens, 2 * features), that of the input; U is the bytes of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bench.kernels.case import DTYPES, Case, Op, Problem
from fastdiff import reference

SHAPES = {"feed-forward": ((2, 4096, 5120), (2, 4096, 2560), (2, 1024, 5120))}
FORWARD_UNITS = 3  # read both halves, write their product
BACKWARD_UNITS = 5  # read both halves and the gradient, write those of both halves
OUTPUTS = {"forward": ("y",), "backward": ("dx",)}


def check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) < 2 or shape[-1] % 2:
        raise ValueError(f"geglu is benchmarked on (..., an even number of channels), got {shape}")


def build(case: Case, implementations: Mapping[str, Callable[..., Tensor]], device: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(case.shape, generator=generator).to(device, DTYPES[case.dtype])
    gradient = torch.randn((*case.shape[:-1], case.shape[-1] // 2), generator=generator).to(x)
    target = torch.empty_like(gradient)

    def make(function: Callable[..., Tensor], x: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        if case.direction == "forward":
            return lambda: (function(x),)
        # The backward pass alone: the forward pass runs here, once, and its graph is kept.
        leaf = x.detach().requires_grad_()
        output = function(leaf)
        return lambda: torch.autograd.grad(output, leaf, gradient.to(output), retain_graph=True)

    return Problem(
        contenders={name: make(function, x) for name, function in implementations.items()},
        copy=lambda: target.copy_(gradient),
        expected=lambda: make(reference.geglu, x.double())(),
        output_names=OUTPUTS[case.direction],
        unit_bytes=gradient.numel() * gradient.element_size(),
        floor_units=BACKWARD_UNITS if case.direction == "backward" else FORWARD_UNITS,
    )


# One layout: (batch, tokens, channels), as a projection leaves it.
OP = Op(shapes=SHAPES, check_shape=check_shape, build=build, layouts=("NCHW",))
