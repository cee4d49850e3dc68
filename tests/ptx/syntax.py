"""Reads PTX text: kernels, their variables and registers, and instructions with their operands.

Only the grammar is known here. What an instruction means, and whether it is known at all, is decode.py's concern.
"""

from __future__ import annotations

import bisect
import functools
import re
from dataclasses import dataclass, field


class PtxError(Exception):
    """PTX that the interpreter does not know, or that does what no GPU allows."""


@dataclass(frozen=True)
class Register:
    name: str  # unique in its kernel: registers of an inner scope carry the number of the scope


@dataclass(frozen=True)
class Immediate:
    text: str


@dataclass(frozen=True)
class Symbol:
    """A variable, a parameter or a label."""

    name: str


@dataclass(frozen=True)
class Address:
    base: Register | Symbol | Immediate
    offset: int


@dataclass(frozen=True)
class Vector:
    elements: tuple[Operand, ...]


@dataclass(frozen=True)
class Both:
    """Two destinations, as in "%r1|%p1"."""

    first: Operand
    second: Operand


@dataclass(frozen=True)
class Not:
    register: Register


Operand = Register | Immediate | Symbol | Address | Vector | Both | Not
SINK = Symbol("_")


@dataclass(frozen=True)
class Instruction:
    line: int  # in the PTX file
    text: str
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | Not | None
    in_inline_asm: bool

    def error(self, what: str) -> PtxError:
        return PtxError(f"{what}: line {self.line}: {self.text}")


@dataclass(frozen=True)
class Parameter:
    name: str
    bytes: int
    alignment: int


@dataclass(frozen=True)
class Variable:
    name: str
    space: str  # "shared" or "local"
    bytes: int | None  # None: dynamic shared memory
    alignment: int


@dataclass
class Kernel:
    """A kernel's parts in the order of the text. `labels`: index of the instruction that follows each."""

    name: str
    parameters: list[Parameter]
    variables: dict[str, Variable] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)  # the type of each that is used, as "b32"
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


