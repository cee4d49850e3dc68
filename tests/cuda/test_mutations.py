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
EPS = 1e-5
NONE = (None,) * 5  # operands
RACES = {"read-after-write", "write-after-read", "write-after-write"}
# 1296 positions: whole parts and a short one in both layouts; several tiles for each resident block.
SHAPE = (6, 40, 36, 36)

BACKWARD = pytest.mark.parametrize("backward", (False, True), ids=("forward", "backward"))
LAYOUT = pytest.mark.parametrize("channels_last", (False, True), ids=("channels_first", "channels_last"))
PATH = pytest.mark.parametrize("resident", (False, True), ids=("streaming", "resident"))


def run(
    mutation: str | None, backward: bool, channels_last: bool, resident: bool, schedule: str = "round_robin"
) -> tuple[Session, bool]:
    """Runs the forward pass, or the backward one on exact statistics; returns the session and whether it is right."""
    torch.manual_seed(0)
    x = torch.randn(SHAPE).half() + 2 * torch.arange(36).half()[:, None] / 36
    dy = torch.randn(SHAPE).half() + 1  # sums that show in dx
    if channels_last:
        x, dy = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, dy))
    leaf = x.double().requires_grad_()
    expected = reference.group_norm_silu(leaf, GROUPS, eps=EPS)
    ops = emulation.load(mutation).ops
    device = {"sm_count": 1, "shared_bytes_per_block": 227 * KIB} if resident else {"shared_bytes_per_block": 0}
    with emulation.load(mutation).session(schedule, **device) as session:
        try:
            if backward:
                (expected,) = torch.autograd.grad(expected, leaf, dy.double())
                result = ops.group_norm_silu_backward(dy, x, *statistics(x), *NONE, True, [False] * 5)[0]
            else:
                result = ops.group_norm_silu(x, GROUPS, *NONE, EPS, True)[0]
        except RuntimeError as error:  # a fault that stops a GPU
            assert "the CUDA launch failed" in str(error)
            return session, False
    return session, torch.allclose(result.double(), expected, rtol=1e-2, atol=1e-2)


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, rstd) of each group, as the forward pass saves them."""
    groups = x.double().reshape(x.shape[0], GROUPS, -1)
    return groups.mean(-1).float(), (groups.var(-1, correction=0) + EPS).rsqrt().float()


def faults(session: Session) -> set[str]:
    return {report.fault for report in session.reports}


@PATH
@LAYOUT
@BACKWARD
def test_kernels_without_a_bug_are_clean(backward: bool, channels_last: bool, resident: bool) -> None:
    session, right = run(None, backward, channels_last, resident)
    assert session.reports == [] and right


@BACKWARD
@LAYOUT
@pytest.mark.parametrize("schedule", emulation.SCHEDULES)
@pytest.mark.parametrize("mutation", ("MissingBarrierBeforeRead", "MissingBarrierBeforeWrite"))
def test_missing_barrier_is_a_race_under_any_schedule(
    mutation: str, schedule: str, channels_last: bool, backward: bool
) -> None:
    session, _ = run(mutation, backward, channels_last, resident=True, schedule=schedule)
    assert faults(session) & RACES
    assert all(report.space == "shared" for report in session.reports if report.fault in RACES)


@LAYOUT
@BACKWARD
def test_missing_wait_for_copies_gives_wrong_results(backward: bool, channels_last: bool) -> None:
    """A copy arrives when its thread waits for it, and not before."""
    session, right = run("MissingWait", backward, channels_last, resident=True)
    assert session.reports or not right
    assert not right


@PATH
@LAYOUT
@BACKWARD
def test_load_beyond_the_end_is_reported(backward: bool, channels_last: bool, resident: bool) -> None:
    session, right = run("OffByOneLoad", backward, channels_last, resident)
    assert faults(session) & {"out-of-bounds", *RACES}
    assert not right


@PATH
@LAYOUT
@BACKWARD
def test_wrong_merge_of_splits_gives_wrong_results(backward: bool, channels_last: bool, resident: bool) -> None:
    session, right = run("WrongSplitMerge", backward, channels_last, resident)
    assert session.reports == [], "a fault of arithmetic, not of access"
    assert not right
