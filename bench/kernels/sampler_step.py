"""Benchmark of sampler_step with one tensor of history: a step of a second-order multistep solver.

Without guidance: the definition works out its rescaling whether a row asks for it or not, which would flatter fastdiff.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bench.kernels.case import DTYPES, Case, Op, Problem
from fastdiff import reference
from fastdiff.reference import StepColumn

SHAPES = {
    "latent": ((1, 4, 64, 64), (4, 4, 128, 128), (64, 3, 64, 64)),
    "video": ((1, 16, 21, 90, 160),),
}
UNITS = 5  # read the sample, the prediction and the history, write the new sample and the model
ROW = {StepColumn.GUIDANCE: 1.0, StepColumn.CLIP: torch.inf, StepColumn.MODEL_SAMPLE: 1.1}
ROW |= {StepColumn.MODEL_GUIDED: -0.4, StepColumn.SAMPLE: 0.96, StepColumn.MODEL: -0.31, StepColumn.HISTORY_0: 0.12}


def check_shape(shape: tuple[int, ...]) -> None:
    """Any shape will do: the op is elementwise."""


def build(case: Case, implementations: Mapping[str, Callable[..., Tensor]], device: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    operands = [torch.randn(case.shape, generator=generator).to(device, DTYPES[case.dtype]) for _ in range(3)]
    sample = operands[0]
    target = torch.empty_like(sample)
    return Problem(
        contenders={name: _step(function, operands) for name, function in implementations.items()},
        copy=lambda: target.copy_(sample),
        expected=lambda: _step(reference.sampler_step, [operand.double() for operand in operands])(),
        output_names=("sample", "model"),
        unit_bytes=sample.numel() * sample.element_size(),
        floor_units=UNITS,
    )


def _step(function: Callable[..., tuple[Tensor, ...]], operands: list[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    sample, prediction, previous = operands
    row = torch.tensor([[ROW.get(column, 0.0) for column in StepColumn]], device=sample.device)
    return lambda: function(sample, prediction, row, history=(previous,))


# Forward and one layout only: the op is linear and elementwise, so neither the other pass nor another order of the
# dimensions is another kernel.
OP = Op(shapes=SHAPES, check_shape=check_shape, build=build, directions=("forward",), layouts=("NCHW",))
