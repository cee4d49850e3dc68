"""Ops whose launches are executed from PTX.

An op's own binding and launcher run as in the emulator, up to the launch: there its kernel is looked up among the PTX
by name, and executed by the interpreter on the very memory and with the very arguments that the launcher gave.

    with replay.session(sm_count=1) as session:
        y, mean, rstd = session.ops.group_norm_silu(x, ...)
    assert "void fastdiff::cuda::..." in session.kernels
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import emulation
from ptx.machine import run
from ptx.memory import GlobalMemory
from ptx.nvcc import KERNEL_SOURCES, Library, compile_ptx
from ptx.threads import Launch

_LAUNCH_FAILURE = 719  # cudaErrorLaunchFailure


class _Argument(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]


class _LaunchRecord(ctypes.Structure):
    """LaunchRecord of csrc/emulator/grid.h."""

    _fields_ = [
        ("kernel", ctypes.c_uint64),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_shared_bytes", ctypes.c_uint64),
        ("argument_count", ctypes.c_uint64),
        ("arguments", ctypes.POINTER(_Argument)),
    ]


_Executor = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_LaunchRecord))


@dataclass
class Session:
    """`kernels`: the names of those executed, in order."""

    ops: Any
    kernels: list[str] = field(default_factory=list)


@functools.cache
def library() -> Library:
    """All kernels of csrc/cuda."""
    return Library([compile_ptx(source) for source in KERNEL_SOURCES])


@contextlib.contextmanager
def session(kernels: Library | None = None, **device: int) -> Iterator[Session]:
    """Executes the kernels of csrc/cuda, or `kernels` in their stead.

    `device`: sm_count and shared_bytes_per_block, as Emulator.session takes them.
    """
    emulator = emulation.load()
    session = Session(emulator.ops)
    with emulator.session(**device), executing(emulator, kernels or library(), session.kernels):
        yield session


@contextlib.contextmanager
def executing(emulator: emulation.Emulator, kernels: Library, executed: list[str]) -> Iterator[None]:
    """Executes launches of an emulator library from the PTX of `kernels`, and lists their names in `executed`.

    Raises:
        PtxError: what stopped a launch, whatever the op made of it.
    """
    failures: list[Exception] = []

    def execute(record: Any) -> int:
        try:
            name = _function_names(emulator.path)[record.contents.kernel]
            executed.append(name)
            program = kernels.program(name)
            run(program, _launch(program.kernel.name, record.contents), GlobalMemory(_buffers(emulator)))
        except Exception as failure:  # must not pass through the C++ between here and the op's caller
            failures.append(failure)
            return _LAUNCH_FAILURE
        return 0

    executor = _Executor(execute)
    emulator.library.fastdiff_emulator_set_executor(executor)
    try:
        yield
    except RuntimeError:
        if not failures:
            raise
    finally:
        emulator.library.fastdiff_emulator_set_executor(_Executor())
    if failures:
        raise failures[0]


def _launch(kernel: str, record: Any) -> Launch:
    return Launch(
        kernel=kernel,
        grid=tuple(record.grid),
        block=tuple(record.block),
        dynamic_shared_bytes=record.dynamic_shared_bytes,
        arguments=tuple(
            ctypes.string_at(record.arguments[index].data, record.arguments[index].bytes)
            for index in range(record.argument_count)
        ),
    )


def _buffers(emulator: emulation.Emulator) -> list[tuple[int, int]]:
    function = emulator.library.fastdiff_emulator_buffers
    function.restype = ctypes.c_size_t
    bounds = (ctypes.c_uint64 * 2 * function(None, ctypes.c_size_t(0)))()
    function(bounds, ctypes.c_size_t(len(bounds)))
    return [(begin, end) for begin, end in bounds]


@functools.cache
def _function_names(path: Path) -> dict[int, str]:
    """The demangled name of each function of an emulator library, by its offset."""
    symbols = subprocess.run(["nm", "--demangle", str(path)], capture_output=True, text=True, check=True).stdout
    fields = [line.split(maxsplit=2) for line in symbols.splitlines()]
    return {int(line[0], 16): line[2] for line in fields if len(line) == 3 and line[1] in "tTwW"}
