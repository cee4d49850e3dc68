"""Every path of the CUDA group_norm_silu in the emulator, under the race detector and several schedules.

Paths are forced through the emulated device: without shared memory every shape streams; on one multiprocessor every
shape that fits is resident, and its blocks work through several tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import emulation
import pytest
import torch
from torch import Tensor

from fastdiff import reference

KIB = 1024
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WANTED = [True] * 5


@dataclass(frozen=True)
class Device:
    sm_count: int
    shared_bytes_per_block: int


STREAMING = Device(132, 0)
RESIDENT = Device(1, 227 * KIB)
PERSISTENT = Device(1, 24 * KIB)  # one block takes tile after tile

# (batch, channels, height, width), groups: whole vectors; odd channels and sizes; several parts; single values (many
# of them, as the largest of a few rounding errors is a matter of luck).
SHAPES = (
    ((2, 40, 8, 8), 4),
    ((2, 30, 9, 7), 3),
    ((1, 6, 33, 40), 2),
    ((64, 24, 1, 1), 8),
    ((3, 64, 6, 6), 32),
)


@dataclass(frozen=True)
class Problem:
    x: Tensor
    dy: Tensor
    operands: tuple[Tensor, ...]
    groups: int

    def sample(self, index: int) -> Problem:
        """One sample as a batch of its own."""
        one = slice(index, index + 1)
        operands = tuple(operand if operand.dim() == 1 else operand[one] for operand in self.operands)
        return Problem(self.x[one], self.dy[one], operands, self.groups)


def make_problem(
    shape: Sequence[int], groups: int, dtype: torch.dtype, channels_last: bool, offset: int = 0, mean: float = 0.5
) -> Problem:
    """`offset`: elements by which x and dy miss a 16-byte boundary."""
    batch, channels, height, width = shape

    def activation(shift: float) -> Tensor:
        values = torch.randn(shape) + shift
        storage = torch.zeros(values.numel() + 16, dtype=dtype)
        first = (-storage.data_ptr() % 16) // storage.element_size() + offset
        dense = storage[first : first + values.numel()]
        if channels_last:
            return dense.view(batch, height, width, channels).permute(0, 3, 1, 2).copy_(values)
        return dense.view(shape).copy_(values)

    sizes = [(channels,)] * 2 + [(batch, channels)] * 3
    operands = tuple(torch.randn(size) for size in sizes)
    return Problem(activation(mean), activation(0.0), operands, groups)


def run(problem: Problem, device: Device, schedule: str = "round_robin", seed: int = 0) -> list[Tensor]:
    """[y, mean, rstd, dx, dweight, dbias, dtime_bias, dscale, dshift]; fails on any report of the emulator."""
    emulator = emulation.load()
    with emulator.session(schedule, seed, **vars(device)) as session:
        forward = emulator.ops.group_norm_silu(problem.x, problem.groups, *problem.operands, 1e-5, True)
        backward = emulator.ops.group_norm_silu_backward(
            problem.dy, problem.x, *forward[1:], *problem.operands, True, WANTED
        )
    assert session.reports == [], "\n".join(map(str, session.reports))
    # Forward: one resident kernel or three streaming ones. Backward: one or four, and the sum over the batch.
    assert session.launches == (3 + 5 if device == STREAMING else 1 + 2)
    return [*forward, *backward]


def define(problem: Problem, dtype: torch.dtype) -> list[Tensor]:
    """[y, dx, dweight, ...] by autograd through the definition."""
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in (problem.x, *problem.operands)]
    x, weight, bias, time_bias, scale, shift = leaves
    y = reference.group_norm_silu(x, problem.groups, weight, bias, time_bias=time_bias, scale=scale, shift=shift)
    return [y.detach(), *torch.autograd.grad(y, leaves, problem.dy.to(dtype))]


def assert_as_exact(results: list[Tensor], problem: Problem) -> None:
    y, _, _, *gradients = results
    eager, exact = define(problem, problem.x.dtype), define(problem, torch.float64)
    for index, (ours, theirs, true) in enumerate(zip([y, *gradients], eager, exact, strict=True)):
        allowed = 2 * (theirs - true).abs().max() + 1e-6
        assert (ours - true).abs().max() <= allowed, f"result {index}"


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("device", (STREAMING, RESIDENT), ids=("streaming", "resident"))
@pytest.mark.parametrize("shape, groups", SHAPES, ids=str)
@pytest.mark.parametrize("channels_last", (False, True), ids=("channels_first", "channels_last"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_path(dtype, channels_last, shape, groups, device) -> None:
    problem = make_problem(shape, groups, dtype, channels_last)
    assert_as_exact(run(problem, device), problem)


@pytest.mark.parametrize("channels_last", (False, True), ids=("channels_first", "channels_last"))
@pytest.mark.parametrize("schedule", emulation.SCHEDULES)
def test_order_of_threads_does_not_matter(schedule, channels_last) -> None:
    problem = make_problem((4, 80, 9, 8), 4, torch.float16, channels_last)
    expected = run(problem, STREAMING)
    for seed, device in enumerate((STREAMING, RESIDENT, PERSISTENT)):
        for ours, theirs in zip(run(problem, device, schedule, seed), expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("channels_last", (False, True), ids=("channels_first", "channels_last"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape, groups", [((3, 48, 12, 12), 4), ((3, 15, 40, 29), 5)], ids=str)
def test_sample_does_not_depend_on_its_batch(shape, groups, dtype, channels_last) -> None:
    """Also when the batch is resident and the sample alone is streamed, or starts at a misaligned address."""
    problem = make_problem(shape, groups, dtype, channels_last)
    whole = run(problem, RESIDENT)
    for index in range(shape[0]):
        for device in (RESIDENT, STREAMING):
            alone = run(problem.sample(index), device)
            for place, (ours, theirs) in enumerate(zip(alone, whole, strict=True)):
                summed_over_batch = place in (4, 5)  # dweight, dbias
                assert summed_over_batch or torch.equal(ours, theirs[index : index + 1]), place


@pytest.mark.parametrize("device", (STREAMING, RESIDENT), ids=("streaming", "resident"))
@pytest.mark.parametrize("channels_last", (False, True), ids=("channels_first", "channels_last"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_misaligned_memory_gives_the_same_bits(dtype, channels_last, device) -> None:
    aligned = make_problem((2, 32, 12, 10), 4, dtype, channels_last)
    torch.manual_seed(0)
    misaligned = make_problem((2, 32, 12, 10), 4, dtype, channels_last, offset=1)
    assert aligned.x.data_ptr() % 16 == 0 and misaligned.x.data_ptr() % 16 != 0
    for ours, theirs in zip(run(misaligned, device), run(aligned, device), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("device", (STREAMING, RESIDENT), ids=("streaming", "resident"))
@pytest.mark.parametrize("channels_last", (False, True), ids=("channels_first", "channels_last"))
def test_mean_far_from_zero(channels_last, device) -> None:
    problem = make_problem((1, 16, 40, 40), 4, torch.float32, channels_last, mean=1000.0)
    y = run(problem, device)[0]
    # Eager PyTorch loses all digits in channels_last; its channels-first result is the measure of both layouts.
    dense = Problem(problem.x.contiguous(), problem.dy.contiguous(), problem.operands, problem.groups)
    exact = define(problem, torch.float64)[0]
    assert (y - exact).abs().max() <= 2 * (define(dense, torch.float32)[0] - exact).abs().max() + 1e-6


@pytest.mark.parametrize("device", (STREAMING, RESIDENT), ids=("streaming", "resident"))
@pytest.mark.parametrize("channels_last", (False, True), ids=("channels_first", "channels_last"))
@pytest.mark.parametrize("value", (float("nan"), float("inf")))
def test_nan_spoils_its_group_and_no_other(value, channels_last, device) -> None:
    problem = make_problem((2, 32, 6, 5), 4, torch.float16, channels_last)
    problem.x[1, 9, 2, 3] = value  # sample 1, group 1
    y, *_ = run(problem, device)
    spoilt = y.reshape(2, 4, 8, 30).isnan()
    assert spoilt[1, 1].all()
    spoilt[1, 1] = False
    assert not spoilt.any()
