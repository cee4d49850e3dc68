"""The interpreter's own tests, on PTX written by hand: what instructions compute, how threads part and meet, errors."""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ptx.machine import Program, run
from ptx.memory import GlobalMemory
from ptx.probe import evaluate
from ptx.syntax import Module, PtxError
from ptx.threads import Launch

RANDOM = np.random.default_rng(0)
S32 = np.int32([0, 1, -1, 7, -7, 2**31 - 1, -(2**31), 123456789, -987654321, 31, 32, 33])
S64 = np.int64([0, 1, -1, 7, -7, 2**63 - 1, -(2**63), 2**33 + 5, -(2**40) - 3, 63, 64, 65])
PAIRS_32 = np.meshgrid(S32, S32)[0].ravel(), np.meshgrid(S32, S32)[1].ravel()
PAIRS_64 = np.meshgrid(S64, S64)[0].ravel(), np.meshgrid(S64, S64)[1].ravel()


def truncated(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


INTEGER_CASES: dict[str, Callable[[int, int], int | None]] = {  # None: any result is right
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "min": min,
    "max": max,
    "div": lambda a, b: truncated(a, b) if b else None,
    "rem": lambda a, b: a - truncated(a, b) * b if b else None,
}


KINDS = ("s32", "u32", "s64", "u64")


@pytest.mark.parametrize(
    "name, kind",
    [*itertools.product([*INTEGER_CASES, "mul.hi"], KINDS), ("mul.wide", "s32"), ("mul.wide", "u32")],
)
def test_integers(name: str, kind: str) -> None:
    bits = int(kind[1:])
    dtype = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{bits // 8}")
    a, b = (x.view(dtype) for x in (PAIRS_32 if bits == 32 else PAIRS_64))
    result_bits = 2 * bits if name == "mul.wide" else bits
    (d,) = evaluate(f"{name}.{kind} %d, %a, %b;", {"d": f"u{result_bits // 8}"}, a=a, b=b)
    for x, y, ours in zip(a.tolist(), b.tolist(), d.tolist(), strict=True):
        if name in ("mul.hi", "mul.wide"):
            exact: int | None = x * y >> (bits if name == "mul.hi" else 0)
        else:
            exact = INTEGER_CASES[name](x, y)
        assert exact is None or ours == exact % 2**result_bits, (x, y)


@pytest.mark.parametrize("bits", (32, 64))
def test_shifts(bits: int) -> None:
    a = (S32 if bits == 32 else S64).repeat(6)
    amount = np.tile(np.uint32([0, 1, 5, bits - 1, bits, 200]), len(a) // 6)
    unsigned = f"u{bits // 8}"
    body = f"shl.b{bits} %d, %a, %b; shr.u{bits} %e, %a, %b; shr.s{bits} %f, %a, %b;"
    left, logical, arithmetic = evaluate(body, {"d": unsigned, "e": unsigned, "f": f"i{bits // 8}"}, a=a, b=amount)
    for index, (x, n) in enumerate(zip(a.tolist(), amount.tolist(), strict=True)):
        assert left[index] == (x << n) % 2**bits
        assert logical[index] == (x % 2**bits) >> n
        assert arithmetic[index] == x >> n


def test_bits() -> None:
    a, b = PAIRS_32
    body = """
        and.b32 %d, %a, %b; lop3.b32 %e, %a, %b, 0x0F0F0F0F, 0x6A; popc.b32 %f, %a; clz.b32 %g, %a;
        prmt.b32 %h, %a, %b, 0xF41A; shf.l.wrap.b32 %i, %a, %b, 40; bfe.u32 %j, %a, 5, 9; bfe.s32 %k, %a, 27, 20;
        mad.lo.s32 %l, %a, %b, 17; not.b32 %m, %a;"""
    results = evaluate(body, dict.fromkeys("defghijklm", "u4"), a=a, b=b)
    for x, y, *ours in zip(a.view("u4").tolist(), b.view("u4").tolist(), *(r.tolist() for r in results), strict=True):
        byte = [*x.to_bytes(4, "little"), *y.to_bytes(4, "little")]
        sign = [255 * (value >> 7) for value in byte]
        permuted = int.from_bytes(bytes([sign[2], byte[1], byte[4], sign[7]]), "little")
        top = x >> 27
        assert ours == [
            x & y,
            (x & y) ^ 0x0F0F0F0F,
            bin(x).count("1"),
            32 - x.bit_length(),
            permuted,
            ((y << 32 | x) << 8 >> 32) & 0xFFFFFFFF,
            x >> 5 & 0x1FF,
            (top | 0xFFFFFFE0 if top & 16 else top),
            (x * y + 17) % 2**32,
            ~x % 2**32,
        ]


def test_moves() -> None:
    a = np.uint64([0x0123456789ABCDEF, 0xFEDCBA9876543210])
    body = """
        .reg .b32 %low, %high; .reg .b16 %h<2>;
        mov.b64 {%low, %high}, %a; mov.b64 %d, {%high, %low}; mov.b32 {%h0, %h1}, %low; mov.b32 %e, {%h1, %h0};
        cvt.u32.u8 %f, %a; cvt.s32.s8 %g, %a; selp.b32 %h, %low, 5, %q;"""
    swapped, halves, byte, signed, selected = evaluate(
        ".reg .pred %q; setp.gt.u64 %q, %a, 0x7FFFFFFFFFFFFFFF;" + body,
        {"d": "u8", "e": "u4", "f": "u4", "g": "i4", "h": "u4"},
        a=a,
    )
    assert swapped.tolist() == [0x89ABCDEF01234567, 0x76543210FEDCBA98]
    assert halves.tolist() == [0xCDEF89AB, 0x32107654]
    assert byte.tolist() == [0xEF, 0x10] and signed.tolist() == [0xEF - 256, 0x10]
    assert selected.tolist() == [5, 0x76543210]


def floats(count: int = 400) -> np.ndarray:
    """Of all magnitudes, and the special ones."""
    special = np.float32([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 65504, 65520, 1e-40, 5.9e-8, 2.0**127])
    values = RANDOM.integers(0, 2**32, count, dtype=np.uint32).view(np.float32)
    return np.concatenate([special, values, RANDOM.standard_normal(count).astype(np.float32)])


def assert_same_bits_but_for_nan(ours: np.ndarray, exact: np.ndarray) -> None:
    assert ours.dtype == exact.dtype
    nan = np.isnan(exact)
    np.testing.assert_array_equal(np.isnan(ours), nan)
    bits = f"u{exact.itemsize}"
    np.testing.assert_array_equal(ours[~nan].view(bits), exact[~nan].view(bits))


FLOAT_CASES: dict[str, Callable[..., torch.Tensor]] = {
    "add.f32": torch.add,
    "sub.f32": torch.sub,
    "mul.f32": torch.mul,
    "div.rn.f32": torch.div,
    "min.f32": torch.fmin,
    "max.f32": torch.fmax,
    "max.NaN.f32": torch.maximum,
    "neg.f32": torch.neg,
    "abs.f32": torch.abs,
    "copysign.f32": lambda sign, magnitude: torch.copysign(magnitude, sign),
    "sqrt.rn.f32": lambda x: x.double().sqrt().float(),  # torch.sqrt of float32 may be one bit off
    "rcp.rn.f32": torch.reciprocal,
}


@pytest.mark.parametrize("name", FLOAT_CASES)
def test_floats(name: str) -> None:
    a = floats()
    b = RANDOM.permutation(a)
    two = name.split(".")[0] not in ("neg", "abs", "sqrt", "rcp")
    (d,) = evaluate(f"{name} %d, %a{', %b' if two else ''};", {"d": "f4"}, a=a, b=b)
    exact = FLOAT_CASES[name](*map(torch.from_numpy, (a, b) if two else (a,))).numpy()
    assert_same_bits_but_for_nan(d, exact)


@pytest.mark.parametrize("name", ("ex2", "lg2", "sin", "cos", "tanh", "rsqrt", "rcp", "sqrt"))
def test_approximations(name: str) -> None:
    a = np.abs(RANDOM.standard_normal(64)).astype(np.float32)
    (d,) = evaluate(f"{name}.approx.f32 %d, %a;", {"d": "f4"}, a=a)
    functions = {"ex2": torch.exp2, "lg2": torch.log2, "rcp": torch.reciprocal}
    exact = functions.get(name, getattr(torch, name, torch.exp2))(torch.from_numpy(a).double()).float().numpy()
    np.testing.assert_array_almost_equal_nulp(d, exact, 1)


def test_fused_multiply_add_rounds_once() -> None:
    a = np.float32([1 + 2**-12, 3.0])
    fused, separate = evaluate(
        "fma.rn.f32 %d, %a, %a, %b; mul.f32 %e, %a, %a; add.f32 %e, %e, %b;",
        {"d": "f4", "e": "f4"},
        a=a,
        b=np.float32([-1 - 2**-11, 1.0]),
    )
    assert fused.tolist() == [2**-24, 10.0] and separate.tolist() == [0.0, 10.0]


def test_fast_division_gives_zero_for_huge_divisors() -> None:
    (d,) = evaluate(
        "div.approx.f32 %d, %a, %b;",
        {"d": "f4"},
        a=np.float32([1.0, -1.0, np.inf, 1.0, 6.0]),
        b=np.float32([2.0**127, 2.0**127, 2.0**127, 2.0**126, 2.0]),
    )
    np.testing.assert_array_equal(d, np.float32([0.0, -0.0, np.nan, 2.0**-126, 3.0]))


def test_flushing_subnormal_numbers() -> None:
    d, e = evaluate(
        "add.ftz.f32 %d, %a, %a; ex2.approx.ftz.f32 %e, %b;",
        {"d": "f4", "e": "f4"},
        a=np.float32([1e-40, 1e-37]),
        b=np.float32([-127.5, -1.0]),
    )
    np.testing.assert_array_equal(d, np.float32([0.0, 2e-37]))
    np.testing.assert_array_equal(e, np.float32([0.0, 0.5]))


@pytest.mark.parametrize("kind, dtype", [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_narrow_floats(kind: str, dtype: torch.dtype) -> None:
    """Every 16-bit float is widened right, and each neighbourhood between two of them is rounded right."""
    every = np.arange(2**16, dtype=np.uint16)
    for bits in np.split(every, 64):
        (wide,) = evaluate(f"{widening(kind)}", {"d": "f4"}, a=bits)
        exact = torch.from_numpy(bits.view(np.int16)).view(dtype).float().numpy()
        assert_same_bits_but_for_nan(wide, exact)
    values = np.concatenate([floats(), half_way(dtype)])
    body = f"cvt.rn.{kind}.f32 %d, %a; cvt.rn.{kind}x2.f32 %e, %a, %b;"
    other = RANDOM.permutation(values)
    one, pair = evaluate(body, {"d": "u2", "e": "u4"}, a=values, b=other)
    exact, exact_other = (narrowed(x, dtype) for x in (values, other))
    for ours, true in ((one, exact), (pair >> 16, exact), (pair & 0xFFFF, exact_other)):
        ours = torch.from_numpy(ours.astype(np.uint16).view(np.int16)).view(dtype)
        torch.testing.assert_close(ours, true, rtol=0, atol=0, equal_nan=True)


def widening(kind: str) -> str:
    return "cvt.f32.f16 %d, %a;" if kind == "f16" else "mov.b32 %d, {0, %a};"


def narrowed(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(values).to(dtype)


def half_way(dtype: torch.dtype) -> np.ndarray:
    """Exactly between neighbours, and one float32 to each side."""
    grid = torch.linspace(-20, 20, 97).exp2().to(dtype)
    middle = ((grid.double() + (grid.view(torch.int16) + 1).view(dtype).double()) / 2).float().numpy()
    return np.concatenate([middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(np.inf))])


def test_packed_arithmetic() -> None:
    for kind, dtype in (("f16x2", torch.float16), ("bf16x2", torch.bfloat16)):
        a, b, c = (torch.randn(64).to(dtype) for _ in range(3))
        registers = [x.view(torch.int16).numpy().view(np.uint32) for x in (a, b, c)]
        fused, product = evaluate(
            f"fma.rn.{kind} %d, %a, %b, %c; mul.rn.{kind} %e, %a, %b;",
            {"d": "u4", "e": "u4"},
            **dict(zip("abc", registers, strict=True)),
        )
        for ours, exact in ((fused, a.double() * b.double() + c.double()), (product, a.double() * b.double())):
            ours_as_floats = torch.from_numpy(ours.view(np.int16)).view(dtype)
            assert torch.equal(ours_as_floats, exact.to(dtype))


def test_floats_to_integers_and_back() -> None:
    a = np.float32([0.5, 1.5, -0.5, -2.5, 1e20, -1e20, np.nan, 7.9])
    nearest, truncated_, floor, ceiling = evaluate(
        "cvt.rni.s32.f32 %d, %a; cvt.rzi.s32.f32 %e, %a; cvt.rmi.s32.f32 %f, %a; cvt.rpi.s32.f32 %g, %a;",
        dict.fromkeys("defg", "i4"),
        a=a,
    )
    limits = [2**31 - 1, -(2**31), 0]
    assert nearest.tolist() == [0, 2, 0, -2, *limits, 8]
    assert truncated_.tolist() == [0, 1, 0, -2, *limits, 7]
    assert floor.tolist() == [0, 1, -1, -3, *limits, 7] and ceiling.tolist() == [1, 2, 0, -2, *limits, 8]
    for kind, source in (("s32", S32), ("s64", S64), ("u64", S64.view(np.uint64))):
        (back,) = evaluate(f"cvt.rn.f32.{kind} %d, %a;", {"d": "f4"}, a=source)
        np.testing.assert_array_equal(back, source.astype(np.float32))


def test_comparisons() -> None:
    a, b = (x.ravel() for x in np.meshgrid(*[np.float32([-1, 0, 2, np.nan])] * 2))
    names = ("eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")
    body = ".reg .pred %q;" + "".join(
        f"setp.{name}.f32 %q, %a, %b; selp.u32 %d{index}, 1, 0, %q;" for index, name in enumerate(names)
    )
    results = evaluate(body, {f"d{index}": "u4" for index in range(len(names))}, a=a, b=b)
    unordered = np.isnan(a) | np.isnan(b)
    ordered = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    for name, ours in zip(names, results, strict=True):
        if name in ("num", "nan"):
            exact = unordered == (name == "nan")
        elif name in ordered:
            exact = ordered[name] & ~unordered
        else:
            exact = ordered[name[:2]] | unordered
        np.testing.assert_array_equal(ours, exact, err_msg=name)
    d, e = evaluate(
        """.reg .pred %q<2>;
        setp.lo.u32 %q0, %a, 5; setp.lt.and.s32 %q1, %a, 5, !%q0; selp.u32 %d, 1, 0, %q0; selp.u32 %e, 1, 0, %q1;""",
        {"d": "u4", "e": "u4"},
        a=np.int32([3, -3, 8]),
    )
    assert d.tolist() == [1, 0, 0] and e.tolist() == [0, 1, 0]


def test_threads_part_and_meet_again() -> None:
    """Collatz steps: every thread has a trip count of its own, and all of the warp shuffle afterwards."""
    steps, neighbours = evaluate(
        """.reg .pred %q; .reg .b32 %n, %odd;
        mov.u32 %n, %a; mov.u32 %d, 0;
        LOOP: setp.eq.u32 %q, %n, 1; @%q bra DONE;
        add.u32 %d, %d, 1; and.b32 %odd, %n, 1; setp.ne.u32 %q, %odd, 0; @!%q bra EVEN;
        mad.lo.u32 %n, %n, 3, 1; bra.uni LOOP;
        EVEN: shr.u32 %n, %n, 1; bra.uni LOOP;
        DONE: shfl.sync.bfly.b32 %e, %d, 1, 31, -1;""",
        {"d": "u4", "e": "u4"},
        a=np.arange(1, 97, dtype=np.uint32),
    )

    def collatz(n: int) -> int:
        return 0 if n == 1 else 1 + collatz(3 * n + 1 if n % 2 else n // 2)

    exact = [collatz(n) for n in range(1, 97)]
    assert steps.tolist() == exact
    assert neighbours.tolist() == [exact[i ^ 1] for i in range(96)]


ODD_COME_LATE = ".reg .pred %q; .reg .b32 %o; and.b32 %o, %thread, 1; setp.ne.u32 %q, %o, 0; @%q bra LATE; MEET:"


def test_who_comes_first_to_a_shuffle_waits() -> None:
    """Odd threads come to the place from behind it, after even ones."""
    (d,) = evaluate(
        ODD_COME_LATE
        + "shfl.sync.bfly.b32 %d, %a, 1, 31, -1; bra.uni END; LATE: add.u32 %a, %a, 1000; bra.uni MEET; END:",
        {"d": "u4"},
        a=np.arange(64, dtype=np.uint32),
    )
    assert d.tolist() == [i + 1001 if i % 2 == 0 else i - 1 for i in range(64)]


def test_who_comes_first_to_a_barrier_waits() -> None:
    """Odd threads come to the place from behind it, with a value for an even thread of the other warp."""
    (d,) = evaluate(
        """.reg .b32 %p; mov.u32 %p, buffer; mad.lo.u32 %p, %thread, 4, %p; st.shared.u32 [%p], %a;"""
        + ODD_COME_LATE
        + """bar.sync 0; xor.b32 %p, %p, 132; ld.shared.u32 %d, [%p]; bra.uni END;
        LATE: add.u32 %a, %a, 1000; st.shared.u32 [%p], %a; bra.uni MEET; END:""",
        {"d": "u4"},
        shared_bytes=256,
        a=np.arange(64, dtype=np.uint32),
    )
    partner = [i ^ 33 for i in range(64)]
    assert d.tolist() == [i + 1000 * (i % 2) for i in partner]


@pytest.mark.parametrize("width", (32, 8))
@pytest.mark.parametrize("mode", ("up", "down", "bfly", "idx"))
def test_shuffles(mode: str, width: int) -> None:
    a, lane = np.arange(64, dtype=np.uint32) * 10, np.arange(64)
    limits = (32 - width) << 8 | (0 if mode == "up" else 31)  # as CUDA's __shfl_*_sync pass them
    for offset in (1, 3, width - 1):
        got, in_range = evaluate(
            f".reg .pred %q; shfl.sync.{mode}.b32 %d|%q, %a, {offset}, {limits}, 0xFFFFFFFF; selp.u32 %e, 1, 0, %q;",
            {"d": "u4", "e": "u4"},
            a=a,
        )
        begin = lane // width * width
        source = {"up": lane - offset, "down": lane + offset, "bfly": lane ^ offset, "idx": begin + offset}[mode]
        inside = (source >= begin) & (source < begin + width)
        np.testing.assert_array_equal(in_range, inside)
        np.testing.assert_array_equal(got, a[np.where(inside, source, lane)])


def test_shuffle_among_some_lanes() -> None:
    (d,) = evaluate(
        """.reg .pred %q; setp.ge.u32 %q, %thread, 8; mov.u32 %d, 0; @%q bra END;
        shfl.sync.idx.b32 %d, %a, 3, 31, 0xFF; END:""",
        {"d": "u4"},
        a=np.arange(100, 132, dtype=np.uint32),
    )
    assert d.tolist() == [103] * 8 + [0] * 24


def test_votes() -> None:
    any_, all_, ballot, total = evaluate(
        """.reg .pred %q, %r; setp.gt.u32 %q, %a, 60;
        vote.sync.any.pred %r, %q, -1; selp.u32 %d, 1, 0, %r; vote.sync.all.pred %r, %q, -1; selp.u32 %e, 1, 0, %r;
        vote.sync.ballot.b32 %f, %q, -1; redux.sync.add.u32 %g, %a, -1;""",
        dict.fromkeys("defg", "u4"),
        a=np.arange(96, dtype=np.uint32),
    )
    assert any_.tolist() == [0] * 32 + [1] * 64 and all_.tolist() == [0] * 64 + [1] * 32
    assert set(ballot[32:64].tolist()) == {0xE0000000}
    assert set(total[:32].tolist()) == {sum(range(32))}


def test_shared_memory_and_barrier() -> None:
    (d,) = evaluate(
        """.reg .b32 %p, %q; mov.u32 %p, buffer; mad.lo.u32 %q, %thread, 4, %p; st.shared.u32 [%q], %a;
        bar.sync 0; xor.b32 %q, %thread, 64; mad.lo.u32 %q, %q, 4, %p; ld.shared.u32 %d, [%q];""",
        {"d": "u4"},
        shared_bytes=512,
        a=np.arange(128, dtype=np.uint32),
    )
    assert d.tolist() == [i ^ 64 for i in range(128)]


def test_generic_addresses_and_vectors() -> None:
    first, last = evaluate(
        """.reg .b64 %p, %q, %w; .reg .b32 %r<4>;
        mov.u64 %p, buffer; cvta.shared.u64 %p, %p; mad.wide.u32 %q, %thread, 16, %p;
        not.b32 %r1, %a; st.v4.b32 [%q], {%a, %r1, 7, %a};
        cvta.to.shared.u64 %w, %q; ld.shared.v2.u32 {%r2, %d}, [%w+8]; ld.v2.u32 {_, %e}, [%q];""",
        {"d": "u4", "e": "u4"},
        shared_bytes=512,
        a=np.arange(32, dtype=np.uint32),
    )
    assert first.tolist() == list(range(32)) and last.tolist() == [~i % 2**32 for i in range(32)]


COPY = """.reg .b32 %p, %s; .reg .b64 %g;
    mov.u32 %p, buffer; mad.lo.u32 %s, %thread, 16, %p; ld.param.u64 %g, [a_param]; mad.wide.u32 %g, %thread, 16, %g;
    st.shared.v2.u32 [%s], {5, 5}; cp.async.cg.shared.global [%s], [%g], 16{bytes}; cp.async.commit_group;
    cp.async.wait_group {pending}; ld.shared.u32 %d, [%s]; ld.shared.u32 %e, [%s+4];"""


def copied(pending: int, source_bytes: str = "") -> list[list[int]]:
    """Of 8 threads that copy 16 bytes each: the first two of their four words, after a wait for all but `pending`."""
    body = COPY.replace("{bytes}", source_bytes).replace("{pending}", str(pending))
    only_eight = ".reg .pred %z; setp.ge.u32 %z, %thread, 8; @%z bra END;" + body + "END:"
    results = evaluate(only_eight, {"d": "u4", "e": "u4"}, shared_bytes=128, a=np.arange(32, dtype=np.uint32))
    return [result[:8].tolist() for result in results]


def test_asynchronous_copy() -> None:
    assert copied(pending=0) == [list(range(0, 32, 4)), list(range(1, 32, 4))]
    assert copied(pending=0, source_bytes=", 4") == [list(range(0, 32, 4)), [0] * 8]
    assert copied(pending=0, source_bytes=", 0") == [[0] * 8, [0] * 8]


def test_asynchronous_copy_is_not_there_before_it_was_waited_for() -> None:
    assert copied(pending=1) == [[5] * 8, [5] * 8]


ERRORS = {
    "unknown instruction": "frobnicate.b32 %d, %a;",
    "unknown modifier .rz": "add.rz.f32 %d, %a, %a;",
    "without any of .rn": "fma.f32 %d, %a, %a, %a;",
    "32 bits, not 64": "add.s64 %d, %a, %a;",
    "2 operands instead of": "add.s32 %d, %a;",
    "unknown special register": "mov.u32 %d, %clock;",
    "unknown variable": "mov.u32 %d, nowhere;",
    "only number 0": "bar.sync 1;",
    "wait for threads that never come": """.reg .pred %q; setp.eq.u32 %q, %thread, 3; @%q bra END; bar.sync 0; END:""",
    "not in its own member mask": "shfl.sync.bfly.b32 %d, %a, 1, 31, 1;",
    "not in the member mask": """.reg .pred %q; setp.ge.u32 %q, %thread, 8; @%q bra END;
        shfl.sync.idx.b32 %d, %a, 9, 31, 0xFF; END:""",
    "does not come to an end": "LOOP: bra.uni LOOP;",
    "unknown label": "bra.uni NOWHERE;",
    "128 bytes after the begin of 128 bytes of global memory, by block (0, 0, 0), thread (31, 0, 0)": """
        .reg .b64 %p; ld.param.u64 %p, [a_param]; mad.wide.u32 %p, %thread, 4, %p; ld.global.u32 %d, [%p+4];""",
    "out of bounds: 4 bytes at byte 64 of 64 bytes of shared memory": """.reg .b32 %p; mov.u32 %p, buffer;
        st.shared.u32 [%p+64], %a;""",
    "misaligned: 8 bytes": """.reg .b64 %p; .reg .b32 %r<2>; ld.param.u64 %p, [a_param];
        ld.global.v2.u32 {%r0, %r1}, [%p+4];""",
    "guarded by a predicate": ".reg .pred %q; setp.eq.u32 %q, %a, 0; @%q bar.sync 0;",
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptx.machine._MAX_BLOCKS_EXECUTED", 10_000)
    with pytest.raises(PtxError, match=re.escape(message)):
        evaluate(ERRORS[message], {"d": "u4"}, shared_bytes=64, a=np.arange(32, dtype=np.uint32))


def test_arguments_must_fit_the_parameters() -> None:
    program = Program(Module(".entry k(.param .u64 a, .param .align 8 .b8 b[24]) { ret; }").kernel("k"))
    for arguments in ((bytes(8),), (bytes(8), bytes(16))):
        with pytest.raises(PtxError, match="parameters, not 1|has 24 bytes, not 16"):
            run(program, Launch("k", (1, 1, 1), (32, 1, 1), 0, arguments), GlobalMemory([]))


def test_parameters_are_laid_out_by_their_alignment() -> None:
    text = """.entry k(.param .u32 a, .param .align 16 .b8 b[24], .param .u64 .ptr .global .align 4 c) {
        .reg .b64 %p, %v; .reg .b32 %r;
        ld.param.u64 %p, [c]; ld.param.u32 %r, [b+16]; ld.param.u32 %v, [a]; st.global.u64 [%p], %v;
        st.global.u32 [%p+8], %r; ret; }"""
    result = np.zeros(2, np.uint64)
    arguments = (struct.pack("I", 7), bytes(16) + struct.pack("II", 9, 0), struct.pack("P", result.ctypes.data))
    memory = GlobalMemory([(result.ctypes.data, result.ctypes.data + 16)])
    run(Program(Module(text).kernel("k")), Launch("k", (1, 1, 1), (1, 1, 1), 0, arguments), memory)
    assert result.tolist() == [7, 9]


def test_blocks_with_partial_warps() -> None:
    """Each has shared memory of its own, and no threads that would fill up its last warp."""
    text = """.entry k(.param .u64 a) {
        .reg .b64 %p; .reg .b32 %t, %n, %c, %r, %w, %m, %v; .reg .pred %q; .shared .align 4 .b8 buffer[8];
        ld.param.u64 %p, [a]; mov.u32 %t, %tid.x; mov.u32 %n, %ntid.x; mov.u32 %c, %ctaid.y; mad.lo.u32 %r, %c, %n, %t;
        st.shared.u32 [buffer], %c; bar.sync 0; ld.shared.u32 %c, [buffer];
        mov.u32 %w, %warpid; setp.eq.u32 %q, %w, 0; selp.b32 %m, 0xFFFFFFFF, 0x1FFF, %q;
        vote.sync.ballot.b32 %v, 1, %m; popc.b32 %v, %v; mad.lo.u32 %v, %c, 1000, %v;
        mad.wide.u32 %p, %r, 4, %p; st.global.u32 [%p], %v; ret; }"""
    result = np.full(90, -1, np.int32)
    memory = GlobalMemory([(result.ctypes.data, result.ctypes.data + result.nbytes)])
    launch = Launch("k", (1, 2, 1), (45, 1, 1), 0, (struct.pack("P", result.ctypes.data),))
    run(Program(Module(text).kernel("k")), launch, memory)
    assert result.tolist() == [32] * 32 + [13] * 13 + [1032] * 32 + [1013] * 13


def test_shared_memory_begins_as_nan() -> None:
    (d,) = evaluate("ld.shared.f32 %d, [buffer+8];", {"d": "f4"}, shared_bytes=16)
    assert np.isnan(d).all()
