"""EDM2UNet against its definition from the paper's formulas, and the magnitudes that it is made to keep."""

from __future__ import annotations

import contextlib
import copy
import math

import pytest
import torch
from edm_definition import defined, edm2_unet
from model_parity import (
    assert_checkpointing_gives_the_same,
    assert_parity,
    assert_same_in_float64,
    assert_stays_channels_last,
)
from torch import Tensor, nn

import fastdiff
from fastdiff.models import EDM2Precond, EDM2UNet
from fastdiff.models.edm2 import EDM2Block, MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalize

SMALL = {
    "img_resolution": 16,
    "img_channels": 3,
    "label_dim": 5,
    "model_channels": 16,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attn_resolutions": (8,),
    "channels_per_head": 16,
}
CONFIGS = {
    "defaults": SMALL,
    "balances": SMALL
    | {
        "channel_mult": (1, 2, 1),
        "resample_filter": (1, 3, 3, 1),
        "channel_mult_noise": 3,
        "channel_mult_emb": 1,
        "label_balance": 0.3,
        "concat_balance": 0.6,
        "res_balance": 0.2,
        "attn_balance": 0.4,
        "clip_act": 1.5,
    },
}


def made(name: str = "defaults") -> EDM2UNet:
    """With gains of which every one matters, in evaluation mode."""
    torch.manual_seed(0)
    model = EDM2UNet(**CONFIGS[name]).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("gain"):
                parameter.fill_(0.7)
    return model


def inputs(batch: int = 3) -> dict[str, Tensor]:
    return {
        "x": torch.randn(batch, 3, 16, 8, generator=torch.Generator().manual_seed(1)),
        "noise_labels": torch.tensor([-1.5, 0.25, 1.0])[:batch],
        "class_labels": torch.eye(5)[[0, 4, 2]][:batch],
    }


def call(model: nn.Module, values) -> Tensor:
    with fastdiff.use_reference() if getattr(model, "is_eager", False) else contextlib.nullcontext():
        return model(**values)


def magnitude(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


@pytest.mark.parametrize("name", CONFIGS)
def test_is_what_the_paper_defines(name: str) -> None:
    model = made(name)
    assert_same_in_float64(defined(model, edm2_unet), model, call, inputs())


@pytest.mark.parametrize("name", CONFIGS)
def test_kernels_are_as_exact_as_pytorch(name: str) -> None:
    eager, model = made(name), made(name)
    eager.is_eager = True
    assert_parity(eager, model, call, inputs())


def test_sums_and_activations_keep_the_magnitude() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(4, 96, 32, 32), torch.randn(4, 32, 32, 32)
    assert magnitude(mp_silu(a)) == pytest.approx(1, abs=0.005)
    for t in (0.0, 0.3, 0.5, 1.0):
        assert magnitude(mp_sum(a, torch.randn_like(a), t)) == pytest.approx(1, abs=0.005)
        joined = mp_cat(a, b, t)
        assert magnitude(joined) == pytest.approx(1, abs=0.005)
        # The parts of both in the sum of squares that a layer behind makes.
        squares = (1 - t) ** 2, t**2
        energies = joined[:, :96].square().sum(), joined[:, 96:].square().sum()
        total = sum(energies)
        for energy, square in zip(energies, squares, strict=True):
            assert (energy / total).item() == pytest.approx(square / sum(squares), abs=0.005)


def test_layers_keep_the_magnitude_whatever_their_weights() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 64, 34, 34)
    for kernel in ((1, 1), (3, 3)):
        layer = MPConv(64, 128, kernel)
        with torch.no_grad():
            layer.weight.mul_(torch.linspace(0.1, 30, 128)[:, None, None, None])
        y = layer(x)[:, :, 1:-1, 1:-1]  # zeros beyond the border weaken it
        assert magnitude(y) == pytest.approx(1, abs=0.01)
        assert y.square().mean((0, 2, 3)).sqrt().sub(1).abs().max() < 0.15  # of every channel
    assert magnitude(MPConv(64, 512)(torch.randn(256, 64))) == pytest.approx(1, abs=0.02)
    features = MPFourier(4096)(torch.linspace(-2, 2, 50))
    assert features.square().mean(1).sqrt().sub(1).abs().max() < 0.05
    assert MPConv(64, 8)(torch.randn(2, 64), gain=3.0).shape == (2, 8)


