"""Builds, loads and steers the CUDA emulator of csrc/emulator.

    emulator = emulation.load()                      # builds on first use; skips the test where it cannot
    with emulator.session(schedule="reverse") as session:
        y, mean, rstd = emulator.ops.group_norm_silu(x, ...)
    assert session.reports == []

Places in the source, in reports, are relative to the repository.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tools
import torch
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
BUILD_DIRECTORY = ROOT / "build" / f"emulator-torch{torch.__version__}"
SCHEDULES = ("round_robin", "reverse", "random")
# Files whose inlined functions stand between a kernel's line and the access it makes.
_PLUMBING = (
    "csrc/emulator/",
    "csrc/cuda/platform.cuh",
    "csrc/cuda/ptx.cuh",
    "/include/cuda_fp16",
    "/include/cuda_bf16",
)


@dataclass(frozen=True)
class Report:
    """One fault.

    `place` and `other` (the access or the thread in conflict) read "path/to/kernel.cuh:123" or ""; `inlined_into` are
    the lines of the functions that the compiler inlined `place` into, innermost first.
    """

    fault: str
    space: str
    place: str
    inlined_into: tuple[str, ...]
    other: str
    block: tuple[int, int, int]
    thread: tuple[int, int, int]
    count: int
    detail: str

    @property
    def kernel(self) -> str:
        """The kernel whose body the outermost of the lines is in."""
        path, _, line = (self.place, *self.inlined_into)[-1].rpartition(":")
        above = (ROOT / path).read_text().splitlines()[: int(line)]
        return re.findall(r"(\w+_kernel)\(", "\n".join(above))[-1]

    def __str__(self) -> str:
        callers = "".join(f" < {caller}" for caller in self.inlined_into)
        other = f", in conflict with {self.other}" if self.other else ""
        detail = f": {self.detail}" if self.detail else ""
        return (
            f"{self.fault} {self.space} at {self.place}{callers}{other}{detail} "
            f"[first: block {self.block}, thread {self.thread}; {self.count} in all]"
        )


@dataclass
class Session:
    """What ran in a session; `reports` is filled at its end."""

    reports: list[Report] = field(default_factory=list)
    launches: int = 0
    blocks: int = 0
    accesses: int = 0


class Emulator:
    """A loaded emulator library. `ops` holds its operators; None where it has none."""

    def __init__(self, path: Path, namespace: str | None) -> None:
        self.path = path
        if namespace:
            torch.ops.load_library(str(path))
        self.library = ctypes.CDLL(str(path))
        self.library.fastdiff_emulator_reports.restype = ctypes.c_size_t
        self.ops: Any = getattr(torch.ops, namespace) if namespace else None

    @contextlib.contextmanager
    def session(
        self,
        schedule: str = "round_robin",
        seed: int = 0,
        detect_races: bool = True,
        sm_count: int = 132,
        shared_bytes_per_block: int = 227 * 1024,
    ) -> Iterator[Session]:
        """Runs kernels under a schedule, on a GPU of the given size, and collects the reports.

        Args:
            schedule: one of SCHEDULES: the order of threads at barriers and of blocks.
            seed: of the schedule "random".
            detect_races: also check the order of accesses; bounds and alignment are always checked.
            sm_count, shared_bytes_per_block: of the emulated GPU (default: those of an H100).
        """
        self.library.fastdiff_emulator_configure(
            SCHEDULES.index(schedule), ctypes.c_uint64(seed), ctypes.c_int(detect_races)
        )
        self.library.fastdiff_emulator_set_device(sm_count, ctypes.c_size_t(shared_bytes_per_block))
        self.library.fastdiff_emulator_clear_reports()
        before = self._counters()
        session = Session()
        try:
            yield session
        finally:
            session.launches, session.blocks, session.accesses = (
                after - start for after, start in zip(self._counters(), before, strict=True)
            )
            session.reports = self._reports()
            if sys.exc_info()[0]:  # the op that failed does not know why: pytest shows this beside its error
                print(*session.reports, sep="\n")

    def _counters(self) -> list[int]:
        counters = (ctypes.c_uint64 * 3)()
        self.library.fastdiff_emulator_counters(counters)
        return list(counters)

    def _reports(self) -> list[Report]:
        buffer = ctypes.create_string_buffer(self.library.fastdiff_emulator_reports(None, ctypes.c_size_t(0)))
        self.library.fastdiff_emulator_reports(buffer, ctypes.c_size_t(len(buffer)))
        return [self._parse(line) for line in buffer.value.decode().splitlines()]

    def _parse(self, line: str) -> Report:
        fault, space, place, other, block, thread, count, detail = line.split("\t")
        lines = self._source_lines(place)
        return Report(
            fault=fault,
            space=space,
            place=lines[0],
            inlined_into=lines[1:],
            other=self._source_lines(other)[0],
            block=_index(block),
            thread=_index(thread),
            count=int(count),
            detail=detail,
        )

    def _source_lines(self, place: str) -> tuple[str, ...]:
        if not place.startswith("+0x"):
            return (_relative(place),)
        # The recorded address is where the call into the emulator returns to: one byte before is inside the call.
        return _source_lines(self.path, int(place, 16) - 1)


def load(mutation: str | None = None) -> Emulator:
    """The emulated ops, or those in which csrc/cuda plants a bug, an enumerator of Mutation in mutations.cuh."""
    suffix = f"_{mutation}" if mutation else ""
    return _load(f"fastdiff_emulator{suffix}", f"fastdiff_emulated{suffix}")


def load_self_test() -> Emulator:
    """The kernels of tests/emulator/kernels.cu."""
    return _load("fastdiff_emulator_self_test", None)


@functools.cache
def _load(target: str, namespace: str | None) -> Emulator:
    return Emulator(_build(target), namespace)


def _build(target: str) -> Path:
    _require_tools()
    BUILD_DIRECTORY.mkdir(parents=True, exist_ok=True)
    with FileLock(BUILD_DIRECTORY / "lock"):
        if not (BUILD_DIRECTORY / "build.ninja").exists():  # from then on Ninja calls CMake when it has to
            command = ["cmake", "-S", ROOT / "csrc" / "emulator", "-B", BUILD_DIRECTORY, "-G", "Ninja"]
            tools.run([*command, f"-DPython_EXECUTABLE={sys.executable}"])
        tools.run(["cmake", "--build", BUILD_DIRECTORY, "--target", target, "-j", os.environ.get("MAX_JOBS", "2")])
    return BUILD_DIRECTORY / f"lib{target}.so"


def _require_tools() -> None:
    for tool in ("cmake", "ninja", "addr2line", "c++"):
        if not shutil.which(tool, path=tools.PATH):
            pytest.skip(f"the CUDA emulator needs {tool}")
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    if nvcc := shutil.which("nvcc"):
        homes.append(str(Path(nvcc).resolve().parent.parent))
    if not any(home and (Path(home) / "include" / "cuda_fp16.h").exists() for home in homes):
        pytest.skip("the CUDA emulator needs the CUDA toolkit's headers: set CUDA_HOME")


@functools.cache
def _source_lines(library: Path, address: int) -> tuple[str, ...]:
    """The kernel's lines behind an instruction: its own, then those it was inlined into, without the emulator's."""
    command = ["addr2line", "-i", "-e", str(library), hex(address)]
    frames = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    frames = [frame.split(" (discriminator")[0] for frame in frames]
    own = [frame for frame in frames if not any(part in frame for part in _PLUMBING)]
    return tuple(map(_relative, own or frames[:1]))


def _relative(place: str) -> str:
    path, _, line = place.rpartition(":")
    if not path.startswith("/"):
        return place
    path = os.path.normpath(path)
    return f"{os.path.relpath(path, ROOT) if path.startswith(str(ROOT)) else path}:{line}"


def _index(text: str) -> tuple[int, int, int]:
    x, y, z = map(int, text.split(","))
    return x, y, z
