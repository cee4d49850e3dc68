"""Float32 products on the tile unit: float32's accuracy, what it cannot do left to torch, never a stale weight."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from accuracy import assert_as_exact
from torch import nn
from torch.nn import functional as F

import fastdiff
from fastdiff.nn import FeedForward, Linear, split_products, tile_unit

pytestmark = pytest.mark.skipif(
    not tile_unit.available(), reason="this processor has no tile unit, or FASTDIFF_CPU_ISA names another"
)

# (rows, in, out): one panel and several, of full size and with rests; blocks of rows and of terms, one and several
SHAPES = (
    (32, 32, 32),
    (33, 320, 96),
    (154, 768, 320),
    (70, 31, 15),
    (300, 645, 17),
    (64, 1, 1),
    (513, 1300, 50),
    (150, 5120, 200),
)
LARGE = 3.4e38  # finite, but infinite in bfloat16


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    packed = split_products.pack(weight[None])
    assert packed is not None
    return split_products.linear(x, packed, weight, bias)


def assert_as_accurate_as_torch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Errors count by the magnitude of what each result adds up: all of them weigh alike, whatever its exponent."""
    wide = [None if operand is None else operand.double() for operand in (x, weight, bias)]
    exact, added = F.linear(*wide), F.linear(*(None if operand is None else operand.abs() for operand in wide))
    ours, theirs = ((y.double() - exact) / added for y in (linear(x, weight, bias), F.linear(x, weight, bias)))
    rounding = 2.0**-24  # of a result, which no sum gets below
    assert ours.abs().max() <= 2 * max(theirs.abs().max(), rounding)
    assert ours.square().mean().sqrt() <= 2 * theirs.square().mean().sqrt()


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("offset", (0.0, 100.0))
def test_as_accurate_as_torch(shape, bias, offset) -> None:
    rows, terms, columns = shape
    x, weight = torch.randn(rows, terms) + offset, torch.randn(columns, terms)
    assert_as_accurate_as_torch(x, weight, torch.randn(columns) if bias else None)


@pytest.mark.parametrize("octaves", (10, 40))
def test_as_accurate_as_torch_over_a_wide_range(octaves) -> None:
    x, weight = torch.randn(200, 320), torch.randn(100, 320)
    for operand in (x, weight):
        operand.mul_(torch.exp2(torch.randint(-octaves, octaves + 1, operand.shape)))
    assert_as_accurate_as_torch(x, weight, None)
    rows = torch.exp2(torch.randint(-octaves, octaves + 1, (200, 1)))
    scaled, plain = linear(x * rows, weight), linear(x, weight)
    assert torch.equal(scaled, plain * rows)  # whatever the exponents, the digits are the same


def test_every_digit_of_an_operand_counts() -> None:
    """Where nothing is added, a product by a power of two is the number itself."""
    x = (torch.randint(2**23, 2**24, (64, 32)) * torch.exp2(torch.randint(-60, 60, (64, 32)))).float()
    weight = torch.eye(32) * -2
    assert torch.equal(linear(x, weight), -2 * x)
    assert torch.equal(linear(weight, x), -2 * x.T)


def test_what_no_float32_sum_would_round_is_exact() -> None:
    x, weight, bias = (torch.randint(-50, 51, size).float() for size in ((90, 1300), (70, 1300), (70,)))
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


@pytest.mark.parametrize("value", (float("inf"), -float("inf"), float("nan"), LARGE, -LARGE))
@pytest.mark.parametrize("terms", (64, 700))
def test_rows_that_are_not_finite_are_those_of_torch(value, terms) -> None:
    x, weight, bias = torch.randn(80, terms), torch.randn(48, terms) / terms, torch.randn(48)
    y = linear(x, weight, bias)
    x[70, terms - 1] = value
    weight[5, terms - 1] = 0
    changed = linear(x, weight, bias)
    torch.testing.assert_close(changed[70], F.linear(x[70], weight, bias), equal_nan=True)
    others = torch.arange(80) != 70
    assert torch.equal(changed[others][:, 6:], y[others][:, 6:])
    x[70, terms - 1] = 0
    bias[3] = value
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), equal_nan=True)


