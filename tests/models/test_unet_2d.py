"""UNet2DModel against diffusers' own on random weights, and its folder format."""

from __future__ import annotations

import json

import model_parity
import pytest
import safetensors.torch
import torch
from exact_diffusers import use_exact_timesteps
from model_parity import (
    assert_checkpointing_gives_the_same,
    assert_folders_are_shared,
    assert_keeps_timestep_in_float32,
    assert_parity,
    assert_same_in_float32,
    assert_same_in_float64,
    assert_takes_any_timestep,
    sample_of,
    with_old_attention_keys,
)

from fastdiff.models import UNet2DConfig, UNet2DModel
from fastdiff.sampling import sample

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("reference_without_extension")

SMALL = {
    "sample_size": 16,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}
THREE_STAGES = {
    "block_out_channels": (16, 32, 24),
    "layers_per_block": 2,
    "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D"),
    "norm_num_groups": 4,
}
CONFIGS = {
    "small": SMALL,
    "three_stages": THREE_STAGES,
    "ddpm": SMALL | {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6},
    "scale_shift": THREE_STAGES | {"resnet_time_scale_shift": "scale_shift", "time_embedding_dim": 48},
    "scale_shift_mid_norm": SMALL | {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 2},
    "resnet_resampling": THREE_STAGES | {"downsample_type": "resnet", "upsample_type": "resnet"},
    "resnet_blocks": THREE_STAGES
    | {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
        "resnet_time_scale_shift": "scale_shift",
        "downsample_type": "resnet",
    },
    "fourier": SMALL | {"time_embedding_type": "fourier"},
    "learned": SMALL | {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "class_labels": SMALL | {"num_class_embeds": 7},
    "class_timestep": SMALL | {"class_embed_type": "timestep"},
    "class_identity": SMALL | {"class_embed_type": "identity"},
    "one_head": THREE_STAGES | {"attention_head_dim": None, "mid_block_scale_factor": 1.4142135},
    "no_mid_attention": SMALL | {"add_attention": False, "in_channels": 1, "out_channels": 2},
    "no_mid_block": SMALL | {"mid_block_type": None, "center_input_sample": True, "dropout": 0.3},
}


def pair(name: str, exact_timesteps: bool = False):
    theirs, ours = model_parity.pair(diffusers.UNet2DModel, UNet2DModel, CONFIGS[name])
    if exact_timesteps:
        use_exact_timesteps(theirs, ours)
    return theirs, ours


def inputs(name: str, batch: int = 3):
    config = UNet2DConfig(**CONFIGS[name])
    generator = torch.Generator().manual_seed(1)
    given = {
        "sample": torch.randn(batch, config.in_channels, 16, 24, generator=generator),
        "timestep": torch.tensor([3, 500, 999])[:batch],
    }
    if config.num_class_embeds is not None:
        given["class_labels"] = torch.tensor([0, 6, 3])[:batch]
    elif config.class_embed_type == "timestep":
        given["class_labels"] = torch.tensor([1, 20, 300])[:batch]
    elif config.class_embed_type == "identity":
        given["class_labels"] = torch.randn(batch, 4 * config.block_out_channels[0], generator=generator)
    return given


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", CONFIGS)
def test_forward_and_gradients_equal_diffusers(name, layout):
    theirs, ours = pair(name, exact_timesteps=True)
    ours, given = ours.to(memory_format=layout), inputs(name)
    given["sample"] = given["sample"].to(memory_format=layout)
    # diffusers does not cast the embedding of such labels to the dtype of the model.
    (assert_same_in_float64 if name == "class_timestep" else assert_parity)(theirs, ours, sample_of, given)
    assert sample_of(ours, given).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("name", ["small", "fourier", "learned", "class_timestep"])
def test_equals_diffusers_with_its_own_timesteps(name):
    assert_same_in_float32(*pair(name), sample_of, inputs(name))


def test_timestep_as_number_scalar_and_vector():
    assert_takes_any_timestep(pair("small")[1], sample_of, inputs("small"))


def test_bfloat16_keeps_the_timestep_in_float32():
    assert_keeps_timestep_in_float32(pair("small")[1], sample_of, inputs("small"))


def test_result_is_divided_by_the_timestep_itself():
    ours, given = pair("fourier")[1].bfloat16(), inputs("fourier")
    given["sample"] = given["sample"].bfloat16()
    seen = []
    ours.conv_out.register_forward_hook(lambda _, __, x: seen.append(x))
    for timestep in (torch.tensor([3, 501, 999]), torch.tensor([0.3, 501.5, 999.9], dtype=torch.float64)):
        result = sample_of(ours, given | {"timestep": timestep})
        assert torch.equal(result, (seen.pop().double() / timestep[:, None, None, None]).bfloat16())


def test_state_dict_of_old_attention_keys_loads():
    theirs, ours = pair("small")
    fresh = UNet2DModel(**SMALL).eval()
    fresh.load_state_dict(with_old_attention_keys(theirs.state_dict()))
    assert torch.equal(sample_of(fresh, inputs("small")), sample_of(ours, inputs("small")))


@pytest.mark.parametrize("name", ["three_stages", "no_mid_block"])
def test_gradient_checkpointing_gives_the_same(name):
    ours = pair(name)[1].train()
    for block in ours.up_blocks:
        assert_checkpointing_gives_the_same(ours, block, sample_of, inputs(name))


def test_sampling_takes_either_model():
    theirs, ours = pair("small")
    noise = inputs("small")["sample"]
    torch.testing.assert_close(sample(ours, noise, steps=3), sample(theirs, noise, steps=3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}, "down_block_types.*CrossAttnDownBlock2D"),
        ({"up_block_types": ("UpBlock2D",)}, "up_block_types must have one entry"),
        ({"time_embedding_type": "sinus"}, "time_embedding_type must be one of.*'sinus'"),
        ({"time_embedding_type": "learned"}, "num_train_timesteps"),
        ({"act_fn": "gelu"}, "act_fn must be one of.*'gelu'"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift.*'spatial'"),
        ({"norm_num_groups": 5}, "norm_num_groups must divide"),
        ({"norm_num_groups": None}, "norm_num_groups must divide"),
        ({"block_out_channels": 16}, "block_out_channels must hold 1 or more positive integers, got 16"),
        (
            {"block_out_channels": (), "down_block_types": (), "up_block_types": ()},
            "block_out_channels must hold 1 or more",
        ),
        ({"down_block_types": None}, "down_block_types must be a list, got None"),
        ({"layers_per_block": 0}, "layers_per_block must be an integer of at least 1"),
        ({"in_channels": 0}, "in_channels must be an integer of at least 1"),
        ({"mid_block_scale_factor": 0}, "mid_block_scale_factor must be a number above 0"),
        ({"dropout": 2}, r"dropout must lie in 0 \.\.\. 1"),
        ({"attention_head_dim": 5}, "attention_head_dim must divide"),
        ({"hidden_size": 5}, "no configuration key 'hidden_size'"),
    ],
)
def test_unsupported_configuration(change, message):
    with pytest.raises(ValueError, match=message):
        UNet2DModel(**(SMALL | change))


