"""Turns instructions into steps: functions that execute them for many threads at a time.

A module that knows instructions registers them by `@decodes("add", "sub")`. Whatever an instruction says beyond what
its decoder asked about is an error: nothing is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from ptx.scalars import TYPES, Array, ScalarType
from ptx.syntax import SINK, Address, Immediate, Instruction, Kernel, Not, Operand, PtxError, Register, Symbol, Vector
from ptx.threads import SPECIAL_REGISTERS, Lanes, Threads

Step = Callable[[Threads, Lanes], None]
Read = Callable[[Threads, Lanes], Array]
Write = Callable[[Threads, Lanes, Array], None]
Decoder = Callable[["Decoding"], Step]

_DECODERS: dict[str, Decoder] = {}


def decodes(*opcodes: str) -> Callable[[Decoder], Decoder]:
    def register(decoder: Decoder) -> Decoder:
        for opcode in opcodes:
            if opcode in _DECODERS:
                raise ValueError(f"{opcode} has a decoder already")
            _DECODERS[opcode] = decoder
        return decoder

    return register


def decode(kernel: Kernel, instruction: Instruction) -> Step:
    decoder = _DECODERS.get(instruction.opcode)
    if decoder is None:
        raise instruction.error("unknown instruction")
    decoding = Decoding(kernel, instruction)
    step = decoder(decoding)
    if decoding.modifiers:
        raise instruction.error(f"unknown modifier .{decoding.modifiers[0]}")
    return step if instruction.guard is None else _guarded(decoding, step)


class Decoding:
    """An instruction while it is decoded. What a decoder understands of the modifiers it takes out of the list."""

    def __init__(self, kernel: Kernel, instruction: Instruction) -> None:
        self.instruction = instruction
        self.opcode = instruction.opcode
        self.operands = instruction.operands
        self.modifiers = list(instruction.modifiers)
        self._kernel = kernel

    def error(self, what: str) -> PtxError:
        return self.instruction.error(what)

    def flag(self, name: str) -> bool:
        """Whether the instruction has this modifier."""
        if name not in self.modifiers:
            return False
        self.modifiers.remove(name)
        return True

    def one_of(self, *names: str) -> str | None:
        """The first modifier that is one of these."""
        found = next((name for name in self.modifiers if name in names), None)
        if found:
            self.modifiers.remove(found)
        return found

    def required(self, *names: str) -> str:
        found = self.one_of(*names)
        if found is None:
            raise self.error(f"without any of .{', .'.join(names)}")
        return found

    def type(self) -> ScalarType:
        """The next type among the modifiers."""
        return TYPES[self.required(*TYPES)]

    def expect_operands(self, *counts: int) -> None:
        if len(self.operands) not in counts:
            raise self.error(f"{len(self.operands)} operands instead of {counts}")

    def reader(self, operand: Operand, kind: ScalarType, may_be_wider: bool = False) -> Read:
        """Reads an operand as an array of the type, with one element if it is the same for all threads.

        `may_be_wider`: of a wider register, the low bits are read.
        """
        dtype = kind.dtype
        if isinstance(operand, Register):
            name, bits = operand.name, self._bits_of(operand)
            if bits == kind.bits:
                if kind.name == "pred":
                    return lambda threads, lanes: threads.registers[name][lanes]
                return lambda threads, lanes: threads.registers[name][lanes].view(dtype)
            if may_be_wider and bits > kind.bits:
                raw = np.dtype(f"u{kind.bytes}")
                return lambda threads, lanes: threads.registers[name][lanes].astype(raw).view(dtype)
            raise self.error(f"{name} has {bits} bits, not {kind.bits}")
        if isinstance(operand, Not) and kind.name == "pred":
            name = operand.register.name
            return lambda threads, lanes: ~threads.registers[name][lanes]
        if isinstance(operand, Immediate):
            constant = self._constant(operand.text, kind)
            return lambda threads, lanes: constant
        if isinstance(operand, Symbol) and operand.name.startswith("%"):
            return self._special_reader(operand.name, kind)
        if isinstance(operand, Symbol):
            return self._address_reader(operand.name, dtype)
        raise self.error(f"unexpected operand {operand}")

    def readers(self, operands: Sequence[Operand], kind: ScalarType) -> list[Read]:
        return [self.reader(operand, kind) for operand in operands]

    def writer(self, operand: Operand, kind: ScalarType, may_be_wider: bool = False) -> Write:
        """Writes an array of the type. `may_be_wider`: a wider register is filled by sign or with zeros."""
        if operand == SINK:
            return lambda threads, lanes, value: None
        if not isinstance(operand, Register):
            raise self.error(f"unexpected destination {operand}")
        name, bits = operand.name, self._bits_of(operand)
        if kind.name == "pred" and bits == 1:
            return lambda threads, lanes, value: _put(threads, name, lanes, value)
        raw = np.dtype(f"u{max(bits, 8) // 8}")
        if bits == kind.bits:
            return lambda threads, lanes, value: _put(threads, name, lanes, value.view(raw))
        if may_be_wider and bits > kind.bits and not kind.is_float:
            wide = np.dtype(f"{kind.dtype.kind}{bits // 8}")
            return lambda threads, lanes, value: _put(threads, name, lanes, value.astype(wide).view(raw))
        raise self.error(f"{name} has {bits} bits, not {kind.bits}")

    def vector(self, operand: Operand, count: int) -> tuple[Operand, ...]:
        """The elements of a vector operand; of a single one, itself."""
        elements = operand.elements if isinstance(operand, Vector) else (operand,)
        if len(elements) != count:
            raise self.error(f"{len(elements)} elements instead of {count}")
        return elements

    def address(self, operand: Operand) -> Read:
        """The addresses that "[%rd1+16]" names, as uint64."""
        if not isinstance(operand, Address):
            raise self.error(f"not an address: {operand}")
        if isinstance(operand.base, Register) and self._bits_of(operand.base) == 32:
            narrow, offset32 = self.reader(operand.base, TYPES["u32"]), np.int64(operand.offset)
            return lambda threads, lanes: (narrow(threads, lanes).astype(np.int64) + offset32).astype(np.uint64)
        base, offset = self.reader(operand.base, TYPES["u64"]), np.array([operand.offset], np.int64).view(np.uint64)
        return lambda threads, lanes: base(threads, lanes) + offset

    def elementwise(self, destination: Write, function: Callable[..., Array], sources: Sequence[Read]) -> Step:
        """The step that applies a function of arrays."""

        def step(threads: Threads, lanes: Lanes) -> None:
            destination(threads, lanes, function(*[source(threads, lanes) for source in sources]))

        return step

    def _bits_of(self, register: Register) -> int:
        return TYPES[self._kernel.registers[register.name]].bits

    def _constant(self, text: str, kind: ScalarType) -> Array:
        if text[:2] in ("0f", "0F", "0d", "0D"):
            bytes_ = 4 if text[1] in "fF" else 8
            value = np.array([int(text[2:], 16)], f"u{bytes_}")
            if kind.bytes != bytes_:
                raise self.error(f"{text} is not of {kind.bits} bits")
            return value.view(kind.dtype)
        number = int(text.removesuffix("U"), 0)
        if kind.name == "pred":
            return np.array([number != 0])
        if kind.is_float:
            raise self.error(f"{text} is not a floating-point constant")
        return np.array([number % (1 << kind.bits)], f"u{kind.bytes}").view(kind.dtype)

    def _special_reader(self, name: str, kind: ScalarType) -> Read:
        if name not in SPECIAL_REGISTERS:
            raise self.error(f"unknown special register {name}")

        def read(threads: Threads, lanes: Lanes) -> Array:
            return threads.special[name][lanes].astype(f"u{kind.bytes}").view(kind.dtype)

        return read

    def _address_reader(self, name: str, dtype: np.dtype) -> Read:
        if name not in self._kernel.variables and name not in (p.name for p in self._kernel.parameters):
            raise self.error(f"unknown variable {name}")

        def read(threads: Threads, lanes: Lanes) -> Array:
            return np.array([threads.frame.addresses[name]], f"u{dtype.itemsize}").view(dtype)

        return read


def _put(threads: Threads, name: str, lanes: Lanes, value: Array) -> None:
    threads.registers[name][lanes] = value


def _guarded(decoding: Decoding, step: Step) -> Step:
    guard = decoding.instruction.guard
    assert guard is not None
    predicate = decoding.reader(guard, TYPES["pred"])

    def guarded(threads: Threads, lanes: Lanes) -> None:
        chosen = threads.select(lanes, predicate(threads, lanes))
        if chosen is not None:
            step(threads, chosen)

    return guarded
