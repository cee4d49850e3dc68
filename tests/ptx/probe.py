"""Small kernels for the interpreter's own tests: written as PTX, or compiled from CUDA."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from ptx.machine import Program, run
from ptx.memory import GlobalMemory
from ptx.syntax import Module
from ptx.threads import Launch

_TYPES = {"i1": "s8", "u1": "u8", "i2": "s16", "u2": "b16", "i4": "s32", "u4": "b32", "i8": "s64", "u8": "b64"} | {
    "f4": "f32",
    "f8": "f64",
}


def evaluate(
    body: str, outputs: dict[str, str], shared_bytes: int = 0, **inputs: np.ndarray | Sequence[float]
) -> list[np.ndarray]:
    """Executes PTX instructions once a thread, in one block, and returns the outputs, named with their numpy types.

    >>> evaluate("add.s32 %d, %a, %b;", {"d": "i4"}, a=np.int32([1, 2]), b=np.int32([10, 20]))
    [array([11, 22], dtype=int32)]

    The registers %a ... are the inputs of the thread, %d ... its outputs; %thread is its number and `buffer` shared
    memory. The body may declare more registers, and labels.
    """
    arrays = {name: np.ascontiguousarray(values) for name, values in inputs.items()}
    threads = max((len(array) for array in arrays.values()), default=32)
    results = {name: np.zeros(threads, dtype) for name, dtype in outputs.items()}
    lines = [".reg .b32 %thread;", ".reg .b64 %at, %base;", "mov.u32 %thread, %tid.x;"]
    if shared_bytes:
        lines.append(f".shared .align 16 .b8 buffer[{shared_bytes}];")
    for name, array in (arrays | results).items():
        lines.append(f".reg .b{max(16, array.itemsize * 8)} %{name};")
    for name, array in arrays.items():
        lines += [*_address_of(name, array), f"ld.global.{_type_of(array)} %{name}, [%at];"]
    lines.append(body)
    for name, array in results.items():
        lines += [*_address_of(name, array), f"st.global.{_type_of(array)} [%at], %{name};"]
    parameters = ", ".join(f".param .u64 {name}_param" for name in arrays | results)
    text = f".visible .entry probe({parameters})\n{{\n" + "\n".join(lines) + "\nret;\n}\n"
    program = Program(Module(text).kernel("probe"))
    launch_program(program, 1, threads, [*arrays.values(), *results.values()])
    return list(results.values())


def launch_program(
    program: Program, blocks: int, threads: int, arguments: Sequence[np.ndarray | int], dynamic_shared_bytes: int = 0
) -> None:
    """Executes a kernel whose parameters are pointers to arrays and 32-bit integers."""
    arrays = [argument for argument in arguments if isinstance(argument, np.ndarray)]
    packed = [
        struct.pack("P", argument.ctypes.data) if isinstance(argument, np.ndarray) else struct.pack("i", argument)
        for argument in arguments
    ]
    launch = Launch(program.kernel.name, (blocks, 1, 1), (threads, 1, 1), dynamic_shared_bytes, tuple(packed))
    run(program, launch, GlobalMemory((array.ctypes.data, array.ctypes.data + array.nbytes) for array in arrays))


def _type_of(array: np.ndarray) -> str:
    return _TYPES[array.dtype.str[1:]]


def _address_of(name: str, array: np.ndarray) -> list[str]:
    """Instructions that leave the address of the thread's element in %at."""
    return [
        f"ld.param.u64 %base, [{name}_param];",
        f"mad.wide.u32 %at, %thread, {array.itemsize}, %base;",
    ]
