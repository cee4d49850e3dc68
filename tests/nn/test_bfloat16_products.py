"""Products of bfloat16 matrices on the tile unit: one rounding, any shape, the same bits in any batch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from fastdiff.nn import Linear, bfloat16_products, tile_unit
from fastdiff.nn.bfloat16_products import LEAST_TERMS, PackedWeight

pytestmark = pytest.mark.skipif(
    not tile_unit.available(), reason="this processor has no tile unit, or FASTDIFF_CPU_ISA names another"
)

# (rows, in, out): one panel and several, whole and with rests of every kind; blocks of rows, of columns and of terms
SHAPES = (
    (32, 32, 32),
    (1, 1, 1),
    (2, 1152, 70),
    (33, 320, 96),
    (48, 70, 17),
    (300, 645, 15),
    (256, 64, 1100),
    (70, 5000, 40),
    (513, 4224, 50),
)
GELUS = (None, "none", "tanh")
TERMS = (70, 1152, 2200)  # with rests; one block; two


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def randn(*sizes: int) -> torch.Tensor:
    return torch.randn(sizes).bfloat16()


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, gelu: str | None = None
) -> torch.Tensor:
    return bfloat16_products.linear(x, bfloat16_products.pack(weight), bias, gelu)


def reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, gelu: str | None = None
) -> torch.Tensor:
    y = F.linear(x, weight, bias)
    return y if gelu is None else F.gelu(y, approximate=gelu)


@pytest.mark.parametrize("gelu", GELUS)
@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_accurate_as_torch(shape, bias, gelu) -> None:
    rows, terms, columns = shape
    x, weight, shift = randn(rows, terms), randn(columns, terms), randn(columns) if bias else None
    exact = reference(x.double(), weight.double(), None if shift is None else shift.double(), gelu)
    ours, theirs = (y.double() - exact for y in (linear(x, weight, shift, gelu), reference(x, weight, shift, gelu)))
    rounding = 2.0**-9 * exact.abs()  # of a result: what no correct one need be below
    assert ours.abs().max() <= 2 * max(theirs.abs().max(), rounding.max())
    assert ours.square().mean().sqrt() <= 2 * max(theirs.square().mean().sqrt(), rounding.square().mean().sqrt())


@pytest.mark.parametrize("terms", TERMS)
def test_sums_are_rounded_once(terms) -> None:
    """Sums of integers below 2^24 are exact in float32, and a result is what is nearest to them."""
    x, weight = (torch.randint(-15, 16, size).bfloat16() for size in ((290, terms), (170, terms)))
    bias = torch.randint(-15, 16, (170,)).bfloat16()
    exact = F.linear(x.double(), weight.double(), bias.double())
    assert torch.equal(linear(x, weight, bias), exact.bfloat16())


@pytest.mark.parametrize("value", (float("inf"), -float("inf"), float("nan")))
@pytest.mark.parametrize("gelu", GELUS)
@pytest.mark.parametrize("terms", TERMS)
def test_what_is_not_finite_stays_in_its_row(value, gelu, terms) -> None:
    x, weight, bias = randn(80, terms), randn(48, terms), randn(48)
    y = linear(x, weight, bias, gelu)
    x[70, terms - 1] = value
    changed = linear(x, weight, bias, gelu)
    expected = F.linear(x[70], weight, bias)
    assert not expected.isfinite().any()
    if gelu is not None:  # at infinity the limit; PyTorch's in bfloat16 is NaN there
        expected = expected.where(expected != -float("inf"), 0)
    torch.testing.assert_close(changed[70], expected, equal_nan=True)
    others = torch.arange(80) != 70
    assert torch.equal(changed[others], y[others])


@pytest.mark.parametrize("gelu", GELUS)
@pytest.mark.parametrize("terms", TERMS)
def test_same_bits_in_any_batch_and_on_any_number_of_threads(gelu, terms) -> None:
    threads = torch.get_num_threads()
    x, weight, bias = randn(600, terms), randn(530, terms), randn(530)
    y = linear(x, weight, bias, gelu)
    try:
        for count in (1, 2, 3, 16):
            torch.set_num_threads(count)
            assert torch.equal(linear(x, weight, bias, gelu), y)
            assert torch.equal(linear(x[:5], weight, bias, gelu), y[:5])
            assert torch.equal(linear(x[77:400], weight, bias, gelu), y[77:400])
            assert torch.equal(linear(x, weight[3:40], bias[3:40], gelu), y[:, 3:40])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("rows", "terms", "columns"), ((0, 8, 8), (40, 8, 0), (40, 0, 8)))
def test_empty_operands(rows, terms, columns) -> None:
    x, weight, bias = randn(rows, terms), randn(columns, terms), randn(columns)
    y = x.new_full((rows, columns), 7)
    torch.ops.fastdiff.bfloat16_product(x, torch.ops.fastdiff.bfloat16_weight(weight), bias, False, False, y)
    assert torch.equal(y, F.linear(x, weight, bias))


def test_strides_and_leading_sizes() -> None:
    x, weight = randn(3, 70, 5).transpose(1, 2), randn(140, 40)[::2].T
    expected = linear(x.reshape(15, 70), weight.contiguous()).view(3, 5, 40)
    assert torch.equal(linear(x, weight), expected)


def test_a_layer_uses_them_from_so_many_inputs_on_and_sees_its_weight_change() -> None:
    small, layer = (Linear(terms, 48, dtype=torch.bfloat16).eval() for terms in (LEAST_TERMS - 1, LEAST_TERMS))
    small(randn(40, LEAST_TERMS - 1))
    assert not isinstance(small._kept.value, PackedWeight)
    x = randn(2, 20, LEAST_TERMS)
    for _ in range(2):
        assert torch.equal(layer(x), linear(x, layer.weight, layer.bias))
        assert torch.equal(layer.gelu(x, "tanh"), linear(x, layer.weight, layer.bias, "tanh"))
        assert isinstance(layer._kept.value, PackedWeight)
        layer.weight.mul_(2)


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"x": torch.zeros(4, 40)}, "x must be bfloat16 and contiguous, with 2 dimensions"),
        ({"x": randn(40, 4).T}, "x must be bfloat16 and contiguous"),
        ({"packed": torch.zeros(1, 2, 1024)}, "packed must be bfloat16"),
        ({"packed": randn(1, 1, 1024)}, "packed must have the shape"),
        ({"bias": torch.zeros(8)}, "bias must be bfloat16"),
        ({"bias": randn(16)[::2]}, "bias must be bfloat16 and contiguous"),
        ({"bias": randn(9)}, "bias must have the shape"),
        ({"y": torch.zeros(4, 8)}, "y must be bfloat16"),
        ({"y": randn(8, 4).T}, "y must be bfloat16 and contiguous"),
        ({"y": randn(5, 8)}, "y must have the shape"),
    ),
)
def test_operands_that_do_not_fit_are_refused(change, message) -> None:
    operands = {
        "x": randn(4, 40),
        "packed": bfloat16_products.pack(randn(8, 40)).packed,
        "bias": randn(8),
        "gelu": False,
        "tanh": False,
        "y": randn(4, 8),
    }
    torch.ops.fastdiff.bfloat16_product.default(*operands.values())
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastdiff.bfloat16_product.default(*(operands | change).values())


@pytest.mark.parametrize("weight", (torch.zeros(8, 40), randn(8), randn(40, 8).T))
def test_weights_that_do_not_fit_are_refused(weight) -> None:
    with pytest.raises(RuntimeError, match="weight must be bfloat16 and contiguous, with 2 dimensions"):
        torch.ops.fastdiff.bfloat16_weight(weight)


def test_other_instruction_sets_say_so() -> None:
    code = "import torch, fastdiff; torch.ops.fastdiff.bfloat16_weight(torch.zeros(2, 2).bfloat16())"
    environment = os.environ | {"FASTDIFF_CPU_ISA": "avx512"}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "bfloat16_product: avx512 has no tile unit" in process.stderr
