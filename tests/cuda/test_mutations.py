"""Bugs planted in the CUDA kernels turn the emulator's checks red, so a green result means something.

Each bug of csrc/cuda/mutations.cuh is built as an emulator library of its own.
"""

from __future__ import annotations

import emulation
import pytest
import torch
from emulation import Session
from torch import Tensor

from fastdiff import reference

KIB = 1024
GROUPS = 4
RACES = {"read-after-write", "write-after-read", "write-after-write"}
# 1296 positions: whole parts and a short one in both layouts; several tiles for each resident block.
SHAPE = (6, 40, 36, 36)


def run(
    mutation: str | None, channels_last: bool, resident: bool, schedule: str = "round_robin"
) -> tuple[Session, bool]:
    """Runs forward and backward; returns the session and whether the results are right."""
    torch.manual_seed(0)
    x = torch.randn(SHAPE).half() + 2 * torch.arange(36).half()[:, None] / 36
    dy = torch.randn(SHAPE).half()
    if channels_last:
        x, dy = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, dy))
    emulator = emulation.load(mutation)
    device = {"sm_count": 1, "shared_bytes_per_block": 227 * KIB} if resident else {"shared_bytes_per_block": 0}
    none = (None,) * 5
    with emulator.session(schedule, **device) as session:
        try:
            y, mean, rstd = emulator.ops.group_norm_silu(x, GROUPS, *none, 1e-5, True)
            dx = emulator.ops.group_norm_silu_backward(dy, x, mean, rstd, *none, True, [False] * 5)[0]
        except RuntimeError as error:  # a fault that stops a GPU
            assert "the CUDA launch failed" in str(error)
            return session, False
    return session, is_right(x, dy, y, dx)


def is_right(x: Tensor, dy: Tensor, y: Tensor, dx: Tensor) -> bool:
    leaf = x.double().requires_grad_()
    expected = reference.group_norm_silu(leaf, GROUPS)
    (gradient,) = torch.autograd.grad(expected, leaf, dy.double())
    return torch.allclose(y.double(), expected, rtol=1e-2, atol=1e-2) and torch.allclose(
        dx.double(), gradient, rtol=1e-2, atol=1e-2
    )


def faults(session: Session) -> set[str]:
    return {report.fault for report in session.reports}


@pytest.mark.parametrize("channels_last", (False, True), ids=("channels_first", "channels_last"))
@pytest.mark.parametrize("resident", (False, True), ids=("streaming", "resident"))
def test_kernels_without_a_bug_are_clean(resident: bool, channels_last: bool) -> None:
    session, right = run(None, channels_last, resident)
    assert session.reports == [] and right


@pytest.mark.parametrize("channels_last", (False, True), ids=("channels_first", "channels_last"))
@pytest.mark.parametrize("schedule", emulation.SCHEDULES)
@pytest.mark.parametrize("mutation", ("MISSING_BARRIER_BEFORE_READ", "MISSING_BARRIER_BEFORE_WRITE"))
def test_missing_barrier_is_a_race_under_any_schedule(mutation: str, schedule: str, channels_last: bool) -> None:
    session, _ = run(mutation, channels_last, resident=True, schedule=schedule)
    assert faults(session) & RACES
    assert all(report.space == "shared" for report in session.reports if report.fault in RACES)


@pytest.mark.parametrize("channels_last", (False, True), ids=("channels_first", "channels_last"))
@pytest.mark.parametrize("resident", (False, True), ids=("streaming", "resident"))
def test_load_beyond_the_end_is_reported(resident: bool, channels_last: bool) -> None:
    session, right = run("OFF_BY_ONE_LOAD", channels_last, resident)
    assert faults(session) & {"out-of-bounds", *RACES}
    assert not right


@pytest.mark.parametrize("channels_last", (False, True), ids=("channels_first", "channels_last"))
@pytest.mark.parametrize("resident", (False, True), ids=("streaming", "resident"))
def test_wrong_merge_of_splits_gives_wrong_results(resident: bool, channels_last: bool) -> None:
    session, right = run("WRONG_SPLIT_MERGE", channels_last, resident)
    assert session.reports == [], "a fault of arithmetic, not of access"
    assert not right
