"""Every path of the CUDA sampler_step in the emulator, under the race detector and several schedules.

On one multiprocessor a thread takes several vectors, or several elements where the operands are not aligned.
"""

from __future__ import annotations

import emulation
import pytest
import torch
from torch import Tensor

from fastdiff import reference

# One pass of the grid on one multiprocessor: 8 blocks of 256 threads, 8 elements in a vector of 16 bits each.
VECTORS_A_PASS = 8 * 256


def unaligned(tensor: Tensor) -> Tensor:
    storage = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    return storage[1:].copy_(tensor)


@pytest.mark.parametrize("schedule", emulation.SCHEDULES)
@pytest.mark.parametrize("which", ["none", "sample", "uncond_prediction", "history"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_grid_stride(dtype: torch.dtype, which: str, schedule: str) -> None:
    width = 16 // dtype.itemsize
    size = 2 * VECTORS_A_PASS * width + width + 1 if which == "none" else 2 * VECTORS_A_PASS + 5
    operands = {name: torch.randn(size).to(dtype) for name in ("sample", "prediction", "uncond_prediction", "history")}
    if which != "none":
        operands[which] = unaligned(operands[which])
    sample, prediction, uncond, entry = operands.values()
    emulator = emulation.load()
    with emulator.session(schedule=schedule, sm_count=1) as session:
        result = emulator.ops.sampler_step(sample, prediction, uncond, 3.5, [0.9, -1.3, 0.4], [entry])
    assert session.reports == []
    assert session.launches == 1 and session.blocks == 8
    expected = reference.sampler_step(
        sample, prediction, [0.9, -1.3, 0.4], uncond_prediction=uncond, guidance_scale=3.5, history=[entry]
    )
    torch.testing.assert_close(result, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


def test_vectors_and_elements_give_the_same_bits() -> None:
    emulator = emulation.load()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        operands = [torch.randn(1000).to(dtype) for _ in range(7)]
        results = []
        for of_call in (operands, [unaligned(operand) for operand in operands]):
            sample, prediction, uncond, *history = of_call
            with emulator.session() as session:
                results.append(
                    emulator.ops.sampler_step(sample, prediction, uncond, 3.5, [0.9, -1.3, 0.4, 0.2, 0.1, 0.7], history)
                )
            assert session.reports == []
        assert torch.equal(*results)
