"""The devices an op is tested on: the CPU, the CUDA kernels in the emulator, and a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import emulation
import pytest
import torch

import fastdiff

BACKENDS = ("cpu", "cuda-emulated", "cuda")


@dataclass(frozen=True)
class Backend:
    """Where a test runs. `elements` bounds the tensors it can afford: the emulator runs a million threads a second."""

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
        with emulation.load().session() as session:
            yield
        assert session.reports == [], "\n".join(map(str, session.reports))
        assert session.launches > 0


def backend(name: str) -> Backend:
    if name == "cpu":
        return Backend(name, "cpu", torch.ops.fastdiff, 1 << 40)
    if name == "cuda-emulated":
        return Backend(name, "cpu", emulation.load().ops, 300_000)
    info = fastdiff.build_info()
    if info["cuda_off_reason"]:
        pytest.skip(f"no CUDA: {info['cuda_off_reason']}")
    return Backend(name, "cuda", torch.ops.fastdiff, 1 << 40)
