"""Executes kernels: basic blocks of instructions, for all threads that are at the same place.

Of the places where threads are, the first in the text goes on, so that threads which parted meet again behind the
branch. Where threads must come together (a barrier, a shuffle, an mma), those that have come wait for the others. So
the order of threads is one of many that a GPU may choose, and no race shows: that is the emulator's part.
"""

from __future__ import annotations

import functools
import heapq
from dataclasses import dataclass

import numpy as np
from ptx import comparisons, conversions, floats, integers, movement, tensor_cores, warps  # noqa: F401  decoders
from ptx.decode import Decoding, Read, Step, decode
from ptx.memory import GlobalMemory, MemoryFault
from ptx.scalars import TYPES, Array
from ptx.syntax import Address, Instruction, Kernel, Operand, PtxError, Symbol, Vector
from ptx.threads import ALL, Lanes, Launch, Threads, lay_out

_CONTROL = ("bra", "ret", "exit")
# An end to loops without one, and the memory that the registers of the threads executed at a time may take.
_MAX_BLOCKS_EXECUTED = 3_000_000
_REGISTER_BYTES = 64 << 20


@dataclass
class BasicBlock:
    """Instructions executed one after the other by whoever executes the first.

    `control` is the branch or return at the end; without one, threads go on to the next block.
    """

    kernel: Kernel
    instructions: list[Instruction]
    control: Instruction | None
    executed: bool = False

    @functools.cached_property
    def steps(self) -> list[tuple[Instruction, Step]]:
        return [(instruction, decode(self.kernel, instruction)) for instruction in self.instructions]

    @functools.cached_property
    def ready(self) -> warps.Ready | None:
        return warps.readiness(self.kernel, self.instructions[0]) if self.instructions else None

    @functools.cached_property
    def condition(self) -> Read | None:
        """Of a conditional branch or return."""
        if self.control is None or self.control.guard is None:
            return None
        return Decoding(self.kernel, self.control).reader(self.control.guard, TYPES["pred"])


