"""SongUNet and DhariwalUNet against their definition from the papers' formulas, and what all models have."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from edm_definition import defined, dhariwal_unet, moved, song_unet
from model_parity import (
    assert_checkpointing_gives_the_same,
    assert_parity,
    assert_same_in_float64,
    assert_stays_channels_last,
)
from torch import nn

import fastdiff
from fastdiff.models import DhariwalUNet, EDMPrecond, SongUNet
from fastdiff.models.resampling import resample

SONG = {
    "img_resolution": 16,
    "in_channels": 3,
    "out_channels": 2,
    "model_channels": 16,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attn_resolutions": (8,),
    "dropout": 0.0,
}
NCSN = {"embedding_type": "fourier", "channel_mult_noise": 2, "resample_filter": (1, 3, 3, 1)}
MODELS = {
    "ddpm++": (SongUNet, song_unet, SONG | {"label_dim": 5, "augment_dim": 9}),
    "ncsn++": (SongUNet, song_unet, SONG | NCSN | {"encoder_type": "residual", "num_blocks": 2}),
    "skip": (
        SongUNet,
        song_unet,
        SONG | NCSN | {"encoder_type": "skip", "decoder_type": "skip", "channel_mult": (1, 1, 2)},
    ),
    "adm": (
        DhariwalUNet,
        dhariwal_unet,
        {
            "img_resolution": 16,
            "in_channels": 3,
            "out_channels": 2,
            "label_dim": 5,
            "augment_dim": 9,
            "model_channels": 64,
            "channel_mult": (1, 2),
            "num_blocks": 1,
            "attn_resolutions": (8,),
            "dropout": 0.0,
        },
    ),
}


def made(name: str, **changes) -> nn.Module:
    """With weights of which every one matters, in evaluation mode."""
    torch.manual_seed(0)
    kind, _, config = MODELS[name]
    model = kind(**(config | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def inputs(model: nn.Module, batch: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    values = {
        "x": torch.randn(batch, model.config.in_channels, 16, 8, generator=generator),
        "noise_labels": torch.tensor([-1.5, 0.25, 1.0])[:batch],
    }
    if model.config.label_dim:
        values["class_labels"] = torch.eye(5)[[0, 4, 2]][:batch]
        values["augment_labels"] = torch.randn(batch, 9, generator=generator)
    return values


def call(model: nn.Module, values) -> torch.Tensor:
    with fastdiff.use_reference() if getattr(model, "is_eager", False) else contextlib.nullcontext():
        return model(**values)


@pytest.mark.parametrize("name", MODELS)
def test_is_what_the_papers_define(name: str) -> None:
    model = made(name)
    assert_same_in_float64(defined(model, MODELS[name][1]), model, call, inputs(model))


@pytest.mark.parametrize("name", MODELS)
def test_kernels_are_as_exact_as_pytorch(name: str) -> None:
    eager, model = made(name), made(name)
    eager.is_eager = True
    assert_parity(eager, model, call, inputs(model))


@pytest.mark.parametrize("name", MODELS)
def test_channels_last_from_end_to_end(name: str) -> None:
    model = made(name)
    assert_stays_channels_last(model, call, inputs(model))


@pytest.mark.parametrize("name", ["ncsn++", "adm"])
def test_gradient_checkpointing_gives_the_same(name: str) -> None:
    model = made(name).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    assert_checkpointing_gives_the_same(model, model.enc["8x8_block0"], call, inputs(model))


@pytest.mark.parametrize("name", ["ncsn++", "adm"])
def test_compiles_without_a_break(name: str) -> None:
    torch._dynamo.reset()
    model = made(name, num_blocks=1)
    values = inputs(model)
    actual = torch.compile(model, fullgraph=True, backend="aot_eager")(**values)
    torch.testing.assert_close(actual, model(**values), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 5, 4), (1, 0, 2, 2, 1, 0)])
@pytest.mark.parametrize("mode", ["down", "up"])
def test_resampling_is_the_filter_s_matrix(mode: str, taps: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    torch.testing.assert_close(resample(x, mode, taps), moved(x, mode, taps), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mode", ["down", "up"])
def test_resampling_rounds_once_in_half_precision(mode: str, dtype: torch.dtype) -> None:
    x, taps = torch.randn(2, 3, 8, 6).to(dtype), (1, 2, 5, 4)
    assert torch.equal(resample(x, mode, taps), resample(x.float(), mode, taps).to(dtype))


def test_no_labels_are_zeros() -> None:
    for name in ("ddpm++", "adm"):
        model = made(name)
        values = inputs(model)
        given = {**values, "class_labels": torch.zeros(3, 5), "augment_labels": torch.zeros(3, 9)}
        assert torch.equal(model(values["x"], values["noise_labels"]), model(**given))
        assert not torch.equal(model(**values), model(**given))


def test_labels_are_dropped_in_training_only() -> None:
    torch.manual_seed(0)
    model = DhariwalUNet(**MODELS["adm"][2], label_dropout=0.5)
    model.load_state_dict(made("adm").state_dict())
    x, labels = torch.randn(1, 3, 16, 8).expand(16, -1, -1, -1), torch.eye(5)[:1].expand(16, -1)
    with torch.no_grad():
        with_label, without = model.eval()(x[:1], 0.5, labels[:1]), model(x[:1], 0.5)
        drawn = model.train()(x, 0.5, labels)
    is_kept = [torch.allclose(y, with_label[0], atol=1e-4) for y in drawn]
    is_dropped = [torch.allclose(y, without[0], atol=1e-4) for y in drawn]
    assert sum(is_kept) + sum(is_dropped) == 16 and 2 < sum(is_kept) < 14


@pytest.mark.parametrize("name", MODELS)
def test_noise_level_keeps_its_digits_in_a_narrow_model(name: str) -> None:
    model = made(name).bfloat16()
    x = inputs(model)["x"].bfloat16()
    # bfloat16 has neither, and 500 for both.
    assert not torch.equal(model(x, 500.2), model(x, 500.9))
    assert model(x, 500.2).dtype == torch.bfloat16


def test_frequencies_keep_their_digits(tmp_path) -> None:
    model = made("ncsn++")
    frequencies = model.map_noise.freqs.clone()
    model.save_pretrained(tmp_path, dtype=torch.bfloat16)
    loaded = SongUNet.from_pretrained(tmp_path, dtype=torch.float16)
    assert loaded.dtype == torch.float16
    for narrow in (loaded, model.bfloat16(), model.double().half()):
        assert torch.equal(narrow.map_noise.freqs, frequencies)
        assert narrow.map_noise.freqs.dtype == torch.float32


def test_float32_weights_serve_a_narrow_pass() -> None:
    for name in ("ncsn++", "adm"):
        model = made(name)
        values = inputs(model)
        expected = model(**values)
        actual = model(**{**values, "x": values["x"].bfloat16()})
        assert actual.dtype == torch.bfloat16
        assert (actual - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_folder_round_trip(name: str, tmp_path) -> None:
    model = made(name)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config == model.config and not loaded.training
    assert torch.equal(loaded(**inputs(model)), model(**inputs(model)))


@pytest.mark.parametrize("name", MODELS)
def test_empty_batch(name: str) -> None:
    model = made(name)
    values = {key: x[:0].requires_grad_() for key, x in inputs(model).items()}
    y = model(**values)
    assert y.shape == (0, 2, 16, 8)
    y.sum().backward()
    assert values["x"].grad.shape == values["x"].shape


def test_fresh_networks_start_from_their_residuals() -> None:
    """The last layer of every branch is zero, or nearly."""
    torch.manual_seed(0)
    for kind, bound in ((SongUNet, 1e-4), (DhariwalUNet, 0.0)):
        model = kind(img_resolution=16, in_channels=3, out_channels=3, model_channels=64, num_blocks=1)
        assert model.eval()(torch.randn(2, 3, 16, 16), 0.5).abs().max() <= bound
        assert next(iter(model.enc.values())).weight.std() > 0.05


# Millions of weights of the paper's networks (arXiv:2206.00364, appendix F), as NVlabs/edm builds them.
SIZES = {
    "cifar10-ddpm++": (55.7, {"img_resolution": 32, "augment_dim": 9, "channel_mult": (2, 2, 2)}),
    "ffhq64-ddpm++": (61.8, {"img_resolution": 64, "augment_dim": 9}),
    "imagenet64-adm": (295.9, {"img_resolution": 64, "label_dim": 1000, "model_type": "DhariwalUNet"}),
}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name: str) -> None:
    millions, config = SIZES[name]
    with torch.device("meta"):
        model = EDMPrecond(img_channels=3, **({"model_type": "SongUNet"} | config))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_keys_of_the_weights() -> None:
    """Those of NVlabs/edm: of one block of every kind, and of all that is not a block."""
    with torch.device("meta"):
        keys = SongUNet(**SONG, **NCSN, encoder_type="residual", label_dim=5, augment_dim=9).state_dict().keys()
        skip = SongUNet(**SONG, encoder_type="skip", decoder_type="skip").state_dict().keys()
        adm = DhariwalUNet(**MODELS["adm"][2]).state_dict().keys()
    affine = [
        f"{layer}.{part}" for layer in ("norm0", "conv0", "affine", "norm1", "conv1") for part in ("weight", "bias")
    ]
    attending = [f"{layer}.{part}" for layer in ("norm2", "qkv", "proj") for part in ("weight", "bias")]
    filtered = ["conv0.resample_filter", "skip.resample_filter"]

    def of_block(keys, name):
        return {key.removeprefix(f"{name}.") for key in keys if key.startswith(f"{name}.")}

    assert of_block(keys, "enc.16x16_block0") == {*affine}
    assert of_block(keys, "enc.8x8_down") == {*affine, *filtered, "skip.weight", "skip.bias"}
    assert of_block(keys, "enc.8x8_block0") == {*affine, *attending, "skip.weight", "skip.bias"}
    assert of_block(keys, "enc.8x8_aux_residual") == {"weight", "bias", "resample_filter"}
    assert of_block(adm, "dec.16x16_up") == {*affine, *filtered}
    assert of_block(skip, "dec.16x16_aux_up") == {"resample_filter"}
    assert {key for key in keys if key.startswith("map_")} == {
        "map_noise.freqs", "map_label.weight", "map_label.bias", "map_augment.weight",
        "map_layer0.weight", "map_layer0.bias", "map_layer1.weight", "map_layer1.bias",
    }  # fmt: skip
    assert {key.split(".")[1] for key in skip if key.startswith("enc.")} == {
        "16x16_conv", "16x16_block0", "8x8_down", "8x8_aux_down", "8x8_aux_skip", "8x8_block0",
    }  # fmt: skip
    assert {key.split(".")[1] for key in adm if key.startswith("dec.")} == {
        "8x8_in0", "8x8_in1", "8x8_block0", "8x8_block1", "16x16_up", "16x16_block0", "16x16_block1",
    }  # fmt: skip
    assert {"out_norm.weight", "out_conv.bias", "map_label.weight"} < adm and "map_label.bias" not in adm


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channel_mult": ()}, "channel_mult must hold 1 or more positive integers"),
        ({"channel_mult": 2}, "channel_mult must hold 1 or more positive integers, got 2"),
        ({"attn_resolutions": 16}, "attn_resolutions must hold 0 or more positive integers, got 16"),
        ({"model_channels": 48}, "model_channels and channel_mult must .* 32 groups, got 144 channels"),
        ({"model_channels": 132}, "model_channels and channel_mult must .* 32 groups, got 132 channels"),
        ({"dropout": -0.1}, r"dropout must lie in 0 \.\.\. 1, got -0.1"),
        ({"label_dropout": 3}, r"label_dropout must lie in 0 \.\.\. 1, got 3"),
        ({"resample_filter": 4}, "resample_filter must hold an even number of taps.*, got 4"),
        ({"resample_filter": (1, "a")}, "resample_filter must hold an even number"),
        ({"channel_mult": (1,) * 6}, "img_resolution must be at least 32"),
        ({"model_channels": 18}, "model_channels must be a multiple of 4, got 18"),
        ({"resample_filter": (1, 2, 1)}, "resample_filter must hold an even number"),
        ({"encoder_type": "plain"}, "encoder_type must be one of.*'plain'"),
        ({"embedding_type": "learned"}, "embedding_type must be one of"),
        ({"hidden_size": 5}, "no configuration key 'hidden_size'"),
    ],
)
def test_unsupported_configuration(change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SongUNet(**(SONG | change))


def test_attention_needs_whole_heads() -> None:
    with pytest.raises(ValueError, match="attention on 32 channels cannot have heads of 64"):
        DhariwalUNet(img_resolution=16, in_channels=3, out_channels=3, model_channels=32, channel_mult=(1,))


def test_wrong_inputs() -> None:
    model = SongUNet(**SONG)
    x = torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"x must be \(N, 3, H, W\), got shape \(2, 2, 16, 16\)"):
        model(x[:, :2], 0.0)
    with pytest.raises(ValueError, match="multiples of 2"):
        model(x[..., :15], 0.0)
    with pytest.raises(ValueError, match=r"noise_labels must be a number or a tensor of shape \(\) or \(2,\)"):
        model(x, torch.zeros(3))
    for key in ("class_labels", "augment_labels"):
        with pytest.raises(ValueError, match=f"{key} must not be given"):
            model(x, 0.0, **{key: torch.zeros(2, 5)})
    model = SongUNet(**SONG, label_dim=5)
    for labels in (torch.tensor([1, 2]), torch.zeros(2, 4), torch.zeros(3, 5)):
        with pytest.raises(ValueError, match=r"class_labels must be \(2, 5\), one-hot"):
            model(x, 0.0, labels)


def test_song_groups_and_eps() -> None:
    """Groups of four channels at least, 32 at most, and an epsilon of its own for each family."""
    with torch.device("meta"):
        song, adm = SongUNet(**SONG), DhariwalUNet(**MODELS["adm"][2])
    assert [song.enc["16x16_block0"].norm0.num_groups, adm.enc["8x8_block0"].norm1.num_groups] == [4, 32]
    assert (song.enc["16x16_block0"].norm0.eps, adm.out_norm.eps) == (1e-6, 1e-5)
    assert math.isclose(song.enc["16x16_block0"].skip_scale, math.sqrt(0.5))
