"""DiTTransformer2DModel against diffusers' own on random weights, and its folder format."""

from __future__ import annotations

import json

import model_parity as parity
import pytest
import torch
from model_parity import sample_of

from fastdiff.models import DiTTransformer2DModel

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("reference_without_extension")

SMALL = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 2,
    "sample_size": 8,
    "num_embeds_ada_norm": 10,
    "out_channels": 8,
}
CONFIGS = {
    "small": SMALL,
    "affine_norm": SMALL | {"norm_elementwise_affine": True, "norm_eps": 1e-2, "out_channels": None},
    "no_attention_bias": SMALL | {"attention_bias": False, "upcast_attention": True},
    "geglu": SMALL | {"activation_fn": "geglu", "num_layers": 1, "patch_size": 4},
    "gelu": SMALL | {"activation_fn": "gelu", "num_layers": 1, "in_channels": 3, "patch_size": 1, "sample_size": 6},
    "dropout": SMALL | {"dropout": 0.3},
}


def pair(name: str):
    return parity.pair(diffusers.DiTTransformer2DModel, DiTTransformer2DModel, CONFIGS[name])


def inputs(name: str, batch: int = 3, size: tuple[int, int] = (8, 8)) -> parity.Inputs:
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, CONFIGS[name].get("in_channels", 4), *size, generator=generator),
        # Small, because angles in float32, as diffusers has them, would allow for any error at large ones.
        "timestep": torch.tensor([3, 7, 12])[:batch],
        "class_labels": torch.tensor([0, 10, 3])[:batch],
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_diffusers_in_float64(name) -> None:
    parity.assert_same_in_float64(*pair(name), sample_of, inputs(name))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_as_exact_as_diffusers(name, dtype) -> None:
    parity.assert_as_exact_as_diffusers(*pair(name), sample_of, inputs(name), dtype)


@pytest.mark.parametrize("size", ((16, 16), (4, 4)), ids=str)
def test_positions_stretch_to_other_sizes(size) -> None:
    parity.assert_same_in_float64(*pair("small"), sample_of, inputs("small", 1, size))