def test_every_block_keeps_the_magnitude() -> None:
    """On the way down the pixel norm makes it 1; on the way up nothing has to."""
    torch.manual_seed(0)
    model = EDM2UNet(**(SMALL | {"model_channels": 64, "channel_mult": (1, 2), "num_blocks": 2})).eval()
    seen: dict[str, float] = {}
    for name, block in model.named_modules():
        if isinstance(block, EDM2Block):
            block.register_forward_hook(lambda _, __, y, name=name: seen.update({name: magnitude(y)}))
    model.emb_noise.register_forward_hook(lambda _, __, y: seen.update(emb=magnitude(y)))
    with torch.no_grad():
        y = model(torch.randn(8, 3, 16, 16), torch.linspace(-1.5, 1.0, 8), torch.eye(5)[torch.arange(8) % 5])
    assert len(seen) == 15
    for name, value in seen.items():
        assert 0.8 < value < 1.1, f"{name}: {value:.3f}"
    assert magnitude(y) == 0  # a fresh network says nothing: its last gain is 0


def test_training_normalises_the_weights_and_evaluation_does_not() -> None:
    model = made()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 0:
                parameter.mul_(5)
    before = {key: p.clone() for key, p in model.named_parameters()}
    expected = model(**inputs())
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())
    torch.testing.assert_close(model.train()(**inputs()), expected, rtol=1e-3, atol=1e-3)
    layers = [module for module in model.modules() if isinstance(module, MPConv)]
    assert len(layers) == 47
    for layer in layers:
        norms = layer.weight.detach().flatten(1).norm(dim=1) / math.sqrt(layer.weight[0].numel())
        torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-3)


def test_gradient_of_a_weight_is_normal_to_it() -> None:
    """So that a step of the optimiser turns it (section 2.3)."""
    model = made().train()
    model(**inputs()).square().sum().backward()
    for layer in (model.emb_noise, model.enc["8x8_block0"].conv_res0, model.dec["16x16_block1"].conv_skip):
        weight, slope = layer.weight.detach().flatten(1), layer.weight.grad.flatten(1)
        assert slope.norm() > 0
        assert (weight * slope).sum(1).abs().max() < 1e-3 * (weight.norm(dim=1) * slope.norm(dim=1)).max()


def test_attention_is_of_cosines() -> None:
    """Scores of a pixel with itself are the square root of the width of a head, and no others are greater."""
    model = made()
    seen = []
    block = model.enc["8x8_block0"]
    block.attn_qkv.register_forward_hook(lambda _, __, y: seen.append(y))
    model(**inputs())
    tokens = normalize(seen[0].flatten(2).transpose(1, 2).unflatten(-1, (block.heads, -1, 3)), dim=-2)
    assert block.heads == 2 and tokens.shape[3:] == (16, 3)
    norms = tokens.norm(dim=-2)
    torch.testing.assert_close(norms, torch.full_like(norms, 4.0), rtol=1e-3, atol=1e-3)


def test_activations_are_clipped() -> None:
    model = made("balances")
    peaks = []
    for module in model.modules():
        if isinstance(module, EDM2Block):
            module.register_forward_hook(lambda _, __, y: peaks.append(y.abs().max().item()))
    model(**inputs())
    assert max(peaks) == 1.5


@pytest.mark.parametrize("name", CONFIGS)
def test_channels_last_from_end_to_end(name: str) -> None:
    assert_stays_channels_last(made(name), call, inputs())


def test_gradient_checkpointing_gives_the_same(monkeypatch) -> None:
    """The weights are normalised once a pass, not again when a block runs again."""
    model = made().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    normalised = []
    monkeypatch.setattr(MPConv, "normalize_weight_", lambda layer: normalised.append(layer))
    assert_checkpointing_gives_the_same(model, model.enc["8x8_block0"], call, inputs())
    assert len(normalised) == 3 * 47


