"""AutoencoderTiny against diffusers' own on random weights, its tiles and its folder format."""

from __future__ import annotations

import model_parity
import pytest
import torch
from accuracy import max_error
from autoencoder_inputs import decode, image, latents
from model_parity import (
    assert_checkpointing_gives_the_same,
    assert_close_in_float32,
    assert_compiles,
    assert_folders_are_shared,
    assert_parity,
    assert_stays_channels_last,
    sample_of,
)

import fastdiff
from fastdiff.models import AutoencoderTiny

diffusers = pytest.importorskip("diffusers")

SMALL = {
    "encoder_block_out_channels": (8, 8, 8),
    "decoder_block_out_channels": (12, 12, 12),
    "num_encoder_blocks": (1, 2, 1),
    "num_decoder_blocks": (2, 1, 1),
}
CONFIGS = {
    "small": SMALL,
    "flux": SMALL | {"latent_channels": 16, "in_channels": 1, "out_channels": 2},
    "other_activation": SMALL | {"act_fn": "silu", "upsample_fn": "bilinear"},
}


def pair(name: str):
    return model_parity.pair(diffusers.AutoencoderTiny, AutoencoderTiny, CONFIGS[name])


def encode(model, inputs):
    return model.encode(inputs["sample"]).latents


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_diffusers(name):
    theirs, ours = pair(name)
    assert_parity(theirs, ours, encode, image(ours))
    assert_parity(theirs, ours, decode, latents(ours))


def test_published_width():
    """TAESD as it is published, on one small image."""
    theirs, ours = model_parity.pair(diffusers.AutoencoderTiny, AutoencoderTiny, {})
    inputs = image(ours, 1, 32, 40)
    assert_close_in_float32(encode(ours, inputs), encode(theirs, inputs))


def test_gradient_checkpointing_gives_the_same():
    ours = pair("small")[1].train()
    assert_checkpointing_gives_the_same(ours, ours.encoder, encode, image(ours))
    assert_checkpointing_gives_the_same(ours, ours.decoder, decode, latents(ours))


def test_empty_batch():
    _, ours = pair("small")
    assert encode(ours, image(ours, 0)).shape[0] == 0
    assert decode(ours, latents(ours, 0)).shape == (0, 3, 24, 40)


def test_stays_channels_last():
    _, ours = pair("small")
    assert_stays_channels_last(ours, encode, image(ours))
    assert_stays_channels_last(ours.to(memory_format=torch.contiguous_format), decode, latents(ours))


def test_forward_rounds_latents_to_bytes():
    theirs, ours = pair("small")
    sample = image(ours)["sample"]
    assert_close_in_float32(ours(sample).sample, theirs(sample).sample)
    z = latents(ours)["latents"]
    torch.testing.assert_close(ours.scale_latents(z), theirs.scale_latents(z))
    torch.testing.assert_close(ours.unscale_latents(z), theirs.unscale_latents(z))
    assert ours.bfloat16()(sample.bfloat16()).sample.dtype == torch.bfloat16


def test_compiles_without_graph_break():
    _, ours = pair("small")
    assert_compiles(ours, sample_of, image(ours, 1))


def test_slices_and_tiles():
    _, ours = pair("small")
    z, picture = latents(ours, 2, 30, 44), image(ours, 2, 118, 175)
    whole = decode(ours, z), encode(ours, picture)
    ours.enable_slicing()
    assert_close_in_float32(decode(ours, z), whole[0])
    assert_close_in_float32(encode(ours, picture), whole[1])
    ours.enable_tiling(96, 0.75)
    for actual, expected in zip((decode(ours, z), encode(ours, picture)), whole, strict=True):
        assert actual.shape == expected.shape
        # Nothing but the zeros beyond a tile's border can make a difference, and near it a tile counts for nothing.
        assert max_error(actual, expected.double()) < 1e-2 * expected.abs().max()
        assert (actual - expected).abs().mean() < 1e-3 * expected.abs().mean()


def test_scale_of_latents():
    z = torch.randn(2, 4, 3, 3)
    model = AutoencoderTiny(**SMALL)
    assert torch.equal(model.normalize_latents(z), z) and torch.equal(model.denormalize_latents(z), z)
    model = AutoencoderTiny(**SMALL, scaling_factor=2.0, shift_factor=0.5)
    torch.testing.assert_close(model.normalize_latents(z), (z - 0.5) * 2)
    torch.testing.assert_close(model.denormalize_latents(model.normalize_latents(z)), z)


def test_folders_are_shared_with_diffusers(tmp_path):
    theirs, ours = pair("flux")
    assert_folders_are_shared(theirs, ours, encode, image(ours), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "tanh"}, "act_fn must be one of.*'tanh'"),
        ({"upsample_fn": "area"}, "upsample_fn must be one of.*'area'"),
        ({"upsampling_scaling_factor": 3}, "upsampling_scaling_factor must be one of.*3"),
        ({"encoder_block_out_channels": (8, 8, 16)}, "encoder_block_out_channels must hold one number"),
        ({"num_decoder_blocks": (1, 1)}, "num_decoder_blocks must have one entry"),
        (
            {"num_decoder_blocks": (1, 1), "decoder_block_out_channels": (8, 8)},
            "num_decoder_blocks must have as many entries as num_encoder_blocks",
        ),
        ({"block_out_channels": (9, 9, 9)}, "block_out_channels must be one of"),
        ({"scaling_factor": 0}, "scaling_factor must not be 0"),
    ],
)
def test_unsupported_configuration(change, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderTiny(**(SMALL | change))


def test_wrong_inputs():
    model = AutoencoderTiny(**SMALL)
    with pytest.raises(ValueError, match=r"sample must be \(N, 3, H, W\)"):
        model.encode(torch.randn(1, 4, 8, 8))
    with pytest.raises(ValueError, match=r"latents must be \(N, 4, H, W\)"):
        model.decode(torch.randn(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"one latent at least, of 4 x 4 pixels, got \(0, 8\)"):
        model.encode(torch.randn(1, 3, 0, 8))
    assert model.encode(torch.randn(1, 3, 1, 1)).latents.shape == (1, 4, 1, 1)


def test_needs_no_extension():
    """There is no fused op in it: the switch changes nothing."""
    _, ours = pair("small")
    with fastdiff.use_reference():
        expected = encode(ours, image(ours))
    assert torch.equal(encode(ours, image(ours)), expected)