@pytest.mark.parametrize("size", ((4, 16), (18, 2)), ids=str)
def test_pictures_that_are_not_square(size) -> None:
    """diffusers puts the patches of such a picture in a square; they themselves are right."""
    theirs, ours = pair("small")
    patches = []
    theirs.proj_out_2.register_forward_hook(lambda _module, _inputs, output: patches.append(output))
    theirs(**inputs("small", size=size))
    rows = patches[0].view(3, size[0] // 2, size[1] // 2, 2, 2, 8)
    expected = torch.einsum("nhwpqc->nchpwq", rows).reshape(3, 8, *size)
    torch.testing.assert_close(ours(**inputs("small", size=size)).sample, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_empty_batch(name) -> None:
    _, ours = pair(name)
    assert ours(**inputs(name, 0)).sample.shape == (0, *ours(**inputs(name, 1)).sample.shape[1:])


def test_large_timesteps() -> None:
    theirs, ours = pair("small")
    parity.assert_same_in_float64(
        theirs, ours, sample_of, inputs("small") | {"timestep": torch.tensor([0.0, 437.25, 999.0])}
    )


def test_timestep_as_number_scalar_and_vector() -> None:
    parity.assert_takes_any_timestep(pair("small")[1], sample_of, inputs("small"))


def test_bfloat16_keeps_the_timestep_in_float32() -> None:
    parity.assert_keeps_timestep_in_float32(pair("small")[1], sample_of, inputs("small"))


def test_training_drops_a_tenth_of_the_labels() -> None:
    _, ours = pair("small")
    batch = 400
    values = {"hidden_states": torch.randn(1, 4, 4, 4).expand(batch, -1, -1, -1), "timestep": 7}
    labels = torch.full((batch,), 3)
    # With gradients, so that products are those of training, to the bit.
    kept = ours(**values, class_labels=labels).sample
    dropped = ours(**values, class_labels=torch.full((batch,), 10)).sample
    sample = ours.train()(**values, class_labels=labels).sample
    # Whole: the label of a sample is dropped in all blocks or in none.
    is_kept, is_dropped = ((sample == other).flatten(1).all(1) for other in (kept, dropped))
    assert (is_kept ^ is_dropped).all()
    assert 20 <= is_dropped.sum() <= 60  # 40, deviation 6
    assert (labels == 3).all()


def test_full_width() -> None:
    """DiT-XL/2 with two blocks."""
    config = {"num_layers": 2, "out_channels": 8}
    theirs, ours = parity.full_width_pair(diffusers.DiTTransformer2DModel, DiTTransformer2DModel, config)
    # The table of positions is no part of diffusers' state_dict.
    theirs.pos_embed = type(theirs.pos_embed)(32, 32, 2, 4, 1152)
    theirs.pos_embed.proj.load_state_dict(ours.pos_embed.proj.state_dict())
    values = {
        "hidden_states": torch.randn(1, 4, 32, 32),
        "timestep": torch.tensor([12]),
        "class_labels": torch.tensor([207]),
    }
    parity.assert_same_in_float32(theirs, ours, sample_of, values)


@pytest.mark.parametrize("name", ("small", "affine_norm"))
def test_folders_are_shared_with_diffusers(name, tmp_path) -> None:
    parity.assert_folders_are_shared(*pair(name), sample_of, inputs(name), tmp_path)


def test_folder_of_a_former_transformer_2d_model_loads(tmp_path) -> None:
    """What DiT was in diffusers when its checkpoints were published."""
    config = SMALL | {"in_channels": 4, "patch_size": 2, "activation_fn": "gelu-approximate", "attention_bias": True}
    config |= {"norm_type": "ada_norm_zero", "norm_elementwise_affine": False}
    former = diffusers.Transformer2DModel(**config).eval()
    former.save_pretrained(tmp_path)
    loaded = DiTTransformer2DModel.from_pretrained(tmp_path)
    values = inputs("small")
    expected = former(values.pop("hidden_states"), **values).sample
    torch.testing.assert_close(loaded(**inputs("small")).sample, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="no configuration key 'cross_attention_dim'"):
        DiTTransformer2DModel(**SMALL, cross_attention_dim=32)


@pytest.mark.parametrize("name", ("small", "dropout"))
def test_gradient_checkpointing_gives_the_same(name) -> None:
    ours = pair(name)[1].train()
    for block in parity.first_blocks(ours):
        parity.assert_checkpointing_gives_the_same(ours, block, sample_of, inputs(name))


def test_compiles_without_graph_break() -> None:
    parity.assert_compiles(pair("small")[1], sample_of, inputs("small"))


def test_damaged_index_of_shards(tmp_path) -> None:
    theirs, _ = pair("small")
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    damaged_maps = ({}, ["a"], {"a": "../b.safetensors"}, {"a": ["b.safetensors"]}, None)
    for damaged in (json.dumps({"weight_map": value}) for value in damaged_maps):
        content = index.read_text()
        index.write_text(damaged)
        with pytest.raises(ValueError, match="index.json must have a weight_map from keys to files of its folder"):
            DiTTransformer2DModel.from_pretrained(tmp_path)
        index.write_text(content)
    min(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no diffusion_pytorch_model-00001-of-\d+.safetensors"):
        DiTTransformer2DModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "num_layers must be an integer of at least 1, got 0"),
        ({"num_embeds_ada_norm": None}, "num_embeds_ada_norm must be an integer of at least 1, got None"),
        ({"out_channels": 0}, "out_channels must be an integer of at least 1, got 0"),
        ({"norm_type": "layer_norm"}, r"norm_type must be one of \('ada_norm_zero',\), got 'layer_norm'"),
        ({"activation_fn": "swiglu"}, "activation_fn must be one of .*, got 'swiglu'"),
        ({"attention_head_dim": 11}, r"must be a multiple of 4 .*, got 2 \* 11"),
        ({"sample_size": 1}, "sample_size must be at least patch_size 2, got 1"),
        ({"hidden_size": 5}, "no configuration key 'hidden_size'"),
    ],
)
def test_unsupported_configuration(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        DiTTransformer2DModel(**(SMALL | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_states": torch.zeros(3, 5, 8, 8)}, r"hidden_states must be \(N, 4, H, W\), got shape \(3, 5, 8, 8\)"),
        ({"hidden_states": torch.zeros(3, 4, 8, 7)}, r"multiples of 2, got \(8, 7\)"),
        ({"class_labels": torch.zeros(2, dtype=torch.int64)}, r"class_labels must have shape \(3,\), got \(2,\)"),
    ],
)
def test_wrong_inputs(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        DiTTransformer2DModel(**SMALL)(**(inputs("small") | change))


def test_configuration_that_diffusers_has_no_key_for(tmp_path, recwarn) -> None:
    DiTTransformer2DModel(**SMALL).save_pretrained(tmp_path)
    assert "freq_shift" not in (tmp_path / "config.json").read_text() and not recwarn.list
    with pytest.warns(UserWarning, match="diffusers has no freq_shift .* computes something else"):
        DiTTransformer2DModel(**SMALL, freq_shift=0).save_pretrained(tmp_path)
    assert DiTTransformer2DModel.from_pretrained(tmp_path).config.freq_shift == 0
