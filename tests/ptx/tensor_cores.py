"""mma.sync and ldmatrix, by the PTX ISA's formulas for which element of a matrix a thread holds where.

Products are summed in float64 and rounded once. A tensor core rounds more often, in an order that NVIDIA does not tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ptx.decode import Decoding, Read, Step, decodes
from ptx.scalars import TYPES, Array, ScalarType, narrow, pack, unpack, widen
from ptx.syntax import Operand
from ptx.threads import WARP, Lanes, Threads

_LANE = np.arange(WARP)[:, None]
_GROUP = _LANE >> 2  # groupID of the PTX ISA
_MEMBER = _LANE % 4  # threadID_in_group


@dataclass(frozen=True)
class Fragment:
    """Row and column of each element that a lane holds: (32, elements), in the order of the registers."""

    rows: Array
    columns: Array

    def matrix(self, elements: Array, rows: int, columns: int) -> Array:
        """(warps, rows, columns) from (warps, 32, elements)."""
        result = np.full((len(elements), rows, columns), np.nan)
        result[:, self.rows, self.columns] = elements
        return result

    def elements(self, matrix: Array) -> Array:
        """(warps, 32, elements) from (warps, rows, columns)."""
        return matrix[:, self.rows, self.columns]


def fragments(k: int) -> tuple[Fragment, Fragment, Fragment]:
    """A (16, k), B (k, 8) and C or D (16, 8) of mma.m16n8k8 and mma.m16n8k16 with elements of 16 bits."""
    # PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type". Of k8, a4 to a7, b2 and b3 do not exist.
    i = np.arange(k // 2)[None, :]
    a = Fragment(_GROUP + np.where((i < 2) | ((i >= 4) & (i < 6)), 0, 8), _MEMBER * 2 + (i & 1) + np.where(i < 4, 0, 8))
    i = np.arange(k // 4)[None, :]
    b = Fragment(_MEMBER * 2 + (i & 1) + np.where(i < 2, 0, 8), _GROUP + 0 * i)
    i = np.arange(4)[None, :]
    c = Fragment(_GROUP + np.where(i < 2, 0, 8), _MEMBER * 2 + (i & 1))
    return a, b, c


@decodes("mma")
def _multiply(decoding: Decoding) -> Step:
    decoding.expect_operands(4)
    decoding.required("sync")
    decoding.required("aligned")
    k = {"m16n8k8": 8, "m16n8k16": 16}[decoding.required("m16n8k8", "m16n8k16")]
    decoding.required("row")  # A
    decoding.required("col")  # B
    d_type, a_type, b_type, c_type = (decoding.type() for _ in range(4))
    if a_type != b_type or a_type.name not in ("f16", "bf16"):
        raise decoding.error("of unknown types")
    a, b, c = fragments(k)
    d_operand, a_operand, b_operand, c_operand = decoding.operands
    read_a = _fragment_reader(decoding, a_operand, a_type, k // 2)
    read_b = _fragment_reader(decoding, b_operand, b_type, k // 4)
    read_c = _fragment_reader(decoding, c_operand, c_type, 4)
    write_d = _FragmentWriter(decoding, d_operand, d_type)

    def multiply(threads: Threads, lanes: Lanes) -> None:
        products = a.matrix(read_a(threads, lanes), 16, k) @ b.matrix(read_b(threads, lanes), k, 8)
        write_d(threads, lanes, c.elements(products + c.matrix(read_c(threads, lanes), 16, 8)))

    return multiply


def _fragment_reader(decoding: Decoding, operand: Operand, kind: ScalarType, elements: int) -> Read:
    """Reads (warps, 32, elements) as float64. 16-bit elements lie in pairs in 32-bit registers."""
    pairs = kind.bits == 16
    packed = TYPES[f"{kind.name}x2"] if pairs else kind
    readers = decoding.readers(decoding.vector(operand, elements // 2 if pairs else elements), packed)

    def read(threads: Threads, lanes: Lanes) -> Array:
        count = len(threads.numbers[lanes])
        values = np.empty((count, elements))
        column = 0
        for of_register in readers:
            bits = of_register(threads, lanes)
            for part in unpack(bits, packed) if pairs else (bits,):
                values[:, column] = widen(part, kind)
                column += 1
        return values.reshape(count // WARP, WARP, elements)

    return read


class _FragmentWriter:
    """Writes (warps, 32, 4), rounded to float32 or, in pairs, to float16."""

    def __init__(self, decoding: Decoding, operand: Operand, kind: ScalarType) -> None:
        if kind.name not in ("f16", "f32"):
            raise decoding.error(f"accumulates in .{kind.name}")
        self._kind = kind
        self._pairs = kind.bits == 16
        packed = TYPES["f16x2"] if self._pairs else kind
        self._writers = [decoding.writer(d, packed) for d in decoding.vector(operand, 2 if self._pairs else 4)]

    def __call__(self, threads: Threads, lanes: Lanes, elements: Array) -> None:
        columns = [narrow(column, self._kind) for column in elements.reshape(-1, 4).T]
        if self._pairs:
            columns = [pack(*columns[:2]), pack(*columns[2:])]
        for write, column in zip(self._writers, columns, strict=True):
            write(threads, lanes, column)


@decodes("ldmatrix")
def _load_matrices(decoding: Decoding) -> Step:
    """Lane 8 * m + r gives the address of row r of matrix m; each row is 8 elements of 16 bits, 16 bytes."""
    decoding.expect_operands(2)
    for name in ("sync", "aligned", "m8n8"):
        decoding.required(name)
    count = {"x1": 1, "x2": 2, "x4": 4}[decoding.required("x1", "x2", "x4")]
    transposed = decoding.flag("trans")
    decoding.required("shared", "shared::cta")
    if decoding.type() != TYPES["b16"]:
        raise decoding.error("of an unknown type")
    destination, address = decoding.operands
    writers = [decoding.writer(d, TYPES["b32"]) for d in decoding.vector(destination, count)]
    addresses = decoding.address(address)

    def load(threads: Threads, lanes: Lanes) -> None:
        numbers = threads.numbers[lanes].reshape(-1, WARP)
        at = np.broadcast_to(addresses(threads, lanes), numbers.size).reshape(-1, WARP)
        giving = slice(0, 8 * count)  # the addresses of the other lanes are not used
        rows = threads.memories["shared"].load(numbers[:, giving].ravel(), at[:, giving].ravel(), np.dtype("u2"), 8)
        matrices = rows.reshape(len(numbers), count, 8, 8)
        if transposed:
            matrices = matrices.swapaxes(2, 3)
        # A lane gets two neighbours of row lane / 4, columns 2 * (lane % 4) and the next.
        pairs = matrices.reshape(len(numbers), count, WARP, 2)
        for matrix, write in enumerate(writers):
            write(threads, lanes, pack(*np.moveaxis(pairs[:, matrix].reshape(-1, 2), 1, 0)))

    return load
