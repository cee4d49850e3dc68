"""The CUDA geglu and gate_residual in the emulator: bounds, alignment and order."""

from __future__ import annotations

from typing import Any

import emulation
import pytest
import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unaligned(tensor: Tensor) -> Tensor:
    storage = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    copy = storage[1:].view(tensor.shape).copy_(tensor)
    assert copy.data_ptr() % 16
    return copy


def geglu(ops: Any, x: Tensor, dy: Tensor) -> list[Tensor]:
    return [result for tanh in (False, True) for result in (ops.geglu(x, tanh), ops.geglu_backward(dy, x, tanh))]


def gate_residual(ops: Any, x: Tensor, gate: Tensor, residual: Tensor, dsum: Tensor) -> list[Tensor]:
    return [ops.gate_residual(x, gate, residual), *ops.gate_residual_backward(dsum, x, gate, True)]


def operands_of(op: Any, dtype: torch.dtype, channels: int) -> list[Tensor]:
    """More than one block, and of tokens more than one block's sums."""
    torch.manual_seed(0)
    if op is geglu:
        return [torch.randn(43, 2 * channels).to(dtype), torch.randn(43, channels).to(dtype)]
    sizes = ((2, 43, channels), (2, 1, channels), (2, 43, channels), (2, 43, channels))
    return [torch.randn(size).to(dtype) for size in sizes]


@pytest.mark.parametrize("op", (geglu, gate_residual))
def test_bits_depend_neither_on_alignment_nor_on_the_schedule(op: Any) -> None:
    """48 channels are whole vectors, 37 are not."""
    emulator = emulation.load()
    for dtype in DTYPES:
        for channels in (48, 37):
            operands = operands_of(op, dtype, channels)
            variants = [[unaligned(o) if i == which else o for i, o in enumerate(operands)] for which in range(2)]
            results = []
            for schedule, variant in zip(emulation.SCHEDULES, [operands, *variants], strict=True):
                with emulator.session(schedule=schedule) as session:
                    results.append(op(emulator.ops, *variant))
                assert session.reports == [], "\n".join(map(str, session.reports))
            assert all(all(map(torch.equal, result, results[0])) for result in results)


def test_wrong_merge_of_the_gradient_of_a_gate_gives_wrong_results() -> None:
    operands = operands_of(gate_residual, torch.float32, 48)
    results = []
    for mutation in (None, "WrongSplitMerge"):
        emulator = emulation.load(mutation)
        with emulator.session():
            results.append(gate_residual(emulator.ops, *operands)[2])
    exact = (operands[0].double() * operands[3].double()).sum(1, keepdim=True)
    errors = [(result - exact).abs().max() for result in results]
    assert errors[0] < 1e-4 < 0.1 < errors[1]
