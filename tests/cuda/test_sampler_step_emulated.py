"""Every path of the CUDA sampler_step, philox and add_noise in the emulator, under several schedules.

On one multiprocessor blocks go round in a sample, and a batch of more than a thousand goes round in the grid.
"""

from __future__ import annotations

from typing import Any

import emulation
import pytest
import torch
from torch import Tensor

from fastdiff import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# guidance, rescale, model's two, clip, sample, guided, model, noise, history
ROW = torch.tensor([[3.5, 0.7, 1.2, -0.4, 1.5, 0.9, -0.3, 0.8, 0.25, 0.4, 0.0, 0.0, 0.0]])


def unaligned(tensor: Tensor) -> Tensor:
    storage = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    copy = storage[1:].view(tensor.shape).copy_(tensor)
    assert copy.data_ptr() % 16
    return copy


def sampler_step(ops: Any, sample: Tensor, prediction: Tensor, uncond: Tensor, entry: Tensor) -> list[Tensor]:
    seeds = torch.arange(sample.shape[0])
    return list(ops.sampler_step(sample, prediction, ROW, None, 0, uncond, [entry], seeds, None))


def add_noise(ops: Any, clean: Tensor, noise: Tensor, *rest: Tensor) -> list[Tensor]:
    return list(ops.add_noise(clean, noise, *torch.linspace(-1, 1, 4 * clean.shape[0]).view(4, -1)))


def philox(ops: Any, like: Tensor, *rest: Tensor) -> list[Tensor]:
    seeds = torch.arange(like.shape[0])
    return [ops.philox(like.shape, seeds, 1, kind, dtype) for kind, dtype in ((0, torch.int64), (2, like.dtype))]


@pytest.mark.parametrize("op", (sampler_step, add_noise, philox))
def test_bits_depend_neither_on_alignment_nor_on_the_schedule_nor_on_the_grid(op: Any) -> None:
    """48 elements are whole vectors, 37 are not; 20 003 are several parts, and on one multiprocessor several rounds."""
    emulator = emulation.load()
    for dtype in DTYPES:
        for shape in ((2, 48), (2, 37), (1, 20_003)):
            operands = [torch.randn(shape).to(dtype) for _ in range(4)]
            variants = [[unaligned(o) if i == which else o for i, o in enumerate(operands)] for which in (0, 2)]
            results = []
            for schedule, variant in zip(emulation.SCHEDULES, [operands, *variants], strict=True):
                with emulator.session(schedule=schedule, sm_count=1 if schedule == "random" else 132) as session:
                    results.append(op(emulator.ops, *variant))
                assert session.reports == [], "\n".join(map(str, session.reports))
            assert all(all(map(torch.equal, result, results[0])) for result in results)


def test_batch_larger_than_the_grid() -> None:
    emulator = emulation.load()
    operands = [torch.randn(1030, 3) for _ in range(4)]
    with emulator.session(sm_count=1) as session:
        results = [op(emulator.ops, *operands) for op in (sampler_step, add_noise, philox)]
    assert session.reports == []
    sample, prediction, uncond, entry = operands
    options = {"uncond_prediction": uncond, "history": [entry], "seeds": torch.arange(1030)}
    expected = reference.sampler_step(sample, prediction, ROW, **options)
    torch.testing.assert_close(tuple(results[0]), expected, rtol=1e-4, atol=1e-4)
    factors = torch.linspace(-1, 1, 4 * 1030).view(4, -1)
    torch.testing.assert_close(tuple(results[1]), reference.add_noise(sample, prediction, *factors))
    assert torch.equal(results[2][0], reference.philox_bits((1030, 3), range(1030), offset=1))


def test_missing_barrier_in_the_deviations_is_reported() -> None:
    emulator = emulation.load("MissingBarrierBeforeRead")
    with emulator.session() as session:
        sampler_step(emulator.ops, *(torch.randn(1, 5000) for _ in range(4)))
    assert any("sampler_step_rescale.cuh" in report.place for report in session.reports)


def test_without_rescaling_nothing_reads_the_predictions_twice() -> None:
    """Both kernels are launched, as only the device knows the row, but the first ends at once."""
    emulator = emulation.load()
    operands = [torch.randn(1, 20_000) for _ in range(4)]
    accesses = []
    for rescale in (0.0, 0.7):
        row = ROW.clone()
        row[0, 1] = rescale
        with emulator.session() as session:
            emulator.ops.sampler_step(operands[0], operands[1], row, None, 0, operands[2], [operands[3]], None, None)
        assert session.reports == [] and session.launches == 2
        accesses.append(session.accesses)
    assert accesses[1] - accesses[0] > 2 * 20_000 / 4
