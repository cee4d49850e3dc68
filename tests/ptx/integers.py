"""Integer arithmetic, bits and predicates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ptx.decode import Decoding, Step, decodes
from ptx.scalars import TYPES, Array, ScalarType

Function = Callable[..., Array]


def high_product(a: Array, b: Array) -> Array:
    """The upper half of the product, of the type of a and b."""
    bits = a.dtype.itemsize * 8
    if bits <= 32:
        wide = np.dtype(f"{a.dtype.kind}{bits // 4}")
        return ((a.astype(wide) * b.astype(wide)) >> bits).astype(a.dtype)
    x, y = a.view(np.uint64), b.view(np.uint64)
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    middle = (x >> half) * (y & mask) + ((x & mask) * (y & mask) >> half)
    carried = (x & mask) * (y >> half) + (middle & mask)
    high = (x >> half) * (y >> half) + (middle >> half) + (carried >> half)
    if a.dtype.kind == "i":  # a negative factor was read as 2**64 too much
        high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return high.view(a.dtype)


def quotient(a: Array, b: Array) -> Array:
    """Rounded towards zero. Division by zero gives all ones, one of the values that a GPU is free to give."""
    a, b = np.broadcast_arrays(a, b)
    safe = np.where(b == 0, b.dtype.type(1), b)
    result = a // safe
    if a.dtype.kind == "i":
        result = result + ((a % safe != 0) & ((a < 0) != (safe < 0)))
    return np.where(b == 0, ~np.zeros_like(b), result).astype(a.dtype)


def remainder(a: Array, b: Array) -> Array:
    return (a - quotient(a, b) * b).astype(a.dtype)


def shift_left(a: Array, amount: Array) -> Array:
    bits = a.dtype.itemsize * 8
    return np.where(amount < bits, a << np.minimum(amount, bits - 1).astype(a.dtype), a.dtype.type(0))


def shift_right(a: Array, amount: Array) -> Array:
    bits = a.dtype.itemsize * 8
    shifted = a >> np.minimum(amount, bits - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(amount < bits, shifted, a.dtype.type(0))


_BINARY: dict[str, Function] = {"add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum}
_LOGIC: dict[str, Function] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


def binary(decoding: Decoding, kind: ScalarType) -> Step:
    """add, sub, min or max of integers."""
    decoding.expect_operands(3)
    destination, *sources = decoding.operands
    return decoding.elementwise(
        decoding.writer(destination, kind), _BINARY[decoding.opcode], decoding.readers(sources, kind)
    )


def product(decoding: Decoding, kind: ScalarType) -> Step:
    """mul or mad of integers, .lo, .hi or .wide."""
    decoding.expect_operands(4 if decoding.opcode == "mad" else 3)
    half = decoding.required("lo", "hi", "wide")
    result = TYPES[f"{kind.name[0]}{kind.bits * 2}"] if half == "wide" else kind

    def multiply(a: Array, b: Array, *addend: Array) -> Array:
        if half == "hi":
            value = high_product(*np.broadcast_arrays(a, b))
        else:
            value = a.astype(result.dtype) * b.astype(result.dtype)
        return value + addend[0] if addend else value

    destination, a, b, *addend = decoding.operands
    readers = [*decoding.readers((a, b), kind), *decoding.readers(addend, result)]
    return decoding.elementwise(decoding.writer(destination, result), multiply, readers)


@decodes("rem")
def _remainder(decoding: Decoding) -> Step:
    return division(decoding, decoding.type())


def division(decoding: Decoding, kind: ScalarType) -> Step:
    decoding.expect_operands(3)
    if not kind.is_integer:
        raise decoding.error("not of integers")
    destination, *sources = decoding.operands
    function = quotient if decoding.opcode == "div" else remainder
    return decoding.elementwise(decoding.writer(destination, kind), function, decoding.readers(sources, kind))


@decodes("and", "or", "xor")
def _logic(decoding: Decoding) -> Step:
    decoding.expect_operands(3)
    kind = decoding.type()
    destination, *sources = decoding.operands
    return decoding.elementwise(
        decoding.writer(destination, kind), _LOGIC[decoding.opcode], decoding.readers(sources, kind)
    )


@decodes("not")
def _not(decoding: Decoding) -> Step:
    decoding.expect_operands(2)
    kind = decoding.type()
    destination, source = decoding.operands
    return decoding.elementwise(decoding.writer(destination, kind), np.bitwise_not, [decoding.reader(source, kind)])


@decodes("shl", "shr")
def _shift(decoding: Decoding) -> Step:
    decoding.expect_operands(3)
    kind = decoding.type()
    destination, value, amount = decoding.operands
    readers = [decoding.reader(value, kind), decoding.reader(amount, TYPES["u32"])]
    function = shift_left if decoding.opcode == "shl" else shift_right
    return decoding.elementwise(decoding.writer(destination, kind), function, readers)


@decodes("shf")
def _funnel_shift(decoding: Decoding) -> Step:
    decoding.expect_operands(4)
    direction, mode = decoding.required("l", "r"), decoding.required("wrap", "clamp")
    kind = decoding.type()
    destination, *sources = decoding.operands

    def shift(low: Array, high: Array, amount: Array) -> Array:
        both = low.astype(np.uint64) | (high.astype(np.uint64) << np.uint64(32))
        amount = (amount & np.uint32(31) if mode == "wrap" else np.minimum(amount, np.uint32(32))).astype(np.uint64)
        shifted = (both << amount) >> np.uint64(32) if direction == "l" else both >> amount
        return shifted.astype(np.uint32)

    return decoding.elementwise(decoding.writer(destination, kind), shift, decoding.readers(sources, kind))


@decodes("bfe")
def _bit_field_extract(decoding: Decoding) -> Step:
    decoding.expect_operands(4)
    kind = decoding.type()
    destination, value, position, length = decoding.operands
    readers = [decoding.reader(value, kind), *decoding.readers((position, length), TYPES["u32"])]

    def extract(a: Array, position: Array, length: Array) -> Array:
        position, length = position & np.uint32(0xFF), length & np.uint32(0xFF)
        if kind.is_signed:  # the sign is the field's last bit, or the value's where the field reaches beyond it
            above = np.maximum(kind.bits - position.astype(np.int64) - length, 0).astype(np.uint32)
            field = shift_right(shift_left(a, above), above + position)
        else:
            field = shift_right(a, position) & ~shift_left(~np.zeros_like(a), length)
        return np.where(length == 0, kind.dtype.type(0), field)

    return decoding.elementwise(decoding.writer(destination, kind), extract, readers)


@decodes("prmt")
def _permute_bytes(decoding: Decoding) -> Step:
    decoding.expect_operands(4)
    kind = decoding.type()
    destination, *sources = decoding.operands

    def permute(a: Array, b: Array, selector: Array) -> Array:
        both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
        result = np.zeros_like(both)
        for index in range(4):
            choice = (selector.astype(np.uint64) >> np.uint64(4 * index)) & np.uint64(0xF)
            byte = (both >> (np.uint64(8) * (choice & np.uint64(7)))) & np.uint64(0xFF)
            sign = (byte >> np.uint64(7)) * np.uint64(0xFF)
            result = result | (np.where(choice >= 8, sign, byte) << np.uint64(8 * index))
        return result.astype(np.uint32)

    return decoding.elementwise(decoding.writer(destination, kind), permute, decoding.readers(sources, kind))


@decodes("lop3")
def _logic_of_three(decoding: Decoding) -> Step:
    decoding.expect_operands(5)
    kind = decoding.type()
    destination, a, b, c, table = decoding.operands
    readers = decoding.readers((a, b, c, table), kind)

    def look_up(a: Array, b: Array, c: Array, table: Array) -> Array:
        result = np.zeros_like(a)
        for row in range(8):
            if int(table[0]) >> row & 1:
                minterm = (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
                result = result | minterm
        return result

    return decoding.elementwise(decoding.writer(destination, kind), look_up, readers)


@decodes("popc", "clz")
def _count_bits(decoding: Decoding) -> Step:
    decoding.expect_operands(2)
    kind = decoding.type()
    destination, source = decoding.operands

    def count(a: Array) -> Array:
        bits = (a[:, None] >> np.arange(kind.bits - 1, -1, -1, dtype=a.dtype)) & a.dtype.type(1)
        if decoding.opcode == "popc":
            return bits.sum(axis=1, dtype=np.uint32)
        return np.where(a == 0, kind.bits, bits.argmax(axis=1)).astype(np.uint32)

    return decoding.elementwise(decoding.writer(destination, TYPES["u32"]), count, [decoding.reader(source, kind)])
