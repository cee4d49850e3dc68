"""Benchmark of sampler_step with guidance and one tensor of history: a step of a second-order multistep solver."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bench.kernels.case import DTYPES, Case, Op, Problem
from fastdiff import reference

SHAPES = {
    "latent": ((1, 4, 64, 64), (4, 4, 128, 128), (64, 3, 64, 64)),
    "video": ((1, 16, 21, 90, 160),),
}
UNITS = 6  # read the sample, two predictions and the history, write the new sample and the model
COLUMNS = {"GUIDANCE": 7.5, "MODEL_SAMPLE": 1.1, "MODEL_GUIDED": -0.4, "CLIP": torch.inf}
COLUMNS |= {"SAMPLE": 0.96, "MODEL": -0.31, "HISTORY_0": 0.12}


def check_shape(shape: tuple[int, ...]) -> None:
    """Any shape will do: the op is elementwise."""


def build(case: Case, implementations: Mapping[str, Callable[..., Tensor]], device: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    operands = [torch.randn(case.shape, generator=generator).to(device, DTYPES[case.dtype]) for _ in range(4)]
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


def _step(function: Callable[..., Tensor], operands: list[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    sample, prediction, uncond, previous = operands
    coefficients = torch.zeros(1, len(reference.StepColumn), device=sample.device)
    for name, value in COLUMNS.items():
        coefficients[0, reference.StepColumn[name]] = value
    return lambda: function(
        sample,
        prediction,
        coefficients,
        uncond_prediction=uncond,
        history=(previous,),
    )


# Forward and one layout only: the op is linear and elementwise, so neither the other pass nor another order of the
# dimensions is another kernel.
OP = Op(shapes=SHAPES, check_shape=check_shape, build=build, directions=("forward",), layouts=("NCHW",))
