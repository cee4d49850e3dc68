"""3x3 convolutions by minimal filtering against the sum, and the errors of their two halves."""

from __future__ import annotations

import instruction_sets
import pytest
import torch
from accuracy import assert_draws_as_exact
from torch import nn
from torch.nn import functional as F

import fastdiff
from fastdiff.nn import Conv2d, split_products, tile_unit, winograd

# (N, H, W): one chunk and several, with a rest; odd sizes, whose last tiles hang over; a map of one row
SIZES = ((2, 8, 8), (1, 13, 11), (3, 1, 64), (1, 23, 25), (5, 16, 10))


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(params=("batched", "linear", "split"))
def products(request, monkeypatch) -> None:
    """Who multiplies the parts: the one library or the other where it is the faster, or the tile unit."""
    monkeypatch.setattr(winograd, "onednn_has_faster_products", lambda: request.param == "linear")
    if request.param != "split":
        monkeypatch.setattr(tile_unit, "available", lambda: False)
    elif not tile_unit.available():
        pytest.skip("this processor has no tile unit, or its kernels are not in use")


def random_map(batch: int, channels: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(batch, channels, height, width).contiguous(memory_format=torch.channels_last)


def convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return winograd.convolve(x, winograd.pack(weight), bias, len(weight))[0]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("channels", "out_channels"), ((64, 80), (96, 64)))
def test_whole_numbers_are_exact(products, size, channels, out_channels) -> None:
    """Nothing is rounded where the parts are whole numbers, too: every result is the sum's, to the bit."""
    batch, height, width = size
    x = torch.randint(-8, 9, (batch, channels, height, width)).float().contiguous(memory_format=torch.channels_last)
    weight, bias = 4 * torch.randint(-3, 4, (out_channels, channels, 3, 3)).float(), torch.randn(out_channels).round()
    y = convolve(x, weight, bias)
    assert torch.equal(y, F.conv2d(x, weight, bias, padding=1))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(convolve(x, weight), F.conv2d(x, weight, padding=1))


@pytest.mark.parametrize("mean", (0.0, 10.0))
@pytest.mark.parametrize("channels", (64, 320))
def test_as_exact_as_the_sum(products, channels, mean) -> None:
    def draw():
        x, bias = random_map(2, channels, 15, 14) + mean, torch.randn(96)
        weight = torch.randn(96, channels, 3, 3) / (9 * channels) ** 0.5
        eager = F.conv2d(x, weight, bias, padding=1)
        exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
        return {"y": (convolve(x, weight, bias), eager, exact)}

    assert_draws_as_exact(draw, 2 * 96 * 15 * 14)


def test_the_layer_takes_it_where_it_is_faster() -> None:
    def kept_by(x, **arguments):
        layer = Conv2d(128, 144, **{"kernel_size": 3, "padding": 1, **arguments}).eval()
        layer = layer.to(x.dtype, memory_format=torch.channels_last)
        expected = nn.Conv2d.forward(layer, x)
        torch.testing.assert_close(layer(x), expected, rtol=2e-2 if x.dtype == torch.bfloat16 else 1e-5, atol=1e-5)
        return None if layer._kept is None else layer._kept.setting

    x = random_map(2, 128, 16, 16)
    assert kept_by(x) == kept_by(x, bias=False) == kept_by(random_map(1, 128, 8, 8)) == "winograd"
    for arguments in ({"stride": 2}, {"kernel_size": 1}, {"groups": 2}, {"dilation": 2}, {"padding": 0}):
        assert kept_by(x, **arguments) == "direct"
    assert kept_by(x.bfloat16()) == kept_by(random_map(9, 128, 6, 8)) == "direct"
    assert kept_by(x.contiguous()) is None


def test_a_sample_is_the_same_in_any_batch() -> None:
    layer = Conv2d(128, 128, 3, padding=1).eval()
    for size in (6, 8, 20):
        x = random_map(9, 128, size, size)
        torch.testing.assert_close(layer(x)[4:5], layer(x[4:5]), rtol=0, atol=0)


def test_compiles_without_a_break() -> None:
    layer, x = Conv2d(128, 128, 3, padding=1).eval(), random_map(1, 128, 8, 8)
    y = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), y)


def test_nan_comes_out() -> None:
    x, weight = random_map(1, 64, 12, 12), torch.randn(64, 64, 3, 3)
    x[0, 3, 5, 6] = float("nan")
    y, expected = convolve(x, weight), F.conv2d(x, weight, padding=1)
    assert y.isnan()[expected.isnan()].all()
    far = F.max_pool2d(expected.isnan().float(), 3, 1, 1) == 0  # more than the tiles of its neighbours
    assert not y[far].isnan().any()


@pytest.mark.skipif(not tile_unit.available(), reason="this processor has no tile unit")
@pytest.mark.parametrize("value", (float("inf"), float("nan"), 3.4e38))
def test_what_is_not_finite_goes_to_the_plain_convolution_from_the_tile_unit(value) -> None:
    layer, x = Conv2d(128, 144, 3, padding=1).eval(), random_map(3, 128, 16, 16)
    y = layer(x)
    x[1, 7, 3, 4] = value
    changed = layer(x)
    assert torch.equal(changed[::2], y[::2])
    torch.testing.assert_close(changed[1:2], nn.Conv2d.forward(layer, x[1:2]), equal_nan=True)
    assert isinstance(layer._kept.value, split_products.SplitWeight)


@pytest.mark.parametrize("isa", fastdiff.build_info()["cpu_isas_built"])
def test_every_instruction_set(isa) -> None:
    instruction_sets.run_tests(isa, __file__, "exact")


def test_halves_check_their_arguments() -> None:
    split, merge = torch.ops.fastdiff.winograd_input.default, torch.ops.fastdiff.winograd_output.default
    x = torch.randn(1, 8, 8, 64)
    products = list(split(x, 0, 16))
    with pytest.raises(RuntimeError, match="17 tiles from 0 on must lie among the 16"):
        split(x, 0, 17)
    with pytest.raises(RuntimeError, match="3 tiles from -1"):
        split(x, -1, 3)
    with pytest.raises(RuntimeError, match="1 tiles from 9223372036854775807 on"):
        split(x, 2**63 - 1, 1)
    with pytest.raises(RuntimeError, match="multiple of 16, got 8"):
        split(x[..., :8].contiguous(), 0, 1)
    with pytest.raises(RuntimeError, match="must be \\(N, H, W, C\\)"):
        split(x.permute(0, 2, 1, 3), 0, 1)
    with pytest.raises(RuntimeError, match="must be \\(N, H, W, C\\)"):
        split(x.double(), 0, 1)
    y = torch.empty_like(x)
    with pytest.raises(RuntimeError, match="16 products, got 15"):
        merge(products[:15], None, y, 0)
    with pytest.raises(RuntimeError, match="must be \\(tiles, channels\\)"):
        merge([torch.tensor(1.0)] * 16, None, y, 0)
    with pytest.raises(RuntimeError, match="bias must be"):
        merge(products, torch.randn(65), y, 0)
    with pytest.raises(RuntimeError, match="products must be"):
        merge([*products[:15], products[15][:, :32]], None, y, 0)
    with pytest.raises(RuntimeError, match="16 tiles from 1 on"):
        merge(products, None, y, 1)
