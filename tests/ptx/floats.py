"""Floating-point arithmetic, and the opcodes that integers share with it.

Approximations (ex2.approx, rcp.approx ...) are exact here up to their final rounding, but for what the PTX ISA says of
their ranges. A fused multiply-add goes through float64, so it rounds twice in about one case of 2**29.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ptx import integers
from ptx.decode import Decoding, Step, decodes
from ptx.scalars import PACKED, TYPES, Array, ScalarType, narrow, pack, unpack, widen

Function = Callable[..., Array]


@decodes("add", "sub", "min", "max")
def _add(decoding: Decoding) -> Step:
    kind = decoding.type()
    if kind.is_integer:
        return integers.binary(decoding, kind)
    return _arithmetic(decoding, kind, _BINARY[decoding.opcode], 2)


@decodes("mul")
def _multiply(decoding: Decoding) -> Step:
    kind = decoding.type()
    return integers.product(decoding, kind) if kind.is_integer else _arithmetic(decoding, kind, np.multiply, 2)


@decodes("mad")
def _multiply_add(decoding: Decoding) -> Step:
    kind = decoding.type()
    if kind.is_integer:
        return integers.product(decoding, kind)
    decoding.required("rn")
    return _arithmetic(decoding, kind, _fused, 3)


@decodes("fma")
def _fused_multiply_add(decoding: Decoding) -> Step:
    decoding.required("rn")
    return _arithmetic(decoding, decoding.type(), _fused, 3)


@decodes("div")
def _divide(decoding: Decoding) -> Step:
    kind = decoding.type()
    if kind.is_integer:
        return integers.division(decoding, kind)
    accuracy = decoding.required("approx", "full", "rn")
    return _arithmetic(decoding, kind, _divide_approximately if accuracy == "approx" else np.divide, 2)


@decodes("neg", "abs")
def _sign(decoding: Decoding) -> Step:
    kind = decoding.type()
    function = np.negative if decoding.opcode == "neg" else np.abs
    if not kind.is_integer:
        return _arithmetic(decoding, kind, function, 1)
    decoding.expect_operands(2)
    destination, source = decoding.operands
    return decoding.elementwise(decoding.writer(destination, kind), function, [decoding.reader(source, kind)])


@decodes("rcp", "sqrt")
def _reciprocal(decoding: Decoding) -> Step:
    decoding.required("approx", "rn")
    return _arithmetic(decoding, decoding.type(), np.reciprocal if decoding.opcode == "rcp" else np.sqrt, 1)


@decodes("rsqrt", "ex2", "lg2", "sin", "cos", "tanh")
def _approximate(decoding: Decoding) -> Step:
    decoding.required("approx")
    return _arithmetic(decoding, decoding.type(), _APPROXIMATE[decoding.opcode], 1)


def _fused(a: Array, b: Array, c: Array) -> Array:
    return a * b + c


def _divide_approximately(a: Array, b: Array) -> Array:
    """The PTX ISA: where 2**126 < |b| < 2**128 the result is zero, or NaN if a is infinite."""
    flushed = (np.abs(b) > 2.0**126) & (np.abs(b) < 2.0**128)
    return np.where(flushed, a * np.copysign(0.0, b), a / b)


_BINARY: dict[str, Function] = {"add": np.add, "sub": np.subtract, "min": np.fmin, "max": np.fmax}
# Rounded once in float32, as by the way through float64, which is slower.
_EXACT_IN_F32 = (np.add, np.subtract, np.multiply, np.divide, np.sqrt, np.negative, np.abs, np.fmin, np.fmax)
_PROPAGATING: dict[Function, Function] = {np.fmin: np.minimum, np.fmax: np.maximum}
_APPROXIMATE: dict[str, Function] = {
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


def _arithmetic(decoding: Decoding, kind: ScalarType, function: Function, sources: int) -> Step:
    """The step that applies a function of float64 to operands of a float type, or to packed pairs of one."""
    decoding.expect_operands(sources + 1)
    if not (kind.is_float or kind.name in PACKED):
        raise decoding.error(f"unknown for .{kind.name}")
    decoding.flag("rn")
    if decoding.flag("NaN"):
        function = _PROPAGATING[function]
    flush, saturate, relu = decoding.flag("ftz"), decoding.flag("sat"), decoding.flag("relu")

    def apply(*values: Array) -> Array:
        wide = [_flushed(widen(value, element), element) if flush else widen(value, element) for value in values]
        result = function(*wide)
        if saturate:
            result = np.where(np.isnan(result), 0.0, np.clip(result, 0.0, 1.0))
        if relu:
            result = np.maximum(result, 0.0)
        narrowed = narrow(result, element)
        return narrow(_flushed(widen(narrowed, element), element), element) if flush else narrowed

    element = kind.element
    destination, *operands = decoding.operands
    if element.name == "f32" and function in _EXACT_IN_F32 and not (flush or saturate or relu):
        return decoding.elementwise(decoding.writer(destination, kind), function, decoding.readers(operands, kind))
    if kind.name not in PACKED:
        return decoding.elementwise(decoding.writer(destination, kind), apply, decoding.readers(operands, kind))

    def apply_to_pairs(*values: Array) -> Array:
        halves = [unpack(value, kind) for value in values]
        return pack(apply(*[low for low, _ in halves]), apply(*[high for _, high in halves]))

    return decoding.elementwise(decoding.writer(destination, kind), apply_to_pairs, decoding.readers(operands, kind))


_SMALLEST_NORMAL = {"f32": 2.0**-126, "bf16": 2.0**-126, "f16": 2.0**-14, "f64": 0.0}


def _flushed(values: Array, kind: ScalarType) -> Array:
    """Subnormal numbers as zero of their sign."""
    return np.where(np.abs(values) < _SMALLEST_NORMAL[kind.name], np.copysign(0.0, values), values)


_ROUND_TO_INTEGER: dict[str, Function] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@decodes("cvt")
def _convert(decoding: Decoding) -> Step:
    result, source = decoding.type(), decoding.type()
    if result.name in PACKED:
        return _convert_pair(decoding, result, source)
    decoding.expect_operands(2)
    destination, operand = decoding.operands
    write = decoding.writer(destination, result, may_be_wider=True)
    read = decoding.reader(operand, source, may_be_wider=True)
    return decoding.elementwise(write, _conversion(decoding, result, source), [read])


def _convert_pair(decoding: Decoding, result: ScalarType, source: ScalarType) -> Step:
    """cvt.rn.bf16x2.f32 d, a, b: a becomes the upper half, b the lower."""
    decoding.expect_operands(3)
    decoding.required("rn")
    relu = decoding.flag("relu")

    def convert(upper: Array, lower: Array) -> Array:
        values = [np.maximum(widen(value, source), 0.0) if relu else widen(value, source) for value in (lower, upper)]
        return pack(*[narrow(value, result.element) for value in np.broadcast_arrays(*values)])

    destination, *operands = decoding.operands
    return decoding.elementwise(decoding.writer(destination, result), convert, decoding.readers(operands, source))


def _conversion(decoding: Decoding, result: ScalarType, source: ScalarType) -> Function:
    if result.is_float and source.is_float:
        rounding = decoding.one_of("rn", *_ROUND_TO_INTEGER)
        if rounding is None and result.bits < source.bits:
            raise decoding.error("narrows without saying how to round")
        to_integer = _ROUND_TO_INTEGER.get(rounding or "", lambda x: x)
        relu, saturate, flush = decoding.flag("relu"), decoding.flag("sat"), decoding.flag("ftz")

        def convert(values: Array) -> Array:
            wide = to_integer(_flushed(widen(values, source), source) if flush else widen(values, source))
            wide = np.maximum(wide, 0.0) if relu else wide
            return narrow(np.where(np.isnan(wide), 0.0, np.clip(wide, 0.0, 1.0)) if saturate else wide, result)

        return convert
    if result.is_float:
        decoding.required("rn")
        # Both steps round to nearest even, but only the second ever rounds: float64 holds 32 bits. 64 bits go directly.
        if source.bits == 64:
            return lambda values: values.astype(result.dtype)
        return lambda values: narrow(values.astype(np.float64), result)
    if source.is_float:
        return _float_to_integer(decoding, result, source)
    if decoding.flag("sat"):
        raise decoding.error("saturation of integers is unknown")
    return lambda values: values.astype(result.dtype)


def _float_to_integer(decoding: Decoding, result: ScalarType, source: ScalarType) -> Function:
    """Values beyond the integer's range saturate, NaN becomes zero."""
    rounded = _ROUND_TO_INTEGER[decoding.required(*_ROUND_TO_INTEGER)]
    flush = decoding.flag("ftz")
    decoding.flag("sat")
    limits = np.iinfo(result.dtype)

    def convert(values: Array) -> Array:
        wide = rounded(_flushed(widen(values, source), source) if flush else widen(values, source))
        inside = np.where(np.isnan(wide) | (wide < limits.min) | (wide >= float(limits.max) + 1), 0.0, wide)
        integers_ = inside.astype(result.dtype)
        integers_ = np.where(wide < limits.min, result.dtype.type(limits.min), integers_)
        return np.where(wide >= float(limits.max) + 1, result.dtype.type(limits.max), integers_)

    return convert


