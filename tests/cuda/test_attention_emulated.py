"""Every path of the CUDA attention in the emulator, under the race detector and several schedules.

Forward, up to 160 keys of 16 bits stay in shared memory; more, or wider heads than 128, or float32, stream past the
queries. A head wider than 128 is cut into parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import emulation
import pytest
import torch
from emulation import Session
from torch import Tensor

from fastdiff import reference

KIB = 1024
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Odd, half a tile at the end, as wide as the kernels for narrow and for wide heads, in two parts.
HEAD_DIMS = (33, 40, 64, 128, 160)
RACES = {"read-after-write", "write-after-read", "write-after-write"}
# (query tokens, key tokens): resident, a last tile of one key, a whole number of tiles.
LENGTHS = {"resident": (70, 77), "streaming": (40, 193), "whole_tiles": (32, 192)}
QUERY_HEADS, KEY_HEADS = 4, 2


def make(lengths: tuple[int, int], head_dim: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """(query, key and value; the gradient of the output) of 2 samples."""
    torch.manual_seed(0)
    query, doutput = torch.randn(2, 2, lengths[0], QUERY_HEADS, head_dim).to(dtype)
    key, value = torch.randn(2, 2, lengths[1], KEY_HEADS, head_dim).to(dtype)
    return [query, key, value], doutput


def run(emulator: Any, operands: list[Tensor], doutput: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
    """The output and the gradients of query, key and value."""
    scale = operands[0].shape[-1] ** -0.5
    results = emulator.ops.attention(*operands, lengths, scale)
    return [results[0], *emulator.ops.attention_backward(doutput, *operands, *results, lengths, scale)]


def define(operands: list[Tensor], doutput: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
    leaves = [operand.double().requires_grad_() for operand in operands]
    output = reference.attention(*leaves, kv_lengths=lengths)
    return [output, *torch.autograd.grad(output, leaves, doutput.double())]


def which_are_right(results: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype) -> list[bool]:
    """Relative to the largest value: gradients of keys are long sums."""
    tolerance = 8 * torch.finfo(dtype).eps
    return [
        bool((result.double() - want).abs().max() <= tolerance * (1 + want.abs().max()))
        for result, want in zip(results, expected, strict=True)
    ]


@pytest.mark.parametrize("schedule", emulation.SCHEDULES)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_path(dtype: torch.dtype, lengths: str, schedule: str) -> None:
    emulator = emulation.load()
    for head_dim in HEAD_DIMS if schedule == "round_robin" else (64, 160):
        operands, doutput = make(LENGTHS[lengths], head_dim, dtype)
        kv_lengths = torch.tensor([LENGTHS[lengths][1], 33], dtype=torch.int32)
        with emulator.session(schedule=schedule, sm_count=1) as session:
            results = run(emulator, operands, doutput, kv_lengths)
        assert session.reports == [], "\n".join(map(str, session.reports))
        assert session.launches == 4, "forward, delta, the gradient of the queries, those of keys and values"
        assert all(which_are_right(results, define(operands, doutput, kv_lengths), dtype)), head_dim


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_little_shared_memory(dtype: torch.dtype) -> None:
    """Blocks of fewer warps, with the same bits."""
    emulator = emulation.load()
    for lengths, head_dim in (((33, 77), 128), ((17, 170), 256)):
        operands, doutput = make(lengths, head_dim, dtype)
        results = []
        for shared_bytes in (227 * KIB, 99 * KIB):
            with emulator.session(shared_bytes_per_block=shared_bytes) as session:
                results.append(run(emulator, operands, doutput))
            assert session.reports == []
        assert all(map(torch.equal, *results))


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("lengths", ("resident", "streaming"))
def test_alignment_does_not_change_the_bits(lengths: str, which: int) -> None:
    emulator = emulation.load()
    for dtype in DTYPES:
        operands, doutput = make(LENGTHS[lengths], 40, dtype)
        tensors = [*operands, doutput]
        with emulator.session() as session:
            aligned = run(emulator, tensors[:3], tensors[3])
            storage = torch.empty(tensors[which].numel() + 1, dtype=dtype)
            tensors[which] = storage[1:].view(tensors[which].shape).copy_(tensors[which])
            assert tensors[which].data_ptr() % 16
            misaligned = run(emulator, tensors[:3], tensors[3])
        assert session.reports == []
        assert all(map(torch.equal, aligned, misaligned))


@pytest.mark.parametrize("lengths", ("resident", "streaming"))
def test_same_bits_in_every_run_and_schedule(lengths: str) -> None:
    emulator = emulation.load()
    operands, doutput = make(LENGTHS[lengths], 64, torch.bfloat16)
    results = []
    for schedule in (*emulation.SCHEDULES, "random"):
        with emulator.session(schedule=schedule, seed=len(results)):
            results.append(run(emulator, operands, doutput))
    assert all(all(map(torch.equal, result, results[0])) for result in results)


@pytest.mark.parametrize("head_dim", (33, 64, 160))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_that_share_the_queries(dtype: torch.dtype, head_dim: int) -> None:
    """Each head's queries have a block of their own; the sums of two are merged."""
    emulator = emulation.load()
    operands, doutput = make((129 if dtype is torch.float32 else 257, 20), head_dim, dtype)
    kv_lengths = torch.tensor([20, 3], dtype=torch.int32)
    with emulator.session() as session:
        results = run(emulator, operands, doutput, kv_lengths)
    assert session.reports == [], "\n".join(map(str, session.reports))
    assert session.launches == 5
    assert all(which_are_right(results, define(operands, doutput, kv_lengths), dtype))


