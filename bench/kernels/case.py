"""What one line of the kernel benchmark is, and what an op has to say of itself to be in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.timing import Call

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Case:
    """One comparison. `shape_class` groups the shapes in the summary."""

    op: str
    direction: str
    shape: tuple[int, ...]
    shape_class: str
    dtype: str
    layout: str

    @property
    def shape_name(self) -> str:
        return "x".join(map(str, self.shape))

    def __str__(self) -> str:
        return f"{self.op} {self.direction} {self.shape_name} {self.dtype} {self.layout}"


@dataclass(frozen=True)
class Problem:
    """A case with its operands in memory.

    Args:
        contenders: the implementations as calls without arguments, each returning all the outputs.
        copy: moves one activation to another buffer (2U).
        expected: computes the outputs in float64, from the same operands.
        output_names: names of the outputs, in order.
        unit_bytes: U, the bytes of one activation.
        floor_units: how many U an implementation that keeps nothing in the cache must move.
        flops: floating-point operations of the matrix products, where those bound the op.
    """

    contenders: Mapping[str, Callable[[], tuple[Tensor, ...]]]
    copy: Call
    expected: Callable[[], tuple[Tensor, ...]]
    output_names: tuple[str, ...]
    unit_bytes: int
    floor_units: int
    flops: int | None = None


@dataclass(frozen=True)
class Op:
    """An op of the benchmark.

    Args:
        shapes: the standard shapes, by shape class.
        check_shape: raises ValueError for a shape that the op cannot take.
        build: (case, implementations by name, torch device) -> Problem. The implementations share the op's signature.
        directions, layouts: those in which the op is another kernel, and so worth measuring.
    """

    shapes: Mapping[str, tuple[tuple[int, ...], ...]]
    check_shape: Callable[[tuple[int, ...]], None]
    build: Callable[[Case, Mapping[str, Callable[..., Tensor]], str], Problem]
    directions: tuple[str, ...] = DIRECTIONS
    layouts: tuple[str, ...] = tuple(LAYOUTS)

    def class_of(self, shape: tuple[int, ...]) -> str:
        return next((name for name, shapes in self.shapes.items() if shape in shapes), "custom")