_COMPARISONS: dict[str, Function] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
_UNORDERED = {f"{name}u": name for name in ("eq", "ne", "lt", "le", "gt", "ge")}
_COMBINATIONS: dict[str, Function] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def comparison(decoding: Decoding, kind: ScalarType) -> Function:
    """The function that .lt, .leu and the like stand for."""
    name = decoding.required(*_COMPARISONS, *_UNORDERED, "num", "nan")
    flush = decoding.flag("ftz")

    def compare(a: Array, b: Array) -> Array:
        if not kind.is_float:
            return _COMPARISONS[name](a, b)
        a, b = (_flushed(widen(x, kind), kind) if flush else widen(x, kind) for x in (a, b))
        unordered = np.isnan(a) | np.isnan(b)
        if name in ("num", "nan"):
            return unordered if name == "nan" else ~unordered
        if name in _UNORDERED:
            return unordered | _COMPARISONS[_UNORDERED[name]](a, b)
        return ~unordered & _COMPARISONS[name](a, b)

    return compare


@decodes("setp")
def _set_predicate(decoding: Decoding) -> Step:
    decoding.expect_operands(3, 4)
    kind = decoding.type()
    compare = comparison(decoding, kind)
    combine = _COMBINATIONS.get(decoding.one_of(*_COMBINATIONS) or "")
    if (combine is not None) != (len(decoding.operands) == 4):
        raise decoding.error("a predicate to combine with, but not how, or the reverse")
    destination, a, b, *other = decoding.operands
    readers = [*decoding.readers((a, b), kind), *decoding.readers(other, TYPES["pred"])]

    def apply(a: Array, b: Array, *other: Array) -> Array:
        return combine(compare(a, b), other[0]) if combine else compare(a, b)

    return decoding.elementwise(decoding.writer(destination, TYPES["pred"]), apply, readers)


@decodes("selp")
def _select(decoding: Decoding) -> Step:
    decoding.expect_operands(4)
    kind = decoding.type()
    destination, a, b, predicate = decoding.operands
    readers = [*decoding.readers((a, b), kind), decoding.reader(predicate, TYPES["pred"])]
    return decoding.elementwise(
        decoding.writer(destination, kind), lambda a, b, chosen: np.where(chosen, a, b), readers
    )
