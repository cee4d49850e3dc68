"""The CUDA layer_norm_modulate in the emulator: rows of one warp and of several, in registers and read again."""

from __future__ import annotations

from typing import Any

import emulation
import pytest
import torch
from torch import Tensor

from fastdiff import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RACES = {"read-after-write", "write-after-read", "write-after-write"}
# (batch, tokens, channels): four rows a block, several warps a row, a partial vector at the end; more than one block of
# tokens. Float32 rows above 8192 channels and others above 16384 are read again.
SHAPES = {"one_warp": (2, 35, 40), "several_warps": (1, 5, 2050), "partial": (3, 4, 37), "long": (1, 2, 16400)}
NAMES = ("x", "scale", "shift", "gate", "residual", "weight", "bias")


def make(shape: tuple[int, int, int], dtype: torch.dtype, per_token: bool) -> tuple[list[Tensor], list[Tensor]]:
    """(operands in the order of NAMES; gradients of y and of the sum)."""
    torch.manual_seed(0)
    batch, tokens, channels = shape
    modulation = shape if per_token else (batch, 1, channels)
    sizes = (shape, modulation, modulation, modulation, shape, (channels,), (channels,))
    operands = [torch.randn(size).to(dtype) for size in sizes]
    return operands, [torch.randn(shape).to(dtype) for _ in range(2)]


def run(emulator: Any, operands: list[Tensor], outer: list[Tensor], rms: bool) -> list[Tensor]:
    """y, the sum, and the gradients of residual, x, gate, scale, shift, weight and bias."""
    x, scale, shift, gate, residual, weight, bias = operands
    y, total, mean, rstd = emulator.ops.layer_norm_modulate(x, scale, shift, gate, residual, weight, bias, 1e-6, rms)
    gradients = emulator.ops.layer_norm_modulate_backward(
        *outer, x, scale, gate, total, weight, bias, mean, rstd, rms, [True] * 5
    )
    return [y, total, *gradients]


def define(operands: list[Tensor], outer: list[Tensor], rms: bool) -> list[Tensor]:
    leaves = dict(zip(NAMES, (operand.double().requires_grad_() for operand in operands), strict=True))
    outputs = reference.layer_norm_modulate(**leaves, eps=1e-6, norm="rms" if rms else "layer")
    order = ("residual", "x", "gate", "scale", "shift", "weight", "bias")
    return [*outputs, *torch.autograd.grad(outputs, [leaves[n] for n in order], [g.double() for g in outer])]


def is_right(results: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> bool:
    """Relative to the largest value: gradients of what is shared are long sums."""
    tolerance = 8 * torch.finfo(dtype).eps
    return all(
        bool((result.double() - want).abs().max() <= tolerance * (1 + want.abs().max()))
        for result, want in zip(results, expected, strict=True)
    )


@pytest.mark.parametrize("schedule", emulation.SCHEDULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_path(shape: str, schedule: str) -> None:
    emulator = emulation.load()
    for dtype in DTYPES:
        for per_token, rms in ((False, False), (True, True)):
            operands, outer = make(SHAPES[shape], dtype, per_token)
            with emulator.session(schedule=schedule) as session:
                results = run(emulator, operands, outer, rms)
            assert session.reports == [], "\n".join(map(str, session.reports))
            assert session.launches == 5, "forward, backward, the sums, their merge, and the parameters' gradients"
            assert is_right(results, define(operands, outer, rms), dtype)


@pytest.mark.parametrize("which", range(9))
def test_alignment_does_not_change_the_bits(which: int) -> None:
    emulator = emulation.load()
    for dtype in DTYPES:
        operands, outer = make(SHAPES["one_warp"], dtype, per_token=False)
        tensors = [*operands, *outer]
        with emulator.session() as session:
            aligned = run(emulator, tensors[:7], tensors[7:], False)
            storage = torch.empty(tensors[which].numel() + 1, dtype=dtype)
            tensors[which] = storage[1:].view(tensors[which].shape).copy_(tensors[which])
            assert tensors[which].data_ptr() % 16
            misaligned = run(emulator, tensors[:7], tensors[7:], False)
        assert session.reports == []
        assert all(map(torch.equal, aligned, misaligned))


def test_same_bits_in_every_run_and_schedule() -> None:
    emulator = emulation.load()
    operands, outer = make(SHAPES["several_warps"], torch.bfloat16, per_token=False)
    results = []
    for schedule in (*emulation.SCHEDULES, "random"):
        with emulator.session(schedule=schedule, seed=len(results)):
            results.append(run(emulator, operands, outer, False))
    assert all(all(map(torch.equal, result, results[0])) for result in results)


@pytest.mark.parametrize("schedule", emulation.SCHEDULES)
@pytest.mark.parametrize("mutation", ("MissingBarrierBeforeRead", "MissingBarrierBeforeWrite"))
def test_missing_barrier_is_a_race_under_any_schedule(mutation: str, schedule: str) -> None:
    """In the sums over the warps of a row."""
    emulator = emulation.load(mutation)
    operands, outer = make(SHAPES["several_warps"], torch.float32, per_token=False)
    with emulator.session(schedule=schedule) as session:
        run(emulator, operands, outer, False)
    assert {report.fault for report in session.reports} & (RACES | {"uninitialised-read"})


def test_wrong_merge_gives_wrong_results() -> None:
    emulator = emulation.load("WrongSplitMerge")
    operands, outer = make(SHAPES["one_warp"], torch.float32, per_token=False)
    with emulator.session() as session:
        results = run(emulator, operands, outer, False)
    assert session.reports == [], "a fault of arithmetic, not of access"
    assert not is_right(results, define(operands, outer, False), torch.float32)
