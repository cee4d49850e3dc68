"""UNet2DModel as NCSN++ against diffusers' own on random weights, and the resampling of its blocks."""

from __future__ import annotations

import math

import model_parity
import pytest
import torch
from accuracy import max_error
from exact_diffusers import use_exact_timesteps
from model_parity import (
    assert_checkpointing_gives_the_same,
    assert_compiles,
    assert_folders_are_shared,
    assert_parity,
    assert_stays_channels_last,
    sample_of,
)

from fastdiff.models import UNet2DModel
from fastdiff.models.ncsnpp_blocks import fir_double, fir_halve

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("reference_without_extension")

NCSNPP = {
    "block_out_channels": (32, 32, 16),  # the norm before attention has 32 groups
    "layers_per_block": 1,
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
    "time_embedding_type": "fourier",
    "norm_num_groups": None,
    "norm_eps": 1e-6,
    "mid_block_scale_factor": math.sqrt(2),
    "attention_head_dim": None,
}
CONFIGS = {
    "ncsnpp": NCSNPP,
    "layers_and_heads": NCSNPP
    | {"layers_per_block": 2, "attention_head_dim": 8, "norm_num_groups": 4, "center_input_sample": True},
    "scale_shift": NCSNPP | {"time_embedding_type": "positional", "resnet_time_scale_shift": "scale_shift"},
    "among_others": NCSNPP
    | {
        "norm_num_groups": 8,
        "down_block_types": ("SkipDownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "SkipUpBlock2D"),
        "out_channels": 2,
    },
    "among_others_down": NCSNPP
    | {
        "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "SkipDownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "in_channels": 1,
    },
}
# google/ncsnpp-church-256, and the widths of google/ncsnpp-ffhq-1024.
PUBLISHED = {
    "church-256": NCSNPP
    | {
        "sample_size": 256,
        "block_out_channels": (128, 128, 256, 256, 256, 256, 256),
        "layers_per_block": 2,
        "down_block_types": ("SkipDownBlock2D",) * 4 + ("AttnSkipDownBlock2D",) + ("SkipDownBlock2D",) * 2,
        "up_block_types": ("SkipUpBlock2D",) * 2 + ("AttnSkipUpBlock2D",) + ("SkipUpBlock2D",) * 4,
    },
    "ffhq-1024": NCSNPP
    | {
        "sample_size": 1024,
        "block_out_channels": (16, 32, 64, 128, 256, 512, 512, 512),
        "down_block_types": ("SkipDownBlock2D",) * 6 + ("AttnSkipDownBlock2D", "SkipDownBlock2D"),
        "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D") + ("SkipUpBlock2D",) * 6,
    },
}


def pair(name: str, exact_timesteps: bool = True):
    theirs, ours = model_parity.pair(diffusers.UNet2DModel, UNet2DModel, CONFIGS[name])
    if exact_timesteps:
        use_exact_timesteps(theirs, ours)
    return theirs, ours


def inputs(name: str, batch: int = 3):
    generator = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(batch, CONFIGS[name].get("in_channels", 3), 16, 24, generator=generator),
        "timestep": torch.tensor([3, 500, 999])[:batch],
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_diffusers(name):
    assert_parity(*pair(name), sample_of, inputs(name))


def test_equals_diffusers_with_its_own_noise_levels():
    theirs, ours = pair("ncsnpp", exact_timesteps=False)
    given = inputs("ncsnpp") | {"timestep": torch.tensor([0.01, 1.0, 348.0])}
    expected = sample_of(theirs, given)
    assert max_error(sample_of(ours, given), expected.double()) < 1e-3 * expected.abs().max()


def test_stays_channels_last():
    assert_stays_channels_last(pair("ncsnpp")[1], sample_of, inputs("ncsnpp"))


def test_empty_batch():
    assert sample_of(pair("ncsnpp")[1], inputs("ncsnpp", 0)).shape == (0, 3, 16, 24)