def test_wrong_inputs():
    model = UNet2DModel(**SMALL)
    with pytest.raises(ValueError, match=r"sample must be \(N, 3, H, W\)"):
        model(torch.randn(1, 4, 16, 16), 0)
    with pytest.raises(ValueError, match="multiples of 2"):
        model(torch.randn(1, 3, 16, 15), 0)
    with pytest.raises(ValueError, match="class_labels must not be given"):
        model(torch.randn(1, 3, 16, 16), 0, torch.tensor([0]))
    for name, labels, wanted in (
        ("class_labels", torch.tensor([[0]]), r"\(1,\), got shape \(1, 1\)"),
        ("class_timestep", torch.tensor([1, 2]), r"\(1,\), got shape \(2,\)"),
        ("class_identity", torch.randn(1, 16), r"\(1, 64\), got shape \(1, 16\)"),
    ):
        with pytest.raises(ValueError, match=f"class_labels must be {wanted}"):
            UNet2DModel(**CONFIGS[name])(torch.randn(1, 3, 16, 16), 0, labels)
    with pytest.raises(ValueError, match="class_labels are required"):
        UNet2DModel(**CONFIGS["class_labels"])(torch.randn(1, 3, 16, 16), 0)


@pytest.mark.parametrize("name", ["small", "scale_shift", "class_labels", "fourier", "learned", "resnet_blocks"])
def test_folders_are_shared_with_diffusers(name, tmp_path):
    assert_folders_are_shared(*pair(name), sample_of, inputs(name), tmp_path)


def test_folder_dtype_and_layout(tmp_path):
    _, ours = pair("small")
    ours.to(memory_format=torch.channels_last).save_pretrained(tmp_path, dtype=torch.float16)
    loaded = UNet2DModel.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float16}
    assert all(p.requires_grad for p in loaded.parameters())
    loaded = UNet2DModel.from_pretrained(tmp_path, dtype=torch.float32)
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, ours.state_dict()[key].half().float()), key


def test_from_config_round_trip():
    model = UNet2DModel(**SMALL)
    assert UNet2DModel.from_config(model.config).config == model.config
    with_notes = {"_class_name": "UNet2DModel", "_diffusers_version": "0.42.1", **SMALL}
    assert UNet2DModel.from_config(with_notes).config == model.config


def test_missing_and_damaged_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        UNet2DModel.from_pretrained(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no config.json"):
        UNet2DModel.from_pretrained(tmp_path)
    UNet2DModel(**SMALL).save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "diffusion_pytorch_model.safetensors"
    good_config, good_weights = config.read_bytes(), weights.read_bytes()

    weights.unlink()
    with pytest.raises(FileNotFoundError, match="no diffusion_pytorch_model.safetensors"):
        UNet2DModel.from_pretrained(tmp_path)
    for damaged in (b"", b"junk", good_weights[:-100]):
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged or not a safetensors file"):
            UNet2DModel.from_pretrained(tmp_path)

    weights.write_bytes(good_weights)
    for damaged, message in ((b"{", "not valid JSON"), (b"[]", "must hold a JSON object"), (b"\xff", "not valid JSON")):
        config.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            UNet2DModel.from_pretrained(tmp_path)
    config.write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(ValueError, match="is of a AutoencoderKL"):
        UNet2DModel.from_pretrained(tmp_path)

    config.write_bytes(good_config)
    state = safetensors.torch.load_file(weights)
    for change, message in (
        (lambda s: s.pop("conv_in.bias"), "Missing key.*conv_in.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "Unexpected key.*extra"),
        (lambda s: s.update({"conv_in.bias": torch.zeros(3)}), "size mismatch for conv_in.bias"),
    ):
        changed = dict(state)
        change(changed)
        safetensors.torch.save_file(changed, weights)
        with pytest.raises(ValueError, match=f"(?s)do not fit.*{message}"):
            UNet2DModel.from_pretrained(tmp_path)
