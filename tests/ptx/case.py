"""What an op's cases for the PTX leg are made of, and the check of one.

A file in tests/ptx/cases/ has the name of an op and lists CASES; test_kernels.py finds it by itself.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from ptx import replay
from ptx.nvcc import Library
from torch import Tensor


class Problem(Protocol):
    """Inputs of an op."""

    dtype: torch.dtype  # of the kernel

    def run(self, ops: Any) -> Sequence[Tensor]:
        """The results of the op, or of it and its backward, by torch.ops.<namespace>."""
        ...

    def define(self, dtype: torch.dtype) -> Sequence[Tensor]:
        """The same results by the definition, with all inputs converted to `dtype`."""
        ...


@dataclass(frozen=True)
class Case:
    """`make` makes the problem; `sm_count` and `shared_bytes_per_block` choose the kernel's path."""

    name: str
    make: Callable[[], Problem]
    sm_count: int = 132
    shared_bytes_per_block: int = 227 * 1024

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Outcome:
    """`kernels` were executed; `mismatches` says in words which results are beyond the bound."""

    kernels: tuple[str, ...]
    mismatches: tuple[str, ...]


def all_cases() -> list[Case]:
    files = sorted((Path(__file__).parent / "cases").glob("*.py"))
    return [case for file in files for case in importlib.import_module(f"ptx.cases.{file.stem}").CASES]


@functools.cache
def outcome(case: Case) -> Outcome:
    """Of the kernels as they are; executed once in a process."""
    return execute(case, replay.library())


def execute(case: Case, kernels: Library) -> Outcome:
    """Executes a case from the PTX of `kernels` and compares with the definition in float64.

    The error may be at most twice that of the definition in the kernel's dtype, plus 1e-6.
    """
    torch.manual_seed(0)
    problem = case.make()
    with replay.session(kernels, sm_count=case.sm_count, shared_bytes_per_block=case.shared_bytes_per_block) as session:
        results = problem.run(session.ops)
    mismatches = []
    eager, exact = problem.define(problem.dtype), problem.define(torch.float64)
    for index, (ours, theirs, true) in enumerate(zip(results, eager, exact, strict=True)):
        if ours.numel() == 0:
            continue
        error, allowed = (ours - true).abs().max(), 2 * (theirs - true).abs().max() + 1e-6
        if not error <= allowed:  # NaN is a mismatch
            mismatches.append(f"result {index}: error {error:.3g}, allowed {allowed:.3g}")
    return Outcome(tuple(session.kernels), tuple(mismatches))