class Program:
    """A kernel in basic blocks. Instructions are decoded when they are first executed."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        begins = self._begins()
        self.blocks: list[BasicBlock] = []
        for begin, end in zip(begins, [*begins[1:], len(kernel.instructions)], strict=True):
            instructions = kernel.instructions[begin:end]
            control = instructions.pop() if instructions and instructions[-1].opcode in _CONTROL else None
            self.blocks.append(BasicBlock(kernel, instructions, control))
        block_at = {begin: index for index, begin in enumerate(begins)}
        self.block_of_label = {label: block_at.get(begin, len(begins)) for label, begin in kernel.labels.items()}
        self.symbols = {symbol for i in kernel.instructions for operand in i.operands for symbol in _symbols(operand)}

    def decode_all(self) -> list[PtxError]:
        """What is unknown in this kernel, executed or not."""
        found = []
        for block in self.blocks:
            for instruction in block.instructions:
                try:
                    decode(self.kernel, instruction)
                    warps.readiness(self.kernel, instruction)
                except PtxError as error:
                    found.append(error)
            if block.control is not None:
                try:
                    self.target(block.control)
                except PtxError as error:
                    found.append(error)
        return found

    def target(self, control: Instruction) -> int:
        """The block that a branch goes to; behind the last one for a return."""
        if control.opcode != "bra":
            return len(self.blocks)
        (label,) = control.operands
        if not isinstance(label, Symbol) or label.name not in self.block_of_label:
            raise control.error("unknown label")
        return self.block_of_label[label.name]

    def _begins(self) -> list[int]:
        instructions = self.kernel.instructions
        begins = {0, *self.kernel.labels.values()}
        for index, instruction in enumerate(instructions):
            if instruction.opcode in _CONTROL:
                begins.add(index + 1)
            elif instruction.opcode in warps.TOGETHER:
                begins.add(index)
        return sorted(begin for begin in begins if begin < len(instructions))


def run(program: Program, launch: Launch, memory: GlobalMemory) -> None:
    """Executes a launch on `memory`.

    Raises:
        PtxError: an instruction is unknown, accesses what it must not, or threads wait for ever.
    """
    kernel = program.kernel
    if kernel.name != launch.kernel:
        raise ValueError(f"a launch of {launch.kernel}, not of {kernel.name}")
    frame = lay_out(kernel, program.symbols, launch)
    blocks = int(np.prod(launch.grid))
    thread_bytes = sum(TYPES[kind].bits for kind in kernel.registers.values()) // 8 + 1
    at_once = max(1, _REGISTER_BYTES // (thread_bytes * int(np.prod(launch.block))))
    with np.errstate(all="ignore"):
        for first in range(0, blocks, at_once):
            some = range(first, min(first + at_once, blocks))
            _Execution(program, Threads(kernel, frame, launch, some, memory)).run()


class _Execution:
    def __init__(self, program: Program, threads: Threads) -> None:
        self.program = program
        self.threads = threads
        self._arrived: dict[int, list[Lanes]] = {}  # by basic block
        self._runnable: list[int] = []  # a heap of the blocks where threads have arrived since it was last tried

    def run(self) -> None:
        self._arrive(0, self.threads.everyone())
        for _ in range(_MAX_BLOCKS_EXECUTED):
            if not self._runnable:
                break
            index = heapq.heappop(self._runnable)
            if index not in self._arrived:
                continue  # it was there twice
            lanes = self._take_ready(index)
            if lanes is not None:
                self._execute(index, lanes)
        else:
            raise PtxError(f"{self.program.kernel.name} does not come to an end")
        if self._arrived:
            self._report_deadlock()

    def _arrive(self, index: int, lanes: Lanes) -> None:
        if index < len(self.program.blocks):  # else these threads are done
            self._arrived.setdefault(index, []).append(lanes)
            heapq.heappush(self._runnable, index)

    def _take_ready(self, index: int) -> Lanes | None:
        """The threads that may execute the block; the others stay where they are."""
        lanes = self._merged(self._arrived.pop(index))
        ready = self.program.blocks[index].ready
        if ready is None:
            return lanes
        may_go = ready(self.threads, lanes)
        waiting = self.threads.select(lanes, ~may_go)
        if waiting is not None:
            self._arrived[index] = [waiting]
        return self.threads.select(lanes, may_go)

    def _merged(self, groups: list[Lanes]) -> Lanes:
        if len(groups) == 1:
            return groups[0]
        lanes = np.sort(np.concatenate([self.threads.numbers[group] for group in groups]))
        return ALL if len(lanes) == len(self.threads.numbers) else lanes

    def _execute(self, index: int, lanes: Lanes) -> None:
        block = self.program.blocks[index]
        block.executed = True
        for instruction, step in block.steps:
            try:
                step(self.threads, lanes)
            except MemoryFault as fault:
                raise instruction.error(f"{fault}, by {self.threads.describe(fault.lane)}") from None
        if block.control is None:
            self._arrive(index + 1, lanes)
        elif block.condition is None:
            self._arrive(self.program.target(block.control), lanes)
        else:
            chosen = block.condition(self.threads, lanes)
            for goes, to in ((chosen, self.program.target(block.control)), (~chosen, index + 1)):
                some = self.threads.select(lanes, goes)
                if some is not None:
                    self._arrive(to, some)

    def _report_deadlock(self) -> None:
        index, groups = next(iter(self._arrived.items()))
        lanes: Array = self.threads.numbers[self._merged(groups)]
        first = self.program.blocks[index].instructions[0]
        who = f"{len(lanes)} threads, the first of them {self.threads.describe(int(lanes[0]))}"
        raise first.error(f"{who}, wait for threads that never come")


def _symbols(operand: Operand) -> list[str]:
    if isinstance(operand, Symbol):
        return [operand.name]
    if isinstance(operand, Address):
        return _symbols(operand.base)
    if isinstance(operand, Vector):
        return [symbol for element in operand.elements for symbol in _symbols(element)]
    return []
