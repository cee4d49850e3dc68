"""UNet2DConditionModel against diffusers' own on random weights: every block, condition and checkpoint's shape."""

from __future__ import annotations

import model_parity
import pytest
import torch
from accuracy import max_error
from exact_diffusers import use_exact_timesteps
from model_parity import (
    assert_checkpointing_gives_the_same,
    assert_close_in_float32,
    assert_compiles,
    assert_folders_are_shared,
    assert_keeps_timestep_in_float32,
    assert_parity,
    assert_same_in_float64,
    assert_stays_channels_last,
    assert_takes_any_timestep,
)

import fastdiff
from fastdiff.models import UNet2DConditionConfig, UNet2DConditionModel
from fastdiff.nn import Attention

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("reference_without_extension")

SMALL = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 8,
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
}
THREE_STAGES = {
    "block_out_channels": (16, 32, 24),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": (1, 4, 6),
}
TEXT_TIME = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 20 + 6 * 8,
}
CONFIGS = {
    "sd1": SMALL,
    "sd2": SMALL | {"attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True},
    "sdxl": THREE_STAGES | TEXT_TIME | {"use_linear_projection": True, "transformer_layers_per_block": (1, 2, 3)},
    "three_stages": THREE_STAGES
    | {"layers_per_block": (1, 3, 2), "downsample_padding": 0, "norm_eps": 1e-6, "mid_block_scale_factor": 1.4},
    "uneven_depths": THREE_STAGES
    | {
        "transformer_layers_per_block": ((1, 1), (2, 0), (1, 2)),
        "reverse_transformer_layers_per_block": ((1, 2, 1), (1, 0, 2), (1, 1, 1)),
    },
    "only_cross_attention": THREE_STAGES | {"only_cross_attention": (True, True, False), "num_class_embeds": 7},
    "plain_mid_block": SMALL
    | {"mid_block_type": "UNetMidBlock2D", "only_cross_attention": True, "conv_in_kernel": 5, "conv_out_kernel": 1},
    "no_mid_block": SMALL | {"mid_block_type": None, "in_channels": 9, "out_channels": 3, "center_input_sample": True},
    "no_attention": SMALL
    | {
        "down_block_types": ("DownBlock2D",) * 2,
        "up_block_types": ("UpBlock2D",) * 2,
        "mid_block_type": "UNetMidBlock2D",
        "attention_head_dim": 5,
    },
    "scale_shift": SMALL
    | {"resnet_time_scale_shift": "scale_shift", "time_embedding_dim": 48, "flip_sin_to_cos": False, "freq_shift": 1},
    "guidance_embedding": SMALL | {"time_cond_proj_dim": 6},
    "encoder_hid_dim": SMALL | {"encoder_hid_dim": 10},
    "class_timestep": SMALL | {"class_embed_type": "timestep"},
    "class_identity": SMALL | {"class_embed_type": "identity"},
    "class_projection": SMALL | {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 5},
    "class_simple_projection": SMALL
    | {
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": 5,
        "class_embeddings_concat": True,
    },
}


def pair(name: str, exact_timesteps: bool = False):
    theirs, ours = model_parity.pair(diffusers.UNet2DConditionModel, UNet2DConditionModel, CONFIGS[name])
    if exact_timesteps:
        use_exact_timesteps(theirs, ours)
    return theirs, ours


def inputs(name: str, batch: int = 3, height: int = 16, width: int = 24):
    config = UNet2DConditionConfig(**CONFIGS[name])
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    given = {
        "sample": draw(batch, config.in_channels, height, width),
        "timestep": torch.tensor([3, 500, 999])[:batch],
        "encoder_hidden_states": draw(batch, 7, config.encoder_hid_dim or config.cross_attention_dim),
    }
    if config.num_class_embeds is not None:
        given["class_labels"] = torch.tensor([0, 6, 3])[:batch]
    elif config.class_embed_type == "timestep":
        given["class_labels"] = torch.tensor([1, 20, 300])[:batch]
    elif config.class_embed_type == "identity":
        given["class_labels"] = draw(batch, 4 * config.block_out_channels[0])
    elif config.class_embed_type is not None:
        given["class_labels"] = draw(batch, config.projection_class_embeddings_input_dim)
    if config.addition_embed_type is not None:
        given["text_embeds"] = draw(batch, 20)
        given["time_ids"] = torch.tensor([[1024, 768, 0, 10, 1024, 1024]]).expand(batch, -1)
    if config.time_cond_proj_dim is not None:
        given["timestep_cond"] = draw(batch, config.time_cond_proj_dim)
    return given


def call(model, given):
    added = {key: given[key] for key in ("text_embeds", "time_ids") if key in given}
    others = {key: value for key, value in given.items() if key not in added}
    return model(**others, added_cond_kwargs=added or None)[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_diffusers(name):
    theirs, ours = pair(name, exact_timesteps=True)
    # In the others the kernels meet nothing new.
    full = name in ("sd1", "sd2", "sdxl", "three_stages", "only_cross_attention", "plain_mid_block", "scale_shift")
    (assert_parity if full else assert_same_in_float64)(theirs, ours, call, inputs(name))


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_equals_diffusers_with_its_own_timesteps(name):
    theirs, ours = pair(name)
    assert_close_in_float32(call(ours, inputs(name)), call(theirs, inputs(name)), roundings=200)


@pytest.mark.parametrize("size", [(13, 22), (9, 5), (4, 6)])
@pytest.mark.parametrize("name", ["three_stages", "sdxl"])
def test_sizes_that_do_not_divide(name, size):
    theirs, ours = pair(name, exact_timesteps=True)
    given = {key: x.double() if x.is_floating_point() else x for key, x in inputs(name, 1, *size).items()}
    with fastdiff.use_reference():
        actual = call(ours.double(), given)
    assert max_error(actual, call(theirs.double(), given)) < 1e-9


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_stays_channels_last(name):
    assert_stays_channels_last(pair(name)[1], call, inputs(name))


def test_timestep_as_number_scalar_and_vector():
    assert_takes_any_timestep(pair("sd1")[1], call, inputs("sd1"))


def test_bfloat16_keeps_the_timestep_in_float32():
    assert_keeps_timestep_in_float32(pair("sd1")[1], call, inputs("sd1"))


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_gradient_checkpointing_gives_the_same(name):
    ours = pair(name)[1].train()
    for block in (ours.down_blocks[0], ours.mid_block, ours.up_blocks[-1]):
        assert_checkpointing_gives_the_same(ours, block, call, inputs(name))


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_empty_batch_and_single_sample(name):
    _, ours = pair(name)
    given = inputs(name)
    assert call(ours, {key: x[:0] for key, x in given.items()}).shape == (0, 4, 16, 24)
    assert_close_in_float32(call(ours, {key: x[1:2] for key, x in given.items()}), call(ours, given)[1:2])


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_autocast_is_as_near_as_diffusers(name):
    theirs, ours = pair(name, exact_timesteps=True)
    given = inputs(name)
    with torch.no_grad():
        exact = call(theirs, given).double()
        with torch.autocast("cpu", torch.bfloat16):
            actual, eager = call(ours, given), call(theirs, given)
    assert actual.dtype == eager.dtype == torch.bfloat16
    assert max_error(actual, exact) <= 2 * max_error(eager, exact)


@pytest.mark.parametrize("name", ["sd1", "only_cross_attention"])
def test_padded_texts(name):
    theirs, ours = pair(name, exact_timesteps=True)
    given = {key: x.double() if x.is_floating_point() else x for key, x in inputs(name).items()}
    mask = torch.arange(7) < torch.tensor([7, 1, 4])[:, None]
    expected = call(theirs.double(), given | {"encoder_attention_mask": mask})
    with fastdiff.use_reference():
        actual = call(ours.double(), given | {"encoder_attention_mask": mask})
        assert max_error(actual, expected) < 1e-9
        assert max_error(call(ours, given), expected) > 1e-3
        with pytest.raises(ValueError, match="must keep the first tokens"):
            call(ours, given | {"encoder_attention_mask": mask.flip(1)})
        with pytest.raises(ValueError, match=r"encoder_attention_mask must be \(3, 7\)"):
            call(ours, given | {"encoder_attention_mask": mask[:, :5]})


def test_residuals_of_a_controlnet():
    theirs, ours = pair("sd1")
    given = inputs("sd1")
    shapes = [(16, 16, 24), (16, 16, 24), (16, 8, 12), (32, 8, 12)]
    residuals = {
        "down_block_additional_residuals": [torch.randn(3, *shape) for shape in shapes],
        "mid_block_additional_residual": torch.randn(3, 32, 8, 12),
    }
    expected = call(theirs, given | residuals)
    assert_close_in_float32(call(ours, given | residuals), expected, roundings=200)
    with pytest.raises(ValueError, match="must be given together"):
        call(ours, given | {"mid_block_additional_residual": residuals["mid_block_additional_residual"]})


# The keys and values that are kept of a text.


def count_projections(model) -> list[str]:
    """The attentions whose keys and values are projected. Without hooks, for which nothing would be kept."""
    calls: list[str] = []

    def counted(name, forward):
        def call(x):
            calls.append(name)
            return forward(x)

        return call

    for name, module in model.named_modules():
        if isinstance(module, Attention):
            for projection in (module.to_k, module.to_v):
                projection.forward = counted(name, projection.forward)
    return calls


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_text_is_projected_once_for_all_steps(name):
    theirs, ours = pair(name, exact_timesteps=True)
    calls = count_projections(ours)
    given = inputs(name)
    with torch.no_grad():
        for step, timestep in enumerate((900, 500, 100)):
            actual = call(ours, given | {"timestep": timestep})
            assert_close_in_float32(actual, call(theirs, given | {"timestep": timestep}))
            crossing = [name for name in calls if "attn2" in name]
            assert len(crossing) == len(set(crossing)) * 2 and crossing
            assert len(calls) - len(crossing) == (step + 1) * len(crossing)


def test_text_changed_in_place_is_seen():
    theirs, ours = pair("sd1", exact_timesteps=True)
    given = inputs("sd1")
    with torch.no_grad():
        before = call(ours, given)
        given["encoder_hidden_states"].mul_(-1)
        after = call(ours, given)
        assert_close_in_float32(after, call(theirs, given))
        assert max_error(after, before.double()) > 1e-3
        for model in (theirs, ours):
            model.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.weight.mul_(3)
        assert_close_in_float32(call(ours, given), call(theirs, given))
        assert max_error(call(ours, given), after.double()) > 1e-3


ONE_STAGE = SMALL | {
    "block_out_channels": (16,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "mid_block_type": None,
}


def test_compiles_without_graph_break():
    assert_compiles(UNet2DConditionModel(**ONE_STAGE), call, inputs("sd1", 1, 8, 12))


# The published widths, at two of the resolutions and with one layer a block.

SD = {"layers_per_block": 1, "block_out_channels": (320, 640)}
PUBLISHED = {
    "sd15": {
        "layers_per_block": 1,
        "block_out_channels": (320, 1280),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "sd21": SD
    | {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10),
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "sdxl": SD
    | {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_widths(name):
    theirs = diffusers.UNet2DConditionModel(**PUBLISHED[name]).eval()
    with torch.device("meta"):  # no time for initial values that are overwritten at once
        ours = UNet2DConditionModel(**PUBLISHED[name]).eval()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    given = {
        "sample": torch.randn(1, 4, 8, 12),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 77, ours.config.cross_attention_dim),
    }
    if ours.config.addition_embed_type:
        given["text_embeds"] = torch.randn(1, 1280)
        given["time_ids"] = torch.tensor([[1024, 768, 0, 10, 1024, 1024]])
    with torch.no_grad():
        assert_close_in_float32(call(ours, given), call(theirs, given), roundings=200)


# Configuration and folders.


@pytest.mark.parametrize("name", ["sd1", "sdxl", "uneven_depths", "encoder_hid_dim"])
def test_folders_are_shared_with_diffusers(name, tmp_path):
    theirs, ours = pair(name)
    assert_folders_are_shared(theirs, ours, call, inputs(name), tmp_path)


def test_attention_head_dim_is_the_number_of_heads():
    _, ours = pair("three_stages")
    attention = ours.down_blocks[1].attentions[0].transformer_blocks[0].attn1
    assert attention.dim_head == 32 // 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down_block_types": ("AttnDownBlock2D",) * 2}, "down_block_types must hold only.*'AttnDownBlock2D'"),
        ({"up_block_types": ("UpBlock2D",)}, "up_block_types must have one entry"),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type must be one of.*SimpleCrossAttn"),
        ({"num_attention_heads": 8}, "num_attention_heads must be None.*attention_head_dim.*got 8"),
        ({"attention_head_dim": 5}, "attention_head_dim, the number of heads, must divide the 16 channels.*got 5"),
        ({"attention_head_dim": (4,)}, "attention_head_dim must have one entry"),
        ({"layers_per_block": (1, 2, 3)}, "layers_per_block must have one entry"),
        ({"only_cross_attention": (True,)}, "only_cross_attention must have one entry"),
        ({"cross_attention_dim": (12, 16)}, "cross_attention_dim must be the same in all blocks.*12, 16"),
        ({"transformer_layers_per_block": ((1,), 1)}, "reverse_transformer_layers_per_block must be set"),
        (
            {"transformer_layers_per_block": ((1, 2), 1), "reverse_transformer_layers_per_block": (1, 1)},
            r"transformer_layers_per_block must have one entry for each of the 1 layers.*\(1, 2\)",
        ),
        (
            {"reverse_transformer_layers_per_block": (1, (1,))},
            "reverse_.* must have one entry for each of the 2 layers",
        ),
        ({"dual_cross_attention": True}, "dual_cross_attention must be False.*got True"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type must be 'positional'.*'fourier'"),
        ({"attention_type": "gated"}, "attention_type must be 'default'.*'gated'"),
        ({"cross_attention_norm": "layer_norm"}, "cross_attention_norm must be None.*'layer_norm'"),
        ({"resnet_out_scale_factor": 2.0}, "resnet_out_scale_factor must be 1.0.*2.0"),
        ({"mid_block_only_cross_attention": True}, "mid_block_only_cross_attention must be one of.*True"),
        ({"addition_embed_type": "image"}, "addition_embed_type must be one of.*'image'"),
        ({"addition_embed_type": "text_time"}, "addition_time_embed_dim must be set"),
        (
            {"addition_embed_type": "text_time", "addition_time_embed_dim": 8},
            "projection_class_embeddings_input_dim must be set for addition_embed_type 'text_time'",
        ),
        ({"class_embed_type": "projection"}, "projection_class_embeddings_input_dim must be set for class_embed_type"),
        ({"class_embeddings_concat": True}, "class_embeddings_concat needs"),
        ({"encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim_type must be one of.*'image_proj'"),
        ({"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim must be set"),
        ({"block_out_channels": 16}, "block_out_channels must hold 1 or more positive integers, got 16"),
        ({"norm_num_groups": None}, "norm_num_groups must divide.*None"),
        ({"act_fn": "mish"}, "act_fn must be one of.*'mish'"),
        ({"conv_in_kernel": 2}, "conv_in_kernel must be odd, got 2"),
        ({"hidden_size": 5}, "no configuration key 'hidden_size'"),
    ],
)
def test_unsupported_configuration(change, message):
    with pytest.raises(ValueError, match=message):
        UNet2DConditionModel(**(SMALL | change))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sd1", {"sample": torch.randn(3, 3, 16, 24)}, r"sample must be \(N, 4, H, W\), got shape \(3, 3, 16, 24\)"),
        ("sd1", {"encoder_hidden_states": None}, r"encoder_hidden_states must be \(3, L, 12\), got None"),
        ("sd1", {"encoder_hidden_states": torch.randn(1, 7, 12)}, r"must be \(3, L, 12\), got shape \(1, 7, 12\)"),
        ("encoder_hid_dim", {"encoder_hidden_states": torch.randn(3, 7, 12)}, r"must be \(3, L, 10\)"),
        ("sd1", {"class_labels": torch.tensor([0])}, "class_labels must not be given"),
        ("class_timestep", {"class_labels": None}, "class_labels are required"),
        ("class_timestep", {"class_labels": torch.tensor([1])}, r"class_labels must be \(3,\), got shape \(1,\)"),
        ("class_identity", {"class_labels": torch.randn(3, 5)}, r"class_labels must be \(3, 64\), got shape \(3, 5\)"),
        ("class_projection", {"class_labels": torch.randn(2, 5)}, r"class_labels must be \(3, 5\), got shape \(2, 5\)"),
        ("class_simple_projection", {"class_labels": torch.tensor([1, 2, 3])}, r"class_labels must be \(3, 5\)"),
        (
            "guidance_embedding",
            {"timestep_cond": torch.randn(1, 6)},
            r"timestep_cond must be \(3, 6\), got shape \(1, 6",
        ),
        ("guidance_embedding", {"timestep_cond": torch.randn(3)}, r"timestep_cond must be \(3, 6\), got shape \(3,\)"),
        ("sd1", {"timestep_cond": torch.randn(3, 6)}, "timestep_cond must not be given"),
        ("sd1", {"timestep": torch.tensor([1, 2])}, r"timestep must be a number or .* or \(3,\), got shape \(2,\)"),
        ("sd1", {"text_embeds": torch.randn(3, 21)}, r"added_cond_kwargs may have nothing.*\['text_embeds'\]"),
        ("sd1", {"cross_attention_kwargs": {"scale": 1.0}}, r"cross_attention_kwargs must be None or empty.*'scale'"),
        ("sdxl", {"text_embeds": torch.randn(3, 21)}, "must make up projection_class_embeddings_input_dim 68, got 21"),
        ("sdxl", {"time_ids": torch.tensor([1, 2])}, r"time_ids must be \(3, channels\), got shape \(2,\)"),
    ],
)
def test_wrong_inputs(name, change, message):
    with pytest.raises(ValueError, match=message):
        call(UNet2DConditionModel(**CONFIGS[name]), inputs(name) | change)


def test_missing_text_and_time_ids():
    given = inputs("sdxl")
    model = UNet2DConditionModel(**CONFIGS["sdxl"])
    for key in ("text_embeds", "time_ids"):
        with pytest.raises(ValueError, match=f"added_cond_kwargs must hold {key}"):
            call(model, {name: x for name, x in given.items() if name != key})
