"""Launches handed over by the emulator: the kernels of tests/emulator/kernels.cu, executed from PTX."""

from __future__ import annotations

import contextlib
import ctypes
import re
from pathlib import Path

import emulation
import numpy as np
import pytest
from ptx import nvcc
from ptx.nvcc import Library
from ptx.replay import executing
from ptx.syntax import PtxError

pytestmark = pytest.mark.skipif(nvcc.missing_tools() is not None, reason=f"PTX interpreter: {nvcc.missing_tools()}")

KERNELS = Path(__file__).parent.parent / "emulator" / "kernels.cu"
VALUES = np.arange(1, 65, dtype=np.float32)


@pytest.fixture(scope="module")
def library() -> Library:
    return Library([nvcc.compile_ptx(KERNELS)])


def run(name: str, faulty: bool, library: Library | None) -> tuple[np.ndarray, list[str]]:
    """What a kernel makes of VALUES, from PTX if there is a library; and the names of the kernels so executed."""
    emulator = emulation.load_self_test()
    storage = np.zeros(64 + 4, np.float32)
    first = -storage.ctypes.data % 16 // 4
    data = storage[first : first + 64]
    data[:] = VALUES
    address = ctypes.c_void_p(data.ctypes.data)
    executed: list[str] = []
    emulator.library.fastdiff_emulator_register_buffer(address, ctypes.c_size_t(data.nbytes), 1)
    try:
        with executing(emulator, library, executed) if library else contextlib.nullcontext():
            emulator.library.run_self_test_kernel(name.encode(), int(faulty), address)
    finally:
        emulator.library.fastdiff_emulator_clear_buffers()
    return data, executed


@pytest.mark.parametrize("name", re.findall(r"^__global__ void (\w+)", KERNELS.read_text(), re.MULTILINE))
def test_ptx_does_what_the_emulator_does(library: Library, name: str) -> None:
    """Static and dynamic shared memory, barriers, shuffles, votes, templates in an unnamed namespace."""
    data, executed = run(name, False, library)
    expected, _ = run(name, False, None)
    np.testing.assert_array_equal(data, expected)
    assert len(executed) == 1 and name in executed[0]


FAULTS = {
    "out_of_bounds_read": "out of bounds",
    "out_of_bounds_write": "out of bounds",
    "out_of_bounds_dynamic": "out of bounds",
    "misaligned_load": "misaligned",
    "misaligned_store": "misaligned",
    "exit_before_barrier": "wait for threads that never come",
    "deadlock": "wait for threads that never come",
    "divergent_collective": "wait for threads that never come",
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_an_error_that_names_the_instruction(library: Library, name: str) -> None:
    with pytest.raises(PtxError, match=FAULTS[name] + r".*: line \d+: \w+"):
        run(name, True, library)


def test_the_emulator_takes_over_again(library: Library) -> None:
    with pytest.raises(PtxError):
        run("deadlock", True, library)
    with emulation.load_self_test().session() as session:
        data, _ = run("block_sum", False, None)
    assert session.blocks == 1 and (data == VALUES.sum()).all()


def test_kernel_without_ptx_is_an_error() -> None:
    with pytest.raises(PtxError, match="no PTX of the kernel .*block_sum"):
        run("block_sum", False, Library([]))
