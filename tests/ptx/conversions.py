"""cvt: between integers and floating-point numbers of all widths."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ptx.decode import Decoding, Step, decodes
from ptx.floats import flushed
from ptx.scalars import PACKED, Array, ScalarType, narrow, pack, widen

Function = Callable[..., Array]
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
            wide = to_integer(flushed(widen(values, source), source) if flush else widen(values, source))
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
        wide = rounded(flushed(widen(values, source), source) if flush else widen(values, source))
        inside = np.where(np.isnan(wide) | (wide < limits.min) | (wide >= float(limits.max) + 1), 0.0, wide)
        integers_ = inside.astype(result.dtype)
        integers_ = np.where(wide < limits.min, result.dtype.type(limits.min), integers_)
        return np.where(wide >= float(limits.max) + 1, result.dtype.type(limits.max), integers_)

    return convert
