"""Floating-point arithmetic, and the opcodes that integers share with it.

Approximations (ex2.approx, rcp.approx ...) are exact here up to their final rounding, but for what the PTX ISA says of
their ranges. A fused multiply-add goes through float64: one of float32 rounds twice in about one case of 2**29, one of
float64 always does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ptx import integers
from ptx.decode import Decoding, Step, decodes
from ptx.scalars import PACKED, Array, ScalarType, narrow, pack, unpack, widen

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


@decodes("copysign")
def _copy_sign(decoding: Decoding) -> Step:
    """The sign of the first source, the magnitude of the second."""
    return _arithmetic(decoding, decoding.type(), lambda sign, magnitude: np.copysign(magnitude, sign), 2)


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
        wide = [flushed(widen(value, element), element) if flush else widen(value, element) for value in values]
        result = function(*wide)
        if saturate:
            result = np.where(np.isnan(result), 0.0, np.clip(result, 0.0, 1.0))
        if relu:
            result = np.maximum(result, 0.0)
        narrowed = narrow(result, element)
        return narrow(flushed(widen(narrowed, element), element), element) if flush else narrowed

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


def flushed(values: Array, kind: ScalarType) -> Array:
    """Subnormal numbers as zero of their sign."""
    return np.where(np.abs(values) < _SMALLEST_NORMAL[kind.name], np.copysign(0.0, values), values)
