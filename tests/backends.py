"""The devices an op is tested on: the CPU, the CUDA kernels in the emulator, and a GPU where there is one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import emulation
import pytest
import torch

import fastdiff
from fastdiff import _dispatch

BACKENDS = ("cpu", "cuda-emulated", "cuda")


@dataclass(frozen=True)
class Backend:
    """Where a test runs: by `ops`, the raw operators, or by the public functions of fastdiff.ops inside `run`.

    `elements` bounds the tensors it can afford: the emulator runs a million threads a second.
    """

    name: str
    device: str
    ops: Any
    elements: int

    @contextmanager
    def run(self) -> Iterator[None]:
        """Run ops inside; the emulator's race detector must stay silent."""
        if self.name != "cuda-emulated":
            yield
            return
        with emulation.load().session() as session, mock.patch.object(_dispatch, "call", _call_emulated):
            yield
        assert session.reports == [], "\n".join(map(str, session.reports))
        assert session.launches > 0


def _call_emulated(op: torch._ops.OpOverload, *arguments: Any) -> Any:
    """The emulator's operator of the same name, with the gradient that the op's own module defines, if it has one."""
    name = op._schema.name.removeprefix("fastdiff::")
    function = getattr(emulation.load().ops, name)
    module = sys.modules.get(f"fastdiff.ops.{name}")
    if not hasattr(module, "_backward"):
        return function(*arguments)
    members = {"forward": function, "setup_context": module._setup_context, "backward": module._backward}
    differentiable = type(name, (torch.autograd.Function,), {key: staticmethod(m) for key, m in members.items()})
    return differentiable.apply(*arguments)


def backend(name: str) -> Backend:
    if name == "cpu":
        return Backend(name, "cpu", torch.ops.fastdiff, 1 << 40)
    if name == "cuda-emulated":
        return Backend(name, "cpu", emulation.load().ops, 300_000)
    info = fastdiff.build_info()
    if info["cuda_off_reason"]:
        pytest.skip(f"no CUDA: {info['cuda_off_reason']}")
    return Backend(name, "cuda", torch.ops.fastdiff, 1 << 40)
