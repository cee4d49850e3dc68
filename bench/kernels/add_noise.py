"""Benchmark of add_noise: batches of images and of latents as training makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bench.kernels.case import DTYPES, LAYOUTS, Case, Op, Problem
from fastdiff import reference

SHAPES = {"latent": ((16, 4, 64, 64), (64, 4, 128, 128)), "pixels": ((64, 3, 64, 64),)}
UNITS = 4  # read clean data and noise, write noisy data and the target


def check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 4:
        raise ValueError(f"add_noise is benchmarked on (N, C, H, W), got {len(shape)} sizes")


def build(case: Case, implementations: Mapping[str, Callable[..., Tensor]], device: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    clean, noise = (
        torch.randn(case.shape, generator=generator)
        .to(device, DTYPES[case.dtype])
        .contiguous(memory_format=LAYOUTS[case.layout])
        for _ in range(2)
    )
    t = torch.rand(case.shape[0], generator=generator, dtype=torch.float64).to(device)
    factors = (1 - t, t, -torch.ones_like(t), torch.ones_like(t))  # a flow
    target = torch.empty_like(clean)

    def make(function: Callable[..., tuple[Tensor, ...]], *samples: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: function(*samples, *factors)

    return Problem(
        contenders={name: make(function, clean, noise) for name, function in implementations.items()},
        copy=lambda: target.copy_(clean),
        expected=make(reference.add_noise, clean.double(), noise.double()),
        output_names=("noisy", "target"),
        unit_bytes=clean.numel() * clean.element_size(),
        floor_units=UNITS,
    )


# The backward pass is the forward pass of other coefficients.
OP = Op(shapes=SHAPES, check_shape=check_shape, build=build, directions=("forward",))