_TYPE_BYTES = {"8": 1, "16": 2, "32": 4, "64": 8, "128": 16}
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)[^{;]*\{")
_POINTER = r"\.ptr\s+(?:\.[a-z]+\s+)?\.align\s+\d+\s+"  # what is known of the memory behind a parameter
_PARAMETER = re.compile(rf"\.param\s+(?:\.align\s+(\d+)\s+)?\.[a-z]+(\d+)\s+(?:{_POINTER})?([\w$]+)(?:\[(\d+)\])?$")
_VARIABLE = re.compile(
    r"(\.extern\s+)?\.(shared|local)\s+(?:\.align\s+(\d+)\s+)?\.[a-z]+(\d+)\s+([\w$]+)((?:\[\d*\])*)"
)
_STATEMENT = re.compile(r"\s*(?:([{}])|([\w$%]+)\s*:(?!:)|([^;{}\s][^;]*);|;)")
_REGISTERS = re.compile(r"([%\w$]+)(?:<(\d+)>)?")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
_NUMBER = re.compile(r"[-+]?(?:0[xX][0-9a-fA-F]+|0[fFdD][0-9a-fA-F]+|\d+)U?$")
_IGNORED_DIRECTIVES = (".pragma",)


class Module:
    """The kernels of a PTX file, each parsed when it is first asked for."""

    def __init__(self, text: str) -> None:
        self._text = _without_comments(text)
        self._lines = [match.start() for match in re.finditer("\n", self._text)]
        self._bodies: dict[str, tuple[str, int]] = {}  # name: parameters, where the body begins
        outside, last = [], 0
        for entry in _ENTRY.finditer(self._text):
            self._bodies[entry[1]] = (entry[2], entry.end())
            outside.append(self._text[last : entry.start()])
            last = _closing_brace(self._text, entry.end())
        outside.append(self._text[last:])
        self._variables = {v.name: v for text in outside for v in map(_variable, _VARIABLE.finditer(text))}
        self._kernels: dict[str, Kernel] = {}

    @property
    def names(self) -> list[str]:
        return list(self._bodies)

    def kernel(self, name: str) -> Kernel:
        if name not in self._kernels:
            parameters, begin = self._bodies[name]
            parser = _BodyParser(Kernel(name, _parameters(parameters), dict(self._variables)))
            position = begin
            while parser.depth:
                statement = _STATEMENT.match(self._text, position)
                if statement is None:
                    raise PtxError(f"not a statement: {self._text[position : position + 80]!r}")
                parser.statement(statement, bisect.bisect(self._lines, statement.start(statement.lastindex or 0)) + 1)
                position = statement.end()
            self._kernels[name] = parser.kernel
        return self._kernels[name]


class _BodyParser:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.depth = 1
        self._in_inline_asm = False
        self._scopes: list[tuple[int, dict[str, str], dict[str, str]]] = [(0, {}, {})]  # number, registers, ranges
        self._scope_count = 0

    def statement(self, match: re.Match[str], line: int) -> None:
        brace, label, text = match.groups()
        if brace == "{":
            self.depth += 1
            self._scope_count += 1
            self._scopes.append((self._scope_count, {}, {}))
        elif brace == "}":
            self.depth -= 1
            self._scopes.pop()
        elif label:
            if label in self.kernel.labels:
                raise PtxError(f"line {line}: the label {label} appears twice")
            self.kernel.labels[label] = len(self.kernel.instructions)
        elif text and text.startswith("."):
            self._directive(text, line)
        elif text:
            self.kernel.instructions.append(self._instruction(" ".join(text.split()), line))

    def _directive(self, text: str, line: int) -> None:
        if text in (_BEGIN_INLINE_ASM, _END_INLINE_ASM):
            self._in_inline_asm = text == _BEGIN_INLINE_ASM
        elif text.startswith(".reg"):
            _, type_name, names = text.split(maxsplit=2)
            _, registers, ranges = self._scopes[-1]
            for name, count in _REGISTERS.findall(names):
                (ranges if count else registers)[name] = type_name[1:]
        elif variable := _VARIABLE.match(text):
            self.kernel.variables[variable[5]] = _variable(variable)
        elif not text.startswith(_IGNORED_DIRECTIVES):
            raise PtxError(f"line {line}: unknown directive: {text}")

    def _instruction(self, text: str, line: int) -> Instruction:
        guard: Operand | None = None
        head, _, rest = text.partition(" ")
        if head.startswith("@"):
            guard = self._operand(head[1:])
            head, _, rest = rest.partition(" ")
        opcode, *modifiers = head.split(".")
        parts = _OPERAND.findall(rest)
        if re.sub(r"[,\s]", "", "".join(parts)) != re.sub(r"[,\s]", "", rest):
            raise PtxError(f"line {line}: unknown operands: {text}")
        operands = tuple(self._operand(part.strip()) for part in parts)
        if not (guard is None or isinstance(guard, (Register, Not))):
            raise PtxError(f"line {line}: not a predicate: {text}")
        return Instruction(line, text, opcode, tuple(modifiers), operands, guard, self._in_inline_asm)

    def _operand(self, text: str) -> Operand:
        if text[0] == "{":
            return Vector(tuple(self._operand(part.strip()) for part in text[1:-1].split(",")))
        if text[0] == "[":
            return self._address(text[1:-1].strip())
        if text[0] == "!":
            negated = self._operand(text[1:])
            if isinstance(negated, Register):
                return Not(negated)
        elif "|" in text:
            first, second = text.split("|")
            return Both(self._operand(first.strip()), self._operand(second.strip()))
        elif register := self._register(text):
            return register
        elif _NUMBER.match(text):
            return Immediate(text)
        elif re.match(r"[\w$%.]+$", text):
            return Symbol(text)
        raise PtxError(f"unknown operand {text!r}")

    def _address(self, text: str) -> Address:
        parts = re.fullmatch(r"([\w$%]+)\s*(?:([-+])\s*([-+]?\w+))?", text)
        if parts is None:
            raise PtxError(f"unknown address {text!r}")
        base, sign, offset = parts.groups()
        operand = self._operand(base)
        assert isinstance(operand, (Register, Symbol, Immediate))
        return Address(operand, int(f"{sign}1") * int(offset, 0) if sign else 0)

    def _register(self, name: str) -> Register | None:
        """The register that `name` means here; None if it is none."""
        prefix = name.rstrip("0123456789")
        for scope, registers, ranges in reversed(self._scopes):
            declared = registers.get(name) or (ranges.get(prefix) if prefix != name else None)
            if declared:
                unique = f"{name}@{scope}" if scope else name
                self.kernel.registers[unique] = declared
                return Register(unique)
        return None


def _parameters(text: str) -> list[Parameter]:
    parameters = []
    for declaration in filter(None, map(str.strip, text.split(","))):
        match = _PARAMETER.match(declaration)
        if match is None:
            raise PtxError(f"unknown kind of parameter: {declaration}")
        alignment, bits, name, count = match.groups()
        bytes_ = _TYPE_BYTES[bits]
        parameters.append(Parameter(name, bytes_ * int(count or 1), int(alignment or bytes_)))
    return parameters


def _variable(match: re.Match[str]) -> Variable:
    extern, space, alignment, bits, name, extents = match.groups()
    sizes = [int(extent) for extent in re.findall(r"\d+", extents)]
    count = functools.reduce(int.__mul__, sizes, 1)
    element = _TYPE_BYTES[bits]
    return Variable(name, space, None if extern else element * count, int(alignment or element))


# Stand in the text for nvcc's comments around inline assembly.
_BEGIN_INLINE_ASM = ".begin_inline_asm"
_END_INLINE_ASM = ".end_inline_asm"


def _without_comments(text: str) -> str:
    text = re.sub(r"/\*.*?\*/", lambda comment: "\n" * comment[0].count("\n"), text, flags=re.DOTALL)
    text = text.replace("// begin inline asm", f"{_BEGIN_INLINE_ASM};")
    text = text.replace("// end inline asm", f"{_END_INLINE_ASM};")
    return re.sub(r"//[^\n]*", "", text)


def _closing_brace(text: str, begin: int) -> int:
    depth = 1
    for brace in re.compile("[{}]").finditer(text, begin):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.end()
    raise PtxError("a brace is not closed")