@pytest.mark.parametrize("value", (float("inf"), float("nan"), LARGE, -LARGE))
def test_weights_that_are_not_finite_are_left_to_torch(value) -> None:
    layer, x = Linear(256, 144).eval(), torch.randn(40, 256)
    layer.weight[3, 7] = value
    assert split_products.pack(layer.weight[None]) is None
    for _ in range(2):
        assert torch.equal(layer(x).nan_to_num(), F.linear(x, layer.weight, layer.bias).nan_to_num())


def test_numbers_near_the_ends_of_the_range() -> None:
    x, weight = torch.full((32, 32), 3.38e38), torch.eye(32) / 2
    assert torch.equal(linear(x, weight), x / 2)
    tiny = 1e-39 * torch.rand(32, 32)  # subnormal
    assert linear(tiny, weight).abs().max() <= 1e-39


def test_same_bits_in_any_batch_and_on_any_number_of_threads() -> None:
    threads = torch.get_num_threads()
    x, weight, bias = torch.randn(600, 700), torch.randn(530, 700), torch.randn(530)
    y = linear(x, weight, bias)
    try:
        for count in (1, 2, 3, 16):
            torch.set_num_threads(count)
            assert torch.equal(linear(x, weight, bias), y)
            assert torch.equal(linear(x[:40], weight, bias), y[:40])  # whose columns are shared among threads
            assert torch.equal(linear(x[77:400], weight, bias), y[77:400])
            assert torch.equal(linear(x, weight[3:40], bias[3:40]), y[:, 3:40])
    finally:
        torch.set_num_threads(threads)


def test_several_products_at_once() -> None:
    x, weights = torch.randn(5, 70, 90), torch.randn(5, 40, 90)
    packed = split_products.pack(weights)
    y, finite = split_products.multiply(x, packed)
    assert finite and y.shape == (5, 70, 40)
    for i in range(5):
        assert torch.equal(y[i], linear(x[i], weights[i]))
    x[3, 2, 1] = float("nan")
    assert not split_products.multiply(x, packed)[1]


@pytest.mark.parametrize(("rows", "terms", "columns"), ((0, 8, 8), (40, 8, 0), (40, 0, 8)))
def test_empty_operands(rows, terms, columns) -> None:
    layer = Linear(terms, columns).eval() if terms and columns else None
    x, weight, bias = torch.randn(rows, terms), torch.randn(columns, terms), torch.randn(columns)
    if layer is not None:
        assert layer(x).shape == (rows, columns)
    packed = torch.ops.fastdiff.split_weight(weight[None])
    y = x.new_full((1, rows, columns), 7)
    assert torch.ops.fastdiff.split_product(x[None], packed, bias, y)
    assert torch.equal(y[0], F.linear(x, weight, bias))