def test_gradient_checkpointing_gives_the_same():
    ours = pair("ncsnpp")[1].train()
    for block in (*ours.down_blocks, *ours.up_blocks):
        assert_checkpointing_gives_the_same(ours, block, sample_of, inputs("ncsnpp"))


def test_folders_are_shared_with_diffusers(tmp_path):
    assert_folders_are_shared(*pair("ncsnpp", exact_timesteps=False), sample_of, inputs("ncsnpp"), tmp_path)


def test_compiles_without_graph_break():
    two_stages = {
        "block_out_channels": (32, 32),
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    }
    ours = model_parity.pair(diffusers.UNet2DModel, UNet2DModel, NCSNPP | two_stages)[1]
    assert_compiles(ours, sample_of, inputs("ncsnpp"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes(name):
    """Keys, shapes, and the groups of every norm."""
    with torch.device("meta"):
        theirs, ours = (kind(**PUBLISHED[name]) for kind in (diffusers.UNet2DModel, UNet2DModel))
    assert {key: x.shape for key, x in ours.state_dict().items()} == {
        key: x.shape for key, x in theirs.state_dict().items()
    }
    assert groups(ours) == groups(theirs)


def groups(model) -> dict[str, tuple]:
    return {
        name: (norm.num_groups, norm.num_channels, norm.eps)
        for name, norm in model.named_modules()
        if isinstance(norm, torch.nn.GroupNorm)
    }


# Resampling.


@pytest.mark.parametrize("size", [(6, 10), (5, 7), (2, 2)])
def test_resampling_equals_diffusers(size):
    from diffusers.models.downsampling import downsample_2d
    from diffusers.models.upsampling import upsample_2d

    x = torch.randn(2, 3, *size, dtype=torch.float64)
    for ours, theirs in ((fir_double, upsample_2d), (fir_halve, downsample_2d)):
        torch.testing.assert_close(ours(x), theirs(x, (1, 3, 3, 1)), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("resample", [fir_double, fir_halve])
def test_resampling_rounds_once_in_half_precision(resample, dtype):
    x = torch.randn(2, 3, 8, 6).to(dtype)
    assert torch.equal(resample(x), resample(x.double()).to(dtype))


@pytest.mark.parametrize("resample", [fir_double, fir_halve])
def test_gradients_of_resampling(resample):
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(resample, (x,))


# Configuration.


PLAIN = {"down_block_types": ("SkipDownBlock2D",) * 3, "up_block_types": ("SkipUpBlock2D",) * 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"down_block_types": ("DownBlock2D", "SkipDownBlock2D", "SkipDownBlock2D")},
            "must have its skip blocks first",
        ),
        ({"up_block_types": ("SkipUpBlock2D", "SkipUpBlock2D", "UpBlock2D")}, "must have its skip blocks last"),
        ({"in_channels": 4}, "in_channels must be 3 for skip blocks, got 4"),
        ({"out_channels": 1}, "out_channels must be 3 for skip blocks, got 1"),
        ({"norm_num_groups": 5}, "norm_num_groups must divide"),
        (
            {"block_out_channels": (32, 16, 16)},
            r"block_out_channels must be multiples of 32 for skip blocks with attention, got \(32, 16, 16\)",
        ),
        *(
            (
                {"block_out_channels": (*widths, 16), "norm_num_groups": None} | PLAIN,
                f"block_out_channels must give every norm .*, got {norm}",
            )
            for widths, norm in (((2, 16), "2 channels for 0 groups"), ((200, 16), "200 channels for 32 groups"))
        ),
        # What comes from below and its skip, in 20 + 32 // 4 groups.
        ({"block_out_channels": (32, 32, 20), "norm_num_groups": None}, "got 52 channels for 28 groups"),
    ],
)
def test_unsupported_configuration(change, message):
    config = NCSNPP | {"norm_num_groups": 8} | change
    with pytest.raises(ValueError, match=message):
        UNet2DModel(**config)
