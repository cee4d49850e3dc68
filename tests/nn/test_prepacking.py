"""Linear layers and convolutions whose weights are laid out ahead of time: the plain ones' results, never stale."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from accuracy import assert_as_exact
from torch import nn
from torch.nn import functional as F

import fastdiff
from fastdiff.nn import Conv2d, Linear, prepacking, tile_unit

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def onednn_products(monkeypatch):
    """As on a machine without a tile unit, where oneDNN's float32 products are faster than those of `F.linear`."""
    monkeypatch.setattr("fastdiff.nn.linear.onednn_has_faster_products", lambda: True)
    monkeypatch.setattr(tile_unit, "available", lambda: False)


def conv_input(dtype: torch.dtype, channels: int = 24, size: tuple[int, int] = (13, 9)) -> torch.Tensor:
    return torch.randn(2, channels, *size, dtype=dtype).contiguous(memory_format=torch.channels_last)


KINDS = ("linear", "conv", "winograd")


def make(kind: str, dtype: torch.dtype) -> tuple[nn.Module, torch.Tensor]:
    if kind == "linear":
        return Linear(40, 72, dtype=dtype).eval(), torch.randn(3, 50, 40, dtype=dtype)
    channels = 128 if kind == "winograd" else 24  # in float32
    layer = Conv2d(channels, 144, 3, padding=1, dtype=dtype).eval()
    return layer.to(memory_format=torch.channels_last), conv_input(dtype, channels)


def plain(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The definition, whatever has been kept."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, layer.weight, layer.bias)
    return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("rows", (1, 77, 300))
def test_linear_is_as_accurate_as_torch(onednn_products, dtype, bias, rows) -> None:
    layer = Linear(200, 136, bias=bias, dtype=dtype).eval()
    for _ in range(2):
        x = torch.randn(2, rows, 200, dtype=dtype)
        exact = F.linear(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())
        assert_as_exact(layer(x), F.linear(x, layer.weight, layer.bias), exact)
        for approximate in ("none", "tanh"):
            gelu = F.gelu(F.linear(x, layer.weight, layer.bias), approximate=approximate)
            assert_as_exact(layer.gelu(x, approximate), gelu, F.gelu(exact, approximate=approximate))
    assert layer._kept is not None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "arguments",
    (
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2, "bias": False},
        {"kernel_size": 1},
        {"kernel_size": (3, 5), "padding": (0, 2), "dilation": 2, "groups": 4},
    ),
    ids=str,
)
def test_convolution_has_the_same_bits(dtype, arguments) -> None:
    layer = Conv2d(24, 40, dtype=dtype, **arguments).eval().to(memory_format=torch.channels_last)
    for size in ((13, 9), (13, 9), (32, 32)):  # the second finds the weight laid out; the third is not what it is for
        x = conv_input(dtype, size=size)
        y = layer(x)
        assert layer._kept is not None
        assert torch.equal(y, plain(layer, x))
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_stale_weight(onednn_products, kind, dtype) -> None:
    layer, x = make(kind, dtype)

    def replace():
        layer.weight = nn.Parameter(torch.randn_like(layer.weight))

    def read_otherwise():
        """The same memory, in another order."""
        weight = layer.weight.data
        strided = weight.transpose(2, 3) if weight.dim() == 4 else weight.as_strided(weight.shape, (1, len(weight)))
        layer.weight.data = strided

    def there_and_back():
        layer.to(torch.float64)
        layer.weight.mul_(2)
        layer.to(dtype)

    changes = (
        lambda: layer.weight.mul_(2),
        lambda: layer.load_state_dict({name: tensor + 1 for name, tensor in layer.state_dict().items()}),
        lambda: layer.weight.data.add_(1),
        read_otherwise,
        lambda: layer.load_state_dict({k: v * 2 for k, v in layer.state_dict().items()}, assign=True),
        replace,
        there_and_back,
    )
    before = layer(x)
    for change in changes:
        assert layer._kept is not None
        change()
        after = layer(x)
        assert not torch.equal(after, before)
        expected = plain(layer, x)
        torch.testing.assert_close(after, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
        before = after


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_is_laid_out_once(onednn_products, kind) -> None:
    layer, x = make(kind, torch.bfloat16)
    layer(x)
    kept = layer._kept
    layer(x)
    assert layer._kept is kept


@pytest.mark.parametrize("kind", KINDS)
def test_plain_where_the_weight_may_change_or_onednn_has_no_part(onednn_products, kind) -> None:
    layer, x = make(kind, torch.float32)

    def is_plain(result: torch.Tensor) -> bool:
        return torch.equal(result, plain(layer, x)) and layer._kept is None

    with torch.enable_grad():
        y = layer(x)
        assert y.requires_grad and layer._kept is None
    with fastdiff.use_reference():
        assert is_plain(layer(x))
    with torch.backends.mkldnn.flags(enabled=False):
        assert is_plain(layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16 and layer._kept is None
    assert layer.double()(x.double()).dtype == torch.float64 and layer._kept is None
    assert layer.float()(x[:0]).shape[0] == 0 and layer._kept is None
    layer.train()(x)
    assert layer._kept is None


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_batches_of_weights_and_programs_get_the_plain_layer(onednn_products, kind) -> None:
    layer, x = make(kind, torch.float32)
    result, tangent = torch.func.jvp(layer, (x,), (x,))
    torch.testing.assert_close(tangent, plain(layer, x) - plain(layer, torch.zeros_like(x)), rtol=1e-4, atol=1e-4)
    both = {name: torch.stack([tensor, 2 * tensor]) for name, tensor in layer.state_dict().items()}
    several = torch.vmap(lambda weights: torch.func.functional_call(layer, weights, (x,)))(both)
    torch.testing.assert_close(several[1], 2 * several[0])
    assert layer._kept is None
    torch.testing.assert_close(torch.jit.trace(layer, x)(x), plain(layer, x))


@pytest.mark.parametrize("kind", KINDS)
def test_unusual_weights_and_biases(onednn_products, kind) -> None:
    layer, x = make(kind, torch.float32)
    layer.bias = nn.Parameter(torch.randn(2 * layer.bias.numel())[::2])
    torch.testing.assert_close(layer(x), plain(layer, x))
    layer.bias = nn.Parameter(torch.randn(1).expand(len(layer.weight)))
    torch.testing.assert_close(layer(x), plain(layer, x))
    layer, x = make(kind, torch.float32)
    layer.weight = nn.Parameter(layer.weight.detach().share_memory_())  # other processes may write it
    assert torch.equal(layer(x), plain(layer, x)) and layer._kept is None

    class Special(torch.Tensor):
        pass

    layer.weight = nn.Parameter(torch.randn_like(layer.weight).as_subclass(Special))
    torch.testing.assert_close(layer(x).as_subclass(torch.Tensor), plain(layer, x).as_subclass(torch.Tensor))
    assert layer._kept is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16))
