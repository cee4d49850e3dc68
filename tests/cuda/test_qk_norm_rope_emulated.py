"""Every path of the CUDA qk_norm_rope in the emulator, under the race detector and several schedules.

A head is cut into units of two 16-byte vectors, or goes element by element where it cannot be cut so. On one
multiprocessor a block of the backward pass takes several rounds of work.
"""

from __future__ import annotations

from typing import Any

import emulation
import pytest
import torch
from torch import Tensor

from fastdiff import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# (head_dim, rotary_dim): units, the widest head of float32 units, partial rotation; elements.
UNITS = ((64, 64), (128, 128), (80, 48), (256, 256))
ELEMENTS = ((40, 20), (33, 32), (1056, 1056))
RACES = {"read-after-write", "write-after-read", "write-after-write"}


def make(head_dim: int, rotary_dim: int, dtype: torch.dtype, tokens: int = 37) -> tuple[list[Tensor], list[Tensor]]:
    """(operands, gradients of the outputs): 2 samples, 11 query heads and 3 key heads, 2 tokens of text."""
    torch.manual_seed(0)
    query, dquery = torch.randn(2, 2, tokens, 11, head_dim).to(dtype)
    key, dkey = torch.randn(2, 2, tokens, 3, head_dim).to(dtype)
    weights = torch.randn(2, head_dim).to(dtype)
    tables = torch.randn(2, tokens - 2, rotary_dim)
    return [query, key, *weights, *tables], [dquery, dkey]


def run(emulator: Any, operands: list[Tensor], seeds: list[Tensor], interleaved: bool) -> tuple[Tensor, ...]:
    settings = (2, 1e-6, interleaved)
    outputs = emulator.ops.qk_norm_rope(*operands, *settings)
    return *outputs, *emulator.ops.qk_norm_rope_backward(*seeds, *operands, *settings)


def define(operands: list[Tensor], seeds: list[Tensor], interleaved: bool) -> tuple[Tensor, ...]:
    operands = [operand.double() for operand in operands]
    leaves = [operand.requires_grad_() for operand in operands[:4]]
    outputs = reference.qk_norm_rope(*leaves, *operands[4:], text_tokens=2, interleaved=interleaved)
    return *outputs, *torch.autograd.grad(outputs, leaves, [seed.double() for seed in seeds])


def is_right(results: tuple[Tensor, ...], expected: tuple[Tensor, ...], dtype: torch.dtype) -> bool:
    """Relative to the largest value: gradients of weights are long sums, in which much cancels."""
    tolerance = 8 * torch.finfo(dtype).eps
    return all(
        bool((result.double() - want).abs().max() <= tolerance * (1 + want.abs().max()))
        for result, want in zip(results, expected, strict=True)
    )


def unaligned(tensor: Tensor) -> Tensor:
    storage = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    return storage[1:].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("schedule", emulation.SCHEDULES)
@pytest.mark.parametrize("interleaved", (True, False), ids=("interleaved", "half_split"))
@pytest.mark.parametrize("shape", UNITS + ELEMENTS, ids=str)
def test_every_path(shape: tuple[int, int], interleaved: bool, schedule: str) -> None:
    for dtype in DTYPES[:1] if shape[0] > 256 else DTYPES:
        operands, seeds = make(*shape, dtype, tokens=9 if shape[0] > 128 else 37)
        emulator = emulation.load()
        with emulator.session(schedule=schedule, sm_count=1) as session:
            results = run(emulator, operands, seeds, interleaved)
        assert session.reports == [], "\n".join(map(str, session.reports))
        assert session.launches == 3, "forward, backward, and the merge of the weights' gradients"
        assert is_right(results, define(operands, seeds, interleaved), dtype)


@pytest.mark.parametrize("which", range(8))
@pytest.mark.parametrize("interleaved", (True, False), ids=("interleaved", "half_split"))
def test_alignment_does_not_change_the_bits(interleaved: bool, which: int) -> None:
    emulator = emulation.load()
    for dtype in DTYPES:
        operands, seeds = make(64, 32, dtype, tokens=5)
        with emulator.session() as session:
            aligned = run(emulator, operands, seeds, interleaved)
            tensors = [*operands, *seeds]
            tensors[which] = unaligned(tensors[which])
            assert tensors[which].data_ptr() % 16
            misaligned = run(emulator, tensors[:6], tensors[6:], interleaved)
        assert session.reports == []
        assert all(map(torch.equal, aligned, misaligned))


def test_same_bits_in_every_run_and_schedule() -> None:
    emulator = emulation.load()
    operands, seeds = make(64, 64, torch.bfloat16)
    results = []
    for schedule in (*emulation.SCHEDULES, "random"):
        with emulator.session(schedule=schedule, seed=len(results)):
            results.append(run(emulator, operands, seeds, True))
    assert all(all(map(torch.equal, result, results[0])) for result in results)


@pytest.mark.parametrize("schedule", emulation.SCHEDULES)
@pytest.mark.parametrize("shape", (UNITS[0], ELEMENTS[0]), ids=("units", "elements"))
def test_missing_barrier_is_a_race_under_any_schedule(shape: tuple[int, int], schedule: str) -> None:
    """Before the sums of a block's teams are added up."""
    emulator = emulation.load("MissingBarrierBeforeRead")
    operands, seeds = make(*shape, torch.float32)
    with emulator.session(schedule=schedule) as session:
        run(emulator, operands, seeds, True)
    assert {report.fault for report in session.reports} & (RACES | {"uninitialised-read"})
