"""The scalar types of PTX as numpy's, and the rounding that numpy lacks.

Registers hold bits. A bfloat16, and a pair of 16-bit floats in one register, have no numpy type: they stay bits, which
`widen` and `narrow` turn into float64 and back, exactly and with one rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class ScalarType:
    name: str
    bits: int
    dtype: np.dtype  # of the bits as read from a register

    @property
    def bytes(self) -> int:
        return self.bits // 8

    @property
    def is_integer(self) -> bool:
        return self.name[0] in "us"

    @property
    def is_signed(self) -> bool:
        return self.name[0] == "s"

    @property
    def is_float(self) -> bool:
        return self.name in ("f16", "f32", "f64", "bf16")

    @property
    def element(self) -> ScalarType:
        """Of a packed pair, what it is a pair of; else the type itself."""
        return TYPES[self.name.removesuffix("x2")]


def _types() -> dict[str, ScalarType]:
    types = {"pred": ScalarType("pred", 1, np.dtype(bool))}
    for bits in (8, 16, 32, 64):
        for kind, code in (("u", "u"), ("s", "i"), ("b", "u")):
            types[f"{kind}{bits}"] = ScalarType(f"{kind}{bits}", bits, np.dtype(f"{code}{bits // 8}"))
    for name, bits, code in (("f16", 16, "f2"), ("f32", 32, "f4"), ("f64", 64, "f8")):
        types[name] = ScalarType(name, bits, np.dtype(code))
    for name, bits in (("bf16", 16), ("f16x2", 32), ("bf16x2", 32)):
        types[name] = ScalarType(name, bits, np.dtype(f"u{bits // 8}"))
    return types


TYPES = _types()
PACKED = ("f16x2", "bf16x2")
_BF16_PRECISION = 8
_BF16_SMALLEST_EXPONENT = -133
_BF16_NAN = np.uint16(0x7FFF)


def widen(bits: Array, kind: ScalarType) -> Array:
    """What a float register of this type holds, as float64."""
    if kind.name == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return bits.view(kind.dtype).astype(np.float64)


def narrow(values: Array, kind: ScalarType) -> Array:
    """Rounds float64 once, to nearest even, to a float type; gives its register."""
    if kind.name != "bf16":
        return values.astype(kind.dtype)
    _, exponent = np.frexp(values)
    quantum = np.maximum(exponent - _BF16_PRECISION, _BF16_SMALLEST_EXPONENT)
    rounded = np.where(np.isfinite(values), np.ldexp(np.rint(np.ldexp(values, -quantum)), quantum), values)
    upper = (rounded.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), _BF16_NAN, upper)


def unpack(bits: Array, kind: ScalarType) -> tuple[Array, Array]:
    """The low and the high half of packed pairs, each as the register of its own that it would be."""
    dtype = kind.element.dtype
    low, high = bits.astype(np.uint16), (bits >> 16).astype(np.uint16)
    return low.view(dtype), high.view(dtype)


def pack(low: Array, high: Array) -> Array:
    return low.view(np.uint16).astype(np.uint32) | (high.view(np.uint16).astype(np.uint32) << 16)