def test_default_dtype_and_device_have_no_part(kind, dtype) -> None:
    layer, x = make(kind, torch.float32)
    prepacking.onednn_has_faster_products.cache_clear()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            torch.testing.assert_close(layer(x), plain(layer, x))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_those_of_torch(onednn_products, kind) -> None:
    layer, x = make(kind, torch.float32)
    wrong = [
        x[..., 1:] if kind == "linear" else x[:, 1:].contiguous(memory_format=torch.channels_last),
        x.flatten()[0],
        x.bfloat16(),
    ]
    if kind != "linear":
        wrong.append(x[:, :, :1, :0])
    for operand in wrong:
        with pytest.raises(RuntimeError) as expected:
            plain(layer, operand)
        with pytest.raises(RuntimeError) as raised:
            layer(operand)
        assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_training_start_without(onednn_products, kind) -> None:
    layer, x = make(kind, torch.bfloat16)
    y = layer(x)
    assert layer._kept is not None
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin._kept is None
        assert torch.equal(twin(x), y)
    assert layer.train()._kept is None


def test_contiguous_maps_keep_to_torch() -> None:
    layer, x = make("conv", torch.bfloat16)
    x = x.contiguous()
    assert torch.equal(layer(x), plain(layer, x)) and layer._kept is None
    layer, x = Conv2d(1, 4, 3, padding=1).eval(), torch.randn(2, 1, 8, 8)  # which is channels-last as well
    assert layer(x).is_contiguous() and layer._kept is None


def test_other_paddings_keep_to_torch() -> None:
    x = conv_input(torch.float32)
    for arguments in ({"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}):
        layer = Conv2d(24, 24, 3, **arguments).eval()
        twin = nn.Conv2d(24, 24, 3, **arguments)
        twin.load_state_dict(layer.state_dict())
        assert torch.equal(layer(x), twin(x)) and layer._kept is None


def test_products_are_measured_once(monkeypatch) -> None:
    layer, x = make("linear", torch.float32)
    monkeypatch.setattr(tile_unit, "available", lambda: False)
    prepacking.onednn_has_faster_products.cache_clear()
    faster = {True: 1e-3, False: 1.0}
    for wins in (True, False):
        times = iter([0.1, faster[wins]] * 10)
        monkeypatch.setattr(prepacking, "_processor_seconds", lambda call, times=times: next(times))
        prepacking.onednn_has_faster_products.cache_clear()
        layer(x)
        assert (layer._kept is not None) == wins
        layer(x)  # no more times to take
        layer.forget()
    prepacking.onednn_has_faster_products.cache_clear()


def test_compiled_without_a_break() -> None:
    layer, x = make("linear", torch.float32)
    layer(x)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), plain(layer, x))
