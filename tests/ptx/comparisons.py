"""setp and selp."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ptx.decode import Decoding, Step, decodes
from ptx.floats import flushed
from ptx.scalars import TYPES, Array, ScalarType, widen

Function = Callable[..., Array]

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


def _comparison(decoding: Decoding, kind: ScalarType) -> Function:
    """The function that .lt, .leu and the like stand for."""
    name = decoding.required(*_COMPARISONS, *_UNORDERED, "num", "nan")
    flush = decoding.flag("ftz")

    def compare(a: Array, b: Array) -> Array:
        if not kind.is_float:
            return _COMPARISONS[name](a, b)
        a, b = (flushed(widen(x, kind), kind) if flush else widen(x, kind) for x in (a, b))
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
    compare = _comparison(decoding, kind)
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
