"""The state of threads: registers and memories, an array over all threads of some blocks at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from ptx.memory import SHARED_BASE, GenericMemory, GlobalMemory, Memory, WindowMemory
from ptx.scalars import TYPES, Array
from ptx.syntax import Kernel, PtxError

WARP = 32
# Which threads an instruction is executed for: all, or those with these numbers, in ascending order.
Lanes: TypeAlias = slice | Array
ALL: Lanes = slice(None)
_LANE_MASKS = {f"%lanemask_{which}" for which in ("eq", "lt", "le", "gt", "ge")}
SPECIAL_REGISTERS = {"%laneid", "%warpid", *_LANE_MASKS} | {
    f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"
}


@dataclass(frozen=True)
class Launch:
    """`kernel` is the PTX name; `arguments` are the bytes of each."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    dynamic_shared_bytes: int
    arguments: tuple[bytes, ...]


@dataclass(frozen=True)
class Frame:
    """Where a kernel's variables and parameters lie: `addresses` holds both, in their own state spaces."""

    addresses: dict[str, int]
    shared_bytes: int
    local_bytes: int
    parameter_bytes: bytes


def lay_out(kernel: Kernel, used: set[str], launch: Launch) -> Frame:
    """`used`: the variables that the kernel names; those of other kernels of its module take no room."""
    addresses = {}
    ends = {"shared": SHARED_BASE, "local": 0}
    # Dynamic shared memory comes after all that is static.
    for variable in sorted(kernel.variables.values(), key=lambda v: v.bytes is None):
        if variable.name not in used:
            continue
        begin = _round_up(ends[variable.space], variable.alignment)
        addresses[variable.name] = begin
        ends[variable.space] = begin + (launch.dynamic_shared_bytes if variable.bytes is None else variable.bytes)
    if len(kernel.parameters) != len(launch.arguments):
        raise PtxError(f"{kernel.name} has {len(kernel.parameters)} parameters, not {len(launch.arguments)}")
    parameters = b""
    for parameter, argument in zip(kernel.parameters, launch.arguments, strict=True):
        if parameter.bytes != len(argument):
            raise PtxError(f"{parameter.name} has {parameter.bytes} bytes, not {len(argument)}")
        parameters = parameters.ljust(_round_up(len(parameters), parameter.alignment), b"\0")
        addresses[parameter.name] = len(parameters)
        parameters += argument
    return Frame(addresses, ends["shared"] - SHARED_BASE, ends["local"], parameters)


class Threads:
    """The threads of some blocks of a launch. A block's last warp is filled up with threads that do not exist."""

    def __init__(self, kernel: Kernel, frame: Frame, launch: Launch, blocks: range, memory: GlobalMemory) -> None:
        self.frame = frame
        self._launch = launch
        block_threads = int(np.prod(launch.block))
        self.block_size = _round_up(block_threads, WARP)
        count = len(blocks) * self.block_size
        self.numbers = np.arange(count)
        self.lane_in_warp = (self.numbers % WARP).astype(np.uint32)
        self.exists = self.numbers % self.block_size < block_threads
        self.registers = {
            name: np.full(count, 0xFF, np.uint8).astype(bool)
            if kind == "pred"
            else np.full(count * TYPES[kind].bytes, 0xFF, np.uint8).view(f"u{TYPES[kind].bytes}")
            for name, kind in kernel.registers.items()
        }
        self.special = self._special_registers(blocks)
        block_of = self.numbers // self.block_size
        shared = WindowMemory("shared", SHARED_BASE, frame.shared_bytes, block_of)
        local = WindowMemory("local", 0, frame.local_bytes, self.numbers)
        parameters = WindowMemory("parameter", 0, len(frame.parameter_bytes), np.zeros(count, np.int64))
        parameters.storage[: len(frame.parameter_bytes)] = np.frombuffer(frame.parameter_bytes, np.uint8)
        self.memories: dict[str, Memory] = {
            "global": memory,
            "shared": shared,
            "local": local,
            "param": parameters,
            "generic": GenericMemory(memory, shared, local),
        }
        # Asynchronous copies not yet made, and how many groups each thread has committed.
        self.copies: list[PendingCopy] = []
        self.groups_committed = np.zeros(count, np.int64)

    def everyone(self) -> Lanes:
        return ALL if self.exists.all() else np.flatnonzero(self.exists)

    def select(self, lanes: Lanes, chosen: Array) -> Lanes | None:
        """Those of `lanes` for which the array `chosen` is true; None if there are none."""
        if chosen.all():
            return lanes
        if not chosen.any():
            return None
        return self.numbers[lanes][chosen]

    def present_lanes(self, lanes: Lanes) -> Array:
        """For each of `lanes`, the bits of those of its warp that are among them."""
        bits = np.zeros(len(self.numbers), np.uint64)
        bits[lanes] = np.uint64(1) << self.lane_in_warp[lanes].astype(np.uint64)
        of_warp = bits.reshape(-1, WARP).sum(axis=1, dtype=np.uint64).astype(np.uint32)
        return np.repeat(of_warp, WARP)[lanes]

    def describe(self, lane: int) -> str:
        tid, ctaid = ([int(self.special[f"{name}.{axis}"][lane]) for axis in "xyz"] for name in ("%tid", "%ctaid"))
        return f"block {tuple(ctaid)}, thread {tuple(tid)}"

    def _special_registers(self, blocks: range) -> dict[str, Array]:
        lane = self.lane_in_warp
        bit = np.uint32(1) << lane
        thread = self.numbers % self.block_size
        special = {
            "%laneid": lane,
            "%warpid": (thread // WARP).astype(np.uint32),
            "%lanemask_eq": bit,
            "%lanemask_lt": bit - np.uint32(1),
            "%lanemask_le": bit | (bit - np.uint32(1)),
            "%lanemask_ge": ~(bit - np.uint32(1)),
            "%lanemask_gt": ~(bit | (bit - np.uint32(1))),
        }
        block = np.asarray(blocks)[self.numbers // self.block_size]
        for name, numbers, extent in (("tid", thread, self._launch.block), ("ctaid", block, self._launch.grid)):
            for axis, size in zip("xyz", extent, strict=True):
                special[f"%{name}.{axis}"] = (numbers % size).astype(np.uint32)
                special[f"%n{name}.{axis}"] = np.full(len(self.numbers), size, np.uint32)
                numbers = numbers // size
        return special


@dataclass
class PendingCopy:
    """One cp.async of several threads, with an entry for each. `groups`: the number of the group it belongs to."""

    lanes: Array
    groups: Array
    sources: Array
    source_bytes: Array
    destinations: Array
    bytes: int

    def subset(self, chosen: Array) -> PendingCopy:
        return PendingCopy(
            lanes=self.lanes[chosen],
            groups=self.groups[chosen],
            sources=self.sources[chosen],
            source_bytes=self.source_bytes[chosen],
            destinations=self.destinations[chosen],
            bytes=self.bytes,
        )


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
