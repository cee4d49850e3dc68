"""nvcc, where it is installed."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

from tools import run

MISSING = "nvcc was not found on PATH, in CUDA_HOME or in /usr/local/cuda"


@functools.cache
def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


@functools.cache
def nvcc_version() -> str:
    return nvcc("--version")


def nvcc(*arguments: str | Path) -> str:
    """What nvcc prints. RuntimeError with that if it fails."""
    return run([find_nvcc() or "nvcc", *arguments])