# ---- planted bugs ----------------------------------------------------------------------------------------------------


BACKWARD = pytest.mark.parametrize("backward", (False, True), ids=("forward", "backward"))


def run_with_bug(
    mutation: str | None,
    backward: bool,
    lengths: tuple[int, int],
    dtype: torch.dtype,
    schedule: str = "round_robin",
) -> tuple[Session, list[bool]]:
    """Runs the forward pass, or the backward one on exact results of it.

    Returns the session, and which are right of the output, or of the gradients of query, key and value.
    """
    operands, doutput = make(lengths, 64, dtype)
    kv_lengths = torch.tensor([lengths[1], 3], dtype=torch.int32)
    output, *gradients = define(operands, doutput, kv_lengths)
    emulator = emulation.load(mutation)
    with emulator.session(schedule=schedule) as session:
        if backward:
            saved = (output.to(dtype), logsumexp(operands, kv_lengths))
            results = emulator.ops.attention_backward(doutput, *operands, *saved, kv_lengths, 64**-0.5)
        else:
            results = emulator.ops.attention(*operands, kv_lengths, 64**-0.5)[:1]
    return session, which_are_right(results, gradients if backward else [output], dtype)


def logsumexp(operands: list[Tensor], kv_lengths: Tensor) -> Tensor:
    query, key, _ = (operand.double() for operand in operands)
    key = key.repeat_interleave(QUERY_HEADS // KEY_HEADS, dim=2)
    scores = torch.einsum("bihd,bjhd->bhij", query, key) * query.shape[-1] ** -0.5
    absent = torch.arange(key.shape[1]) >= kv_lengths[:, None]
    return scores.masked_fill(absent[:, None, None], -torch.inf).logsumexp(-1).float()


def kernels_with(faults: set[str], session: Session) -> set[str]:
    """Those with a report of one of the faults."""
    return {report.kernel for report in session.reports if report.fault in faults}


def kernels_that_stream(backward: bool) -> set[str]:
    if backward:
        return {"attention_query_gradient_kernel", "attention_key_gradients_kernel"}
    return {"attention_streaming_kernel"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", ("resident", "streaming"))
@BACKWARD
def test_kernels_without_a_bug_are_clean(backward: bool, lengths: str, dtype: torch.dtype) -> None:
    session, right = run_with_bug(None, backward, LENGTHS[lengths], dtype)
    assert session.reports == [] and all(right)


@pytest.mark.parametrize("schedule", emulation.SCHEDULES)
@pytest.mark.parametrize("lengths", ("resident", "streaming"))
@BACKWARD
def test_missing_barrier_before_read_is_a_race_under_any_schedule(backward: bool, lengths: str, schedule: str) -> None:
    session, _ = run_with_bug("MissingBarrierBeforeRead", backward, LENGTHS[lengths], torch.bfloat16, schedule)
    resident = lengths == "resident" and not backward
    expected = {"attention_resident_kernel"} if resident else kernels_that_stream(backward)
    assert kernels_with(RACES, session) == expected


@pytest.mark.parametrize("schedule", emulation.SCHEDULES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@BACKWARD
def test_missing_barrier_before_write_is_a_race_under_any_schedule(
    backward: bool, dtype: torch.dtype, schedule: str
) -> None:
    session, _ = run_with_bug("MissingBarrierBeforeWrite", backward, LENGTHS["streaming"], dtype, schedule)
    assert kernels_with({"write-after-read"}, session) == kernels_that_stream(backward)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", ("resident", "streaming"))
@BACKWARD
def test_missing_wait_is_reported_and_gives_wrong_results(backward: bool, lengths: str, dtype: torch.dtype) -> None:
    session, right = run_with_bug("MissingWait", backward, LENGTHS[lengths], dtype)
    assert "read-after-write" in {report.fault for report in session.reports}
    assert not any(right)


def test_wrong_merge_of_splits_gives_wrong_results() -> None:
    """Of the keys' gradients; the queries' have one block."""
    session, right = run_with_bug("WrongSplitMerge", True, (300, 20), torch.bfloat16)
    assert session.reports == [], "a fault of arithmetic, not of access"
    assert right == [True, False, False]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", ("resident", "streaming"))
@BACKWARD
def test_wrong_mask_edge_gives_wrong_results(backward: bool, lengths: str, dtype: torch.dtype) -> None:
    """A key that does not count adds to the output, or gets a gradient."""
    session, right = run_with_bug("WrongMaskEdge", backward, LENGTHS[lengths], dtype)
    assert session.reports == [], "a fault of arithmetic, not of access"
    assert right == ([True, False, False] if backward else [False])
