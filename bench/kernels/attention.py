"""Benchmark of attention: the cross-attention of a U-Net on 77 text tokens, and self-attention.

A shape is (batch, heads, query tokens, head_dim, key tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bench.kernels.case import DTYPES, Case, Op, Problem
from fastdiff import reference

SHAPES = {
    "cross": ((2, 8, 4096, 40, 77), (2, 10, 4096, 64, 77), (2, 8, 1024, 80, 77)),
    "self": ((1, 24, 1024, 64, 1178), (2, 8, 4096, 40, 4096)),
}
FORWARD_UNITS = 2  # read the queries, write the output; the keys and values of one head stay in a cache
BACKWARD_UNITS = 4  # read the queries, the output and its gradient, write the gradient of the queries


def check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 5:
        raise ValueError(f"attention is benchmarked on (batch, heads, Lq, head_dim, Lkv), got {len(shape)} sizes")


def build(case: Case, implementations: Mapping[str, Callable[..., Tensor]], device: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    batch, heads, queries, head_dim, keys = case.shape
    sizes = ((batch, queries, heads, head_dim), *((batch, keys, heads, head_dim),) * 2)
    operands = tuple(torch.randn(size, generator=generator).to(device, DTYPES[case.dtype]) for size in sizes)
    query = operands[0]
    target = torch.empty_like(query)
    backward = case.direction == "backward"
    doutput = torch.randn(query.shape, generator=generator).to(query)

    def make(function: Callable[..., Tensor], operands: tuple[Tensor, ...]) -> Callable[[], tuple[Tensor, ...]]:
        if not backward:
            return lambda: (function(*operands),)
        # The backward pass alone: the forward pass runs here, once, and its graph is kept.
        leaves = tuple(operand.detach().requires_grad_() for operand in operands)
        output = function(*leaves)
        return lambda: torch.autograd.grad(output, leaves, doutput.to(output), retain_graph=True)

    return Problem(
        contenders={name: make(function, operands) for name, function in implementations.items()},
        copy=lambda: target.copy_(query),
        expected=lambda: make(reference.attention, tuple(operand.double() for operand in operands))(),
        output_names=("dquery", "dkey", "dvalue") if backward else ("output",),
        unit_bytes=query.numel() * query.element_size(),
        floor_units=BACKWARD_UNITS if backward else FORWARD_UNITS,
        # Two products forward; five backward, where the scores are worked out again.
        flops=2 * (5 if backward else 2) * batch * heads * queries * keys * head_dim,
    )


# One layout: (batch, tokens, heads, head_dim), as a projection leaves it.
OP = Op(shapes=SHAPES, check_shape=check_shape, build=build, layouts=("NCHW",))