@pytest.mark.parametrize("bias", (True, False))
def test_the_layer_takes_it_for_enough_rows_and_numbers(bias) -> None:
    layer, x = Linear(200, 168, bias=bias).eval(), torch.randn(3, 50, 200)
    y = layer(x)
    assert layer._kept.setting == "split"
    assert torch.equal(y.flatten(0, 1), linear(x.flatten(0, 1), layer.weight, layer.bias))
    assert torch.equal(layer(x[:, ::2]), y[:, ::2])  # strides
    for approximate in ("none", "tanh"):
        assert torch.equal(layer.gelu(x, approximate), F.gelu(y, approximate=approximate))
    kept = layer._kept
    few = x[0, : split_products.LEAST_ROWS - 1]
    assert torch.equal(layer(few), F.linear(few, layer.weight, layer.bias))
    assert layer._kept is kept
    small = Linear(200, split_products.LEAST_NUMBERS // 200, bias=bias).eval()
    assert torch.equal(small(x), F.linear(x, small.weight, small.bias))
    assert small._kept is None


def test_never_a_stale_weight() -> None:
    layer, x = Linear(256, 144).eval(), torch.randn(40, 256)
    changes = (
        lambda: layer.weight.mul_(2),
        lambda: layer.weight.data.add_(1),
        lambda: layer.bias.add_(1),
        lambda: layer.load_state_dict({name: tensor - 1 for name, tensor in layer.state_dict().items()}),
    )
    for change in changes:
        before = layer(x)
        change()
        after = layer(x)
        assert not torch.equal(before, after)
        exact = F.linear(x.double(), layer.weight.double(), layer.bias.double())
        assert_as_exact(after, F.linear(x, layer.weight, layer.bias), exact)


def test_the_layer_is_saved_and_copied_without() -> None:
    layer, x = Linear(256, 144).eval(), torch.randn(40, 256)
    y = layer(x)
    assert set(layer.state_dict()) == {"weight", "bias"}
    twin = copy.deepcopy(layer)
    assert twin._kept is None and torch.equal(twin(x), y)


def test_plain_where_it_has_no_part() -> None:
    layer, x = Linear(256, 144).eval(), torch.randn(40, 256)

    def is_plain(result: torch.Tensor) -> bool:
        return torch.equal(result, F.linear(x, layer.weight, layer.bias)) and layer._kept is None

    with torch.enable_grad():
        assert layer(x).requires_grad and layer._kept is None
    with fastdiff.use_reference():
        assert is_plain(layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16 and layer._kept is None
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), F.linear(x, layer.weight, layer.bias))
    assert layer.train()(x) is not None and layer._kept is None


def test_inference_mode() -> None:
    layer, x = Linear(256, 144).eval(), torch.randn(40, 256)
    y = layer(x)
    with torch.inference_mode():
        assert torch.equal(layer(x), y)


def test_blocks_of_models_are_made_of_it() -> None:
    feed, x = FeedForward(128).eval(), torch.randn(2, 40, 128)
    with fastdiff.use_reference():
        expected = feed(x)
    torch.testing.assert_close(feed(x), expected)
    kept = [module._kept.setting for module in feed.modules() if isinstance(module, nn.Linear)]
    assert kept == ["split", "split"]


def test_other_instruction_sets_say_so() -> None:
    program = "import fastdiff, torch; torch.ops.fastdiff.split_weight(torch.ones(1, 2, 3))"
    environment = {**os.environ, "FASTDIFF_CPU_ISA": "portable"}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert "RuntimeError" in result.stderr and "split_product: portable has no tile unit" in result.stderr


def test_ops_check_their_arguments() -> None:
    x, weight, y = torch.randn(2, 40, 64), torch.randn(2, 48, 64), torch.empty(2, 40, 48)
    pack, multiply = torch.ops.fastdiff.split_weight, torch.ops.fastdiff.split_product
    packed = pack(weight)
    for wrong in (weight[0], weight.double(), weight.transpose(1, 2)):
        with pytest.raises(RuntimeError, match="weight must be"):
            pack(wrong)
    wrong_calls = (
        (x.double(), packed, None, y),
        (x[:, :, ::2], packed, None, y),
        (x[..., :32].contiguous(), packed, None, y),
        (x, packed.float(), None, y),
        (x, packed[:1], None, y),
        (x, packed, torch.randn(47), y),
        (x, packed, torch.randn(48).double(), y),
        (x, packed, None, y[:, :39].contiguous()),
        (x, packed, None, torch.empty(2, 40, 80)),
        (x, packed, None, y[0]),
        (x, packed, None, y.double()),
    )
    for arguments in wrong_calls:
        with pytest.raises(RuntimeError, match="split_product: (x|packed|bias|y) must"):
            multiply(*arguments)
