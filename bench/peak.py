"""The most that the processor's arithmetic units can do, measured: what GFLOP/s are compared with."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import fastdiff

_SOURCE = Path(__file__).with_name("peak.cpp")
# By instruction set, as in cmake/CpuKernels.cmake. Not -march=native: a compiler older than the processor falls back
# to one that it knows, and may leave out what the kernels use.
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
_AVX512_BF16 = (*_AVX512, "-mavx512bf16")
_AMX = (*_AVX512_BF16, "-mamx-tile", "-mamx-bf16")
FLAGS = {"portable": (), "avx2": _AVX2, "avx512": _AVX512, "avx512_bf16": _AVX512_BF16, "amx": _AMX}


@dataclass(frozen=True)
class Peak:
    """GFLOP/s by dtype; or none, and why."""

    gflop_per_s: dict[str, float] | None
    reason: str | None = None

    def times(self, threads: int) -> Peak:
        """That of so many cores, as so many times one: an upper bound where cores share units or clock."""
        if self.gflop_per_s is None:
            return self
        return Peak({dtype: threads * value for dtype, value in self.gflop_per_s.items()})


@functools.cache
def measure_peak() -> Peak:
    """That of one core, by peak.cpp: compiled for the best instruction set that processor and kernels have in common.

    Runs once a process.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        return Peak(None, "no C++ compiler was found")
    isa = fastdiff.build_info()["cpu_isas_supported"][-1]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peak"
        try:
            for command in (build_command(compiler, isa, program), [str(program)]):
                output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except OSError as error:
            return Peak(None, str(error))
        except subprocess.CalledProcessError as error:
            return Peak(None, f"{command[0]} failed: {(error.stderr.strip() or str(error)).splitlines()[0]}")
    measured = {kind: float(value) for kind, value in map(str.split, output.splitlines())}
    fp32 = measured["fp32"]
    # Without products of their own, the 16-bit dtypes are converted and multiplied as float32; so is float16 always.
    return Peak({"fp32": fp32, "bf16": measured.get("bf16", fp32), "fp16": fp32})


def build_command(compiler: str, isa: str, program: Path) -> list[str]:
    return [*shlex.split(compiler), "-std=c++17", "-O2", *FLAGS[isa], str(_SOURCE), "-o", str(program)]
