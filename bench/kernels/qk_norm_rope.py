"""Benchmark of qk_norm_rope: the queries and keys of FLUX and of SD3, text and image in one sequence.

A shape is (batch, tokens, heads, head_dim).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bench.kernels.case import DTYPES, Case, Op, Problem
from fastdiff import reference

SHAPES = {
    "joint": ((1, 4608, 24, 128), (1, 1536, 24, 128), (2, 1178, 24, 64)),
}
FORWARD_UNITS = 4  # read and write the queries and the keys
BACKWARD_UNITS = 6  # read both and their gradients, write the gradients
OUTPUTS = {"forward": ("query", "key"), "backward": ("dquery", "dkey", "dquery_weight", "dkey_weight")}


def check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 4 or shape[3] % 2:
        raise ValueError(f"qk_norm_rope is benchmarked on (batch, tokens, heads, an even head_dim), got {shape}")


def build(case: Case, implementations: Mapping[str, Callable[..., tuple[Tensor, Tensor]]], device: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    dtype = DTYPES[case.dtype]
    tokens, head_dim = case.shape[1], case.shape[3]

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device, dtype)

    differentiable = [randn(*case.shape), randn(*case.shape), 1 + randn(head_dim) / 8, 1 + randn(head_dim) / 8]
    gradients = [randn(*case.shape), randn(*case.shape)]
    angles = torch.rand(tokens, head_dim // 2, generator=generator).to(device) * 8
    tables = [table.repeat_interleave(2, dim=-1) for table in (angles.cos(), angles.sin())]
    query = differentiable[0]
    target = torch.empty_like(query)

    def make(
        function: Callable[..., tuple[Tensor, Tensor]], operands: list[Tensor]
    ) -> Callable[[], tuple[Tensor, ...]]:
        constants = [table.to(torch.promote_types(operands[0].dtype, torch.float32)) for table in tables]
        if case.direction == "forward":
            return lambda: function(*operands, *constants)
        # The backward pass alone: the forward pass runs here, once, and its graph is kept.
        leaves = [operand.detach().requires_grad_() for operand in operands]
        outputs = function(*leaves, *constants)
        seeds = [gradient.to(output) for gradient, output in zip(gradients, outputs, strict=True)]
        return lambda: torch.autograd.grad(outputs, leaves, seeds, retain_graph=True)

    return Problem(
        contenders={name: make(function, differentiable) for name, function in implementations.items()},
        copy=lambda: target.copy_(query),
        expected=lambda: make(reference.qk_norm_rope, [operand.double() for operand in differentiable])(),
        output_names=OUTPUTS[case.direction],
        unit_bytes=query.numel() * query.element_size(),
        floor_units=BACKWARD_UNITS if case.direction == "backward" else FORWARD_UNITS,
    )


# One layout: (batch, tokens, heads, head_dim), as a projection leaves it.
OP = Op(shapes=SHAPES, check_shape=check_shape, build=build, layouts=("NCHW",))
