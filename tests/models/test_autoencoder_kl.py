"""AutoencoderKL against diffusers' own on random weights; its distribution, slices, tiles and folder format."""

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
    with_old_attention_keys,
)

from fastdiff.models import AutoencoderKL, DiagonalGaussianDistribution
from fastdiff.models.tiling import tiled, tiles

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("reference_without_extension")

THREE_STAGES = {
    "block_out_channels": (8, 16, 24),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 4,
    "layers_per_block": 2,
}
CONFIGS = {
    "three_stages": THREE_STAGES,
    "one_stage": {"block_out_channels": (32,), "in_channels": 1, "out_channels": 2, "norm_num_groups": 32},
    "no_quant_conv": THREE_STAGES
    | {"use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 16, "shift_factor": 0.0609},
    "attention_blocks": THREE_STAGES
    | {
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        "layers_per_block": 1,
    },
    "no_mid_attention": THREE_STAGES | {"mid_block_add_attention": False, "act_fn": "swish"},
}


def pair(name: str):
    return model_parity.pair(diffusers.AutoencoderKL, AutoencoderKL, CONFIGS[name])


def encode(model, inputs):
    return model.encode(inputs["sample"]).latent_dist.parameters


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_diffusers(name):
    theirs, ours = pair(name)
    assert_parity(theirs, ours, encode, image(ours))
    assert_parity(theirs, ours, decode, latents(ours))


@pytest.mark.parametrize("size", [(27, 41), (4, 8), (16, 4)])
def test_sizes_that_do_not_divide(size):
    theirs, ours = pair("three_stages")
    inputs = image(ours, 1, *size)
    assert_close_in_float32(encode(ours, inputs), encode(theirs, inputs))
    assert_close_in_float32(ours(inputs["sample"]).sample, theirs(inputs["sample"]).sample)


def test_published_widths():
    """The autoencoder of Stable Diffusion with one layer a block."""
    config = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    theirs, ours = (kind(**config).eval() for kind in (diffusers.AutoencoderKL, AutoencoderKL))
    ours.load_state_dict(theirs.state_dict(), assign=True)
    with torch.no_grad():
        for function, inputs in ((encode, image(ours, 1)), (decode, latents(ours, 1, 3, 5))):
            assert_close_in_float32(function(ours, inputs), function(theirs, inputs))


def test_gradient_checkpointing_gives_the_same():
    ours = pair("three_stages")[1].train()
    assert_checkpointing_gives_the_same(ours, ours.encoder.down_blocks[0], encode, image(ours))
    assert_checkpointing_gives_the_same(ours, ours.decoder.up_blocks[0], decode, latents(ours))


def test_empty_batch():
    _, ours = pair("three_stages")
    assert encode(ours, image(ours, 0)).shape[0] == 0
    assert decode(ours, latents(ours, 0)).shape == (0, 3, 24, 40)


def test_stays_channels_last():
    _, ours = pair("attention_blocks")
    assert_stays_channels_last(ours, encode, image(ours))
    assert_stays_channels_last(ours.to(memory_format=torch.contiguous_format), decode, latents(ours))


def test_forward_through_mode_and_draws():
    theirs, ours = pair("three_stages")
    sample = image(ours)["sample"]
    assert_close_in_float32(ours(sample).sample, theirs(sample).sample)
    drawn, expected = (
        model(sample, sample_posterior=True, generator=torch.Generator().manual_seed(7)).sample
        for model in (ours, theirs)
    )
    assert_close_in_float32(drawn, expected)
    seeded = ours(sample, sample_posterior=True, seeds=[3, 4, 5]).sample
    assert_close_in_float32(seeded[1:2], ours(sample[1:2], sample_posterior=True, seeds=[4]).sample)


def test_compiles_without_graph_break():
    _, ours = pair("one_stage")
    inputs = image(ours, 1, 16, 16) | {"seeds": torch.tensor([5])}
    assert_compiles(ours, lambda model, inputs: model(**inputs, sample_posterior=True).sample, inputs)


# The distribution.


def test_distribution_equals_diffusers():
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution as Theirs

    # Log variances beyond both clamps.
    first, second = (torch.randn(3, 8, 5, 7, dtype=torch.float64) * 20 for _ in range(2))
    ours, theirs, other, their_other = (
        kind(p) for p in (first, second) for kind in (DiagonalGaussianDistribution, Theirs)
    )
    for a, b in (
        (ours.mean, theirs.mean),
        (ours.std, theirs.std),
        (ours.var, theirs.var),
        (ours.logvar, theirs.logvar),
        (ours.mode(), theirs.mode()),
        (ours.kl(), theirs.kl()),
        (ours.kl(other), theirs.kl(their_other)),
        (ours.nll(first[:, 4:]), theirs.nll(first[:, 4:])),
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    assert torch.equal(ours.sample(generators[0]), theirs.sample(generators[1]))


def test_draws_by_seed():
    mean, logvar = torch.full((2, 4, 64, 64), 3.0), torch.full((2, 4, 64, 64), -2.0)
    distribution = DiagonalGaussianDistribution(torch.cat((mean, logvar), dim=1))
    draw = distribution.sample(seeds=[1, 2])
    assert torch.equal(draw, distribution.sample(seeds=torch.tensor([1, 2])))
    assert abs(draw.mean() - 3) < 0.01 and abs(draw.std() - torch.tensor(-1.0).exp()) < 0.01
    assert torch.equal(draw[1:], DiagonalGaussianDistribution(distribution.parameters[1:]).sample(seeds=[2]))
    with pytest.raises(ValueError, match="seeds and generator"):
        distribution.sample(torch.Generator(), seeds=[1, 2])
    with pytest.raises(ValueError, match="seeds must have one entry for each"):
        distribution.sample(seeds=[1])


# The scale of latents.


def test_scale_of_latents():
    z = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    model = AutoencoderKL(norm_num_groups=8, block_out_channels=(8,), scaling_factor=1.5305, shift_factor=0.0609)
    torch.testing.assert_close(model.normalize_latents(z), (z - 0.0609) * 1.5305)
    model = AutoencoderKL(norm_num_groups=8, block_out_channels=(8,))
    torch.testing.assert_close(model.normalize_latents(z), z * 0.18215)
    mean, std = (0.1, -0.2, 0.3, 0.4), (1.0, 2.0, 3.0, 4.0)
    model = AutoencoderKL(
        norm_num_groups=8, block_out_channels=(8,), scaling_factor=0.5, latents_mean=mean, latents_std=std
    )
    expected = (z - torch.tensor(mean).view(-1, 1, 1)) * 0.5 / torch.tensor(std).view(-1, 1, 1)
    torch.testing.assert_close(model.normalize_latents(z), expected, check_dtype=False, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.denormalize_latents(model.normalize_latents(z)), z)


# Slices and tiles.


def test_slices_are_the_whole():
    _, ours = pair("three_stages")
    whole = encode(ours, image(ours)), decode(ours, latents(ours))
    ours.enable_slicing()
    assert_close_in_float32(encode(ours, image(ours)), whole[0])
    assert_close_in_float32(decode(ours, latents(ours)), whole[1])


@pytest.mark.parametrize(("size", "tile", "overlap"), [(64, 64, 16), (65, 64, 16), (200, 64, 16), (7, 3, 2), (9, 4, 0)])
def test_tiles_cover_evenly(size, tile, overlap):
    axis = tiles(size, tile, overlap)
    assert axis[0].start == 0 and axis[-1].stop == size
    assert all(part.stop - part.start == min(tile, size) for part in axis)
    for before, after in zip(axis, axis[1:], strict=False):
        assert before.stop - after.start == before.fade_out == after.fade_in >= overlap
    assert len(axis) == 1 or (len(axis) - 2) * (tile - overlap) + tile < size


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_blending_keeps_what_tiles_agree_on(layout):
    x = torch.randn(2, 3, 37, 50).to(memory_format=layout)
    enlarge = torch.nn.Upsample(scale_factor=4)
    result = tiled(enlarge, x, (37, 50), tile=16, overlap=5, input_step=1, output_step=4)
    torch.testing.assert_close(result, enlarge(x))
    assert result.is_contiguous(memory_format=layout)
    pool = torch.nn.AvgPool2d(4)
    torch.testing.assert_close(tiled(pool, x, (9, 12), tile=5, overlap=1, input_step=4, output_step=1), pool(x))


def test_blending_is_a_ramp():
    calls = iter(range(2))
    result = tiled(
        lambda part: torch.full_like(part, next(calls)), torch.zeros(1, 1, 4, 12), (4, 12),
        tile=8, overlap=4, input_step=1, output_step=1,
    )  # fmt: skip
    ramp = [0.0] * 4 + [0.0, 0.25, 0.75, 1.0] + [1.0] * 4
    torch.testing.assert_close(result[0, 0], torch.tensor(ramp).expand(4, 12))


def smooth_autoencoder() -> AutoencoderKL:
    """Its residual branches are small beside the way past them, so no tile looks much different from the whole."""
    torch.manual_seed(0)
    model = AutoencoderKL(**THREE_STAGES, sample_size=128).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".resnets." in name and ".conv2." in name or ".to_out." in name:
                parameter.mul_(0.01)
            if name.endswith("conv_norm_out.weight"):
                parameter.mul_(0.05)
    return model


def smooth_field(channels: int, height: int, width: int) -> torch.Tensor:
    """Waves of one phase for each channel, periodic enough that every tile has the statistics of the whole."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    phase = torch.arange(channels)[:, None, None]
    return torch.sin(2 * torch.pi * (y + x) / 8 + phase)[None].expand(2, -1, -1, -1).contiguous()


def test_tiles_without_seams():
    model = smooth_autoencoder()
    z, picture = smooth_field(4, 48, 72), smooth_field(3, 192, 288)
    with torch.no_grad():
        whole = decode(model, {"latents": z}), encode(model, {"sample": picture})
        model.enable_tiling()
        tiled_up = decode(model, {"latents": z}), encode(model, {"sample": picture})
        model.disable_tiling()
        again = decode(model, {"latents": z})
    assert torch.equal(again, whole[0])
    for actual, expected in zip(tiled_up, whole, strict=True):
        assert actual.shape == expected.shape
        assert not torch.equal(actual, expected)
        assert max_error(actual, expected.double()) < 1e-2 * expected.abs().max()


def test_images_within_a_tile_are_not_tiled():
    _, ours = pair("three_stages")
    ours.enable_tiling(40)
    assert torch.equal(encode(ours, image(ours)), encode(pair("three_stages")[1], image(ours)))


def test_tiling_of_odd_sizes_and_its_checks():
    _, ours = pair("three_stages")
    inputs = image(ours, 1, 67, 85)
    shape = encode(ours, inputs).shape
    ours.enable_tiling(32, 0.25)
    assert encode(ours, inputs).shape == shape == (1, 8, 16, 21)
    with pytest.raises(ValueError, match="tile_sample_min_size must be 4 at least, got 3"):
        ours.enable_tiling(3)
    with pytest.raises(ValueError, match="tile_overlap_factor must be from 0 to 0.9, got 1"):
        ours.enable_tiling(64, 1)


def test_tiling_needs_less_memory():
    model = smooth_autoencoder()
    z = torch.randn(1, 4, 64, 64)

    def largest() -> int:
        """Bytes of the largest activation but for the result."""
        sizes = []
        hooks = [
            module.register_forward_hook(lambda _, __, output: sizes.append(output.nbytes))
            for module in model.decoder.modules()
            if isinstance(module, torch.nn.Conv2d) and module is not model.decoder.conv_out
        ]
        with torch.no_grad():
            decode(model, {"latents": z})
        for hook in hooks:
            hook.remove()
        return max(sizes)

    whole = largest()
    model.enable_tiling(64)
    assert largest() <= whole / 16


# Configuration and folders.


@pytest.mark.parametrize("name", ["three_stages", "no_quant_conv"])
def test_folders_are_shared_with_diffusers(name, tmp_path):
    theirs, ours = pair(name)
    assert_folders_are_shared(theirs, ours, encode, image(ours), tmp_path)


def test_state_dict_of_old_attention_keys_loads():
    theirs, ours = pair("three_stages")
    fresh = AutoencoderKL(**THREE_STAGES).eval()
    fresh.load_state_dict(with_old_attention_keys(theirs.state_dict()))
    assert torch.equal(encode(fresh, image(ours)), encode(ours, image(ours)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down_block_types": ("DownBlock2D",) * 3}, "down_block_types must hold only.*'DownBlock2D'"),
        ({"up_block_types": ("UpDecoderBlock2D",)}, "up_block_types must have one entry"),
        ({"act_fn": "gelu"}, "act_fn must be one of.*'gelu'"),
        ({"block_out_channels": 16}, "block_out_channels must hold 1 or more positive integers, got 16"),
        ({"norm_num_groups": 5}, "norm_num_groups must divide"),
        ({"norm_num_groups": 0}, "norm_num_groups must divide"),
        ({"scaling_factor": 0}, "scaling_factor must not be 0"),
        ({"latents_mean": (0.0,), "latents_std": (1.0,)}, "latents_mean must have one entry"),
        ({"latents_mean": (0.0,) * 4}, "latents_mean and latents_std must be given together"),
        ({"norm_type": "spatial"}, "no configuration key 'norm_type'"),
    ],
)
def test_unsupported_configuration(change, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderKL(**(THREE_STAGES | change))


def test_wrong_inputs():
    model = AutoencoderKL(**THREE_STAGES)
    with pytest.raises(ValueError, match=r"sample must be \(N, 3, H, W\), got shape \(1, 4, 8, 8\)"):
        model.encode(torch.randn(1, 4, 8, 8))
    with pytest.raises(ValueError, match=r"latents must be \(N, 4, H, W\), got shape \(4, 8, 8\)"):
        model.decode(torch.randn(4, 8, 8))
    for size in ((3, 8), (8, 3), (0, 0)):
        with pytest.raises(ValueError, match=rf"one latent at least, of 4 x 4 pixels, got \({size[0]}, {size[1]}\)"):
            model.encode(torch.randn(1, 3, *size))
