"""mma and ldmatrix: which thread holds what, against tables of another origin; and a kernel that uses them, with bugs.

The interpreter computes its layouts by the PTX ISA's formulas. The tables here are CUTLASS's layouts of the same
instructions (include/cute/atom/mma_traits_sm80.hpp and copy_traits_sm75.hpp): a shape and a stride for the thread and
for what it holds. Neither knows of the kernels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from ptx import nvcc
from ptx.nvcc import Library
from ptx.probe import evaluate, launch_program
from ptx.tensor_cores import fragments

RANDOM = np.random.default_rng(0)


def coordinates(shape: Sequence[int], stride: Sequence[int]) -> np.ndarray:
    """CuTe's layout function of 0, 1, ...: the first mode of the shape runs fastest."""
    indices = itertools.product(*[range(extent) for extent in reversed(shape)])
    return np.array([sum(i * s for i, s in zip(reversed(index), stride, strict=True)) for index in indices])


def held(thread: tuple[Sequence[int], Sequence[int]], value: tuple[Sequence[int], Sequence[int]]) -> np.ndarray:
    """(threads, values): the position of what each thread holds, from the two halves of a CuTe layout."""
    return coordinates(*thread)[:, None] + coordinates(*value)[None, :]


# Positions count down the columns: A and C by 16 rows, and B, which CUTLASS has as (n, k), by 8.
CUTE = {
    (16, "A"): held(((4, 8), (32, 1)), ((2, 2, 2), (16, 8, 128))),
    (16, "B"): held(((4, 8), (16, 1)), ((2, 2), (8, 64))),
    (16, "C"): held(((4, 8), (32, 1)), ((2, 2), (16, 8))),
    (8, "A"): held(((4, 8), (32, 1)), ((2, 2), (16, 8))),
    (8, "B"): held(((4, 8), (16, 1)), ((2,), (8,))),
    (8, "C"): held(((4, 8), (32, 1)), ((2, 2), (16, 8))),
}


@pytest.mark.parametrize("k", (8, 16))
def test_fragments_are_those_of_cutlass(k: int) -> None:
    a, b, c = fragments(k)
    np.testing.assert_array_equal(a.rows + 16 * a.columns, CUTE[k, "A"])
    np.testing.assert_array_equal(b.columns + 8 * b.rows, CUTE[k, "B"])
    np.testing.assert_array_equal(c.rows + 16 * c.columns, CUTE[k, "C"])


def bits_of(values: torch.Tensor) -> np.ndarray:
    return values.contiguous().view(torch.int16).numpy().view(np.uint16)