def test_compiles_without_a_break() -> None:
    """In training: with the change of the weights in place, and the backward pass."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = EDM2UNet(**(SMALL | {"channel_mult": (1,), "attn_resolutions": ()})).train()
    nn.init.constant_(model.out_gain, 0.7)
    twin = copy.deepcopy(model)
    actual = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs())
    expected = twin(**inputs())
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    for y in (actual, expected):
        y.square().sum().backward()
    for (key, p), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, other, rtol=1e-5, atol=1e-6, msg=key)
        torch.testing.assert_close(p.grad, other.grad, rtol=1e-3, atol=1e-4, msg=key)


def test_empty_batch() -> None:
    model = made().train()
    values = inputs(0)
    y = model(values["x"].requires_grad_(), values["noise_labels"], values["class_labels"])
    assert y.shape == (0, 3, 16, 8)
    y.sum().backward()
    assert all(p.isfinite().all() for p in model.parameters())


def test_no_label_is_zeros_and_narrow_models_keep_the_noise_level() -> None:
    model = made()
    x = inputs()["x"]
    assert torch.equal(model(x, 0.5), model(x, 0.5, torch.zeros(3, 5)))
    assert not torch.equal(model(x, 0.5), model(x, 0.5, torch.eye(5)[:3]))
    frequencies = model.emb_fourier.freqs.clone()
    narrow = model.bfloat16()
    assert torch.equal(narrow.emb_fourier.freqs, frequencies)
    # bfloat16 has neither.
    assert not torch.equal(narrow(x.bfloat16(), 0.5001), narrow(x.bfloat16(), 0.5019))


def test_float32_weights_serve_a_narrow_pass() -> None:
    model, values = made(), inputs()
    actual = model(**{**values, "x": values["x"].bfloat16()})
    assert actual.dtype == torch.bfloat16
    expected = model(**values)
    assert (actual - expected).abs().max() < 0.05 * expected.abs().max()


def test_folder_round_trip(tmp_path) -> None:
    model = made("balances")
    model.save_pretrained(tmp_path)
    loaded = EDM2UNet.from_pretrained(tmp_path)
    assert loaded.config == model.config and not loaded.training
    assert torch.equal(loaded(**inputs()), model(**inputs()))


# Millions of weights of the paper's networks for latents of ImageNet-512 (arXiv:2312.02696, table 2), by their
# model_channels.
SIZES = {"xs": (128, 124.7), "s": (192, 280.2), "m": (256, 497.8), "l": (320, 777.5), "xl": (384, 1119.3)}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name: str) -> None:
    channels, millions = SIZES[name]
    with torch.device("meta"):
        model = EDM2Precond(img_resolution=64, img_channels=4, label_dim=1000, model_channels=channels)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_keys_of_the_weights() -> None:
    """Those of NVlabs/edm2: of blocks, and of all that is not a block."""
    with torch.device("meta"):
        keys = EDM2UNet(**SMALL).state_dict().keys()

    def of_block(name: str) -> set[str]:
        return {key.removeprefix(f"{name}.").removesuffix(".weight") for key in keys if key.startswith(f"{name}.")}

    plain = {"emb_gain", "conv_res0", "emb_linear", "conv_res1"}
    assert of_block("enc.8x8_down") == of_block("enc.16x16_block0") == plain
    assert of_block("enc.8x8_block0") == plain | {"conv_skip", "attn_qkv", "attn_proj"}
    assert of_block("dec.8x8_in0") == plain | {"attn_qkv", "attn_proj"}
    assert of_block("dec.16x16_block1") == plain | {"conv_skip"}
    assert {key for key in keys if key.split(".")[0] not in ("enc", "dec")} == {
        "out_gain", "emb_fourier.freqs", "emb_fourier.phases",
        "emb_noise.weight", "emb_label.weight", "out_conv.weight",
    }  # fmt: skip
    assert {key.split(".")[1] for key in keys if key.startswith("dec.")} == {
        "8x8_in0", "8x8_in1", "8x8_block0", "8x8_block1", "16x16_up", "16x16_block0", "16x16_block1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"res_balance": 1.5}, r"res_balance must lie in 0 \.\.\. 1, got 1.5"),
        ({"res_balance": "a"}, "res_balance must lie in .*'a'"),
        ({"label_balance": None}, "label_balance must lie in .*None"),
        ({"clip_act": -1}, "clip_act must be a number above 0, got -1"),
        ({"clip_act": "x"}, "clip_act must be a number above 0, got 'x'"),
        ({"channels_per_head": 10}, "attention on 32 channels cannot have heads of 10"),
        ({"channels_per_head": 64}, "attention on 32 channels cannot have heads of 64"),
        ({"resample_filter": ()}, "resample_filter must hold an even number"),
        ({"channel_mult_emb": 0}, "channel_mult_emb must be an integer of at least 1"),
        ({"in_channels": 3}, "no configuration key 'in_channels'"),
    ],
)
def test_unsupported_configuration(change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EDM2UNet(**(SMALL | change))


def test_wrong_inputs() -> None:
    model = made()
    values = inputs()
    with pytest.raises(ValueError, match=r"x must be \(N, 3, H, W\)"):
        model(values["x"][:, :2], 0.5)
    with pytest.raises(ValueError, match="multiples of 2"):
        model(values["x"][..., :7], 0.5)
    with pytest.raises(ValueError, match=r"class_labels must be \(3, 5\), one-hot"):
        model(values["x"], 0.5, torch.tensor([1, 2, 3]))