def registers(matrix: torch.Tensor, layout: np.ndarray, rows: int) -> list[np.ndarray]:
    """The 32-bit registers of all threads; `layout` counts down columns of `rows`."""
    elements = bits_of(matrix)[layout % rows, layout // rows].astype(np.uint32)
    return list((elements[:, ::2] | elements[:, 1::2] << 16).T)


@pytest.mark.parametrize("dtype, name", [(torch.bfloat16, "bf16"), (torch.float16, "f16")])
@pytest.mark.parametrize("k", (8, 16))
def test_mma(k: int, dtype: torch.dtype, name: str) -> None:
    torch.manual_seed(0)
    a, b, c = torch.randn(16, k).to(dtype), torch.randn(k, 8).to(dtype), torch.randn(16, 8)
    of_a, of_b = registers(a, CUTE[k, "A"], 16), registers(b.T, CUTE[k, "B"], 8)
    of_c = list(c.numpy()[CUTE[k, "C"] % 16, CUTE[k, "C"] // 16].T)
    inputs = {f"{letter}{i}": x for letter, xs in zip("abc", (of_a, of_b, of_c), strict=True) for i, x in enumerate(xs)}
    names = [", ".join(f"%{name}" for name in inputs if name[0] == letter) for letter in "abc"]
    body = f"mma.sync.aligned.m16n8k{k}.row.col.f32.{name}.{name}.f32 {{%d0, %d1, %d2, %d3}}, " + ", ".join(
        f"{{{list_}}}" for list_ in names
    )
    results = evaluate(f"{body};", {f"d{i}": "f4" for i in range(4)}, **inputs)
    d = np.empty((16, 8), np.float32)
    d[CUTE[k, "C"] % 16, CUTE[k, "C"] // 16] = np.stack(results, axis=1)
    np.testing.assert_array_equal(d, (a.double() @ b.double() + c.double()).float().numpy())


def test_mma_with_float16_sums() -> None:
    torch.manual_seed(0)
    a, b, c = torch.randn(16, 16).half(), torch.randn(16, 8).half(), torch.randn(16, 8).half()
    groups = (registers(a, CUTE[16, "A"], 16), registers(b.T, CUTE[16, "B"], 8), registers(c, CUTE[16, "C"], 16))
    inputs = {f"{letter}{i}": x for letter, xs in zip("abc", groups, strict=True) for i, x in enumerate(xs)}
    body = """mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%d0, %d1}, {%a0, %a1, %a2, %a3}, {%b0, %b1},
        {%c0, %c1};"""
    results = evaluate(body, {"d0": "u4", "d1": "u4"}, **inputs)
    exact = (a.double() @ b.double() + c.double()).half()
    for ours, true in zip(results, registers(exact, CUTE[16, "C"], 16), strict=True):
        np.testing.assert_array_equal(ours, true)


# Bits of a thread's registers as bits of the matrices, 128 to a row (copy_traits_sm75.hpp: SM75_U32x4_LDSM_N and
# SM75_U16x8_LDSM_T); of each pair of 16 bits, the first bit.
LDMATRIX = {
    False: held(((32,), (32,)), ((2, 4), (16, 1024))),
    True: held(((4, 8), (256, 16)), ((2, 4), (128, 1024))),
}


@pytest.mark.parametrize("count", (1, 2, 4))
@pytest.mark.parametrize("transposed", (False, True))
def test_ldmatrix(transposed: bool, count: int) -> None:
    """Rows lie anywhere: lane 8 * m + r names the place of row r of matrix m."""
    rows = RANDOM.integers(0, 2**16, (32, 8), dtype=np.uint16)
    place = RANDOM.permutation(32).astype(np.uint32)
    destinations = ", ".join(f"%d{i}" for i in range(count))
    body = f"""
        .reg .b32 %p, %q; mov.u32 %p, buffer; mad.lo.u32 %q, %place, 16, %p;
        st.shared.v4.b32 [%q], {{%w0, %w1, %w2, %w3}}; bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x{count}{".trans" if transposed else ""}.shared.b16 {{{destinations}}}, [%q];"""
    words = {f"w{i}": column for i, column in enumerate(rows.view(np.uint32).T)}
    results = evaluate(body, {f"d{i}": "u4" for i in range(count)}, shared_bytes=512, place=place, **words)
    elements = rows.ravel()[LDMATRIX[transposed][:, : 2 * count] // 16].astype(np.uint32)
    for i, ours in enumerate(results):
        np.testing.assert_array_equal(ours, elements[:, 2 * i] | elements[:, 2 * i + 1] << 16)


BUGS = (
    "SwappedFragmentsOfA",
    "SwappedFragmentsOfB",
    "SwappedAccumulators",
    "NotTransposed",
    "SwappedMatrices",
    "WaitsForTooFew",
    "CopiesTooLittle",
)


@pytest.fixture(scope="module")
def products() -> Library:
    if nvcc.missing_tools():
        pytest.skip(f"PTX interpreter: {nvcc.missing_tools()}")
    return Library([nvcc.compile_ptx(Path(__file__).parent / "kernels.cu")])


def is_right(products: Library, name: str) -> bool:
    torch.manual_seed(0)
    depth = 96
    a, b = torch.randn(16, depth).bfloat16(), torch.randn(depth, 16).bfloat16()
    d = np.zeros((16, 16), np.float32)
    launch_program(products.program(f"product_{name}"), 1, 64, [bits_of(a), bits_of(b), d, depth])
    return np.allclose(d, (a.double() @ b.double()).numpy(), rtol=0, atol=1e-5)


def test_product(products: Library) -> None:
    assert is_right(products, "None")


@pytest.mark.parametrize("bug", BUGS)
def test_bug_is_noticed(products: Library, bug: str) -> None:
    assert not is_right(products, bug)


def test_every_bug_is_tried(products: Library) -> None:
    assert products.names == sorted(f"product_{bug}" for bug in ("None", *BUGS))
