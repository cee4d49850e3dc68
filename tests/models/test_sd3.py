"""SD3Transformer2DModel against diffusers' own on random weights, and its folder format."""

from __future__ import annotations

import model_parity as parity
import pytest
import torch
from model_parity import sample_of

from fastdiff.models import SD3Transformer2DModel

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("reference_without_extension")

SMALL = {
    "sample_size": 8,
    "num_layers": 3,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "caption_projection_dim": 24,
    "joint_attention_dim": 20,
    "pooled_projection_dim": 14,
    "pos_embed_max_size": 9,
    "in_channels": 4,
    "out_channels": 4,
}
CONFIGS = {
    "sd3": SMALL,
    "sd35_large": SMALL | {"qk_norm": "rms_norm"},
    "sd35_medium": SMALL | {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
    "dual_in_all": SMALL | {"dual_attention_layers": (0, 1, 2), "out_channels": None},
    "one_layer": SMALL | {"num_layers": 1, "out_channels": 6, "patch_size": 1, "pos_embed_max_size": 14},
    "interpolated_positions": SMALL | {"pos_embed_max_size": None, "sample_size": 11},
}
FULL_WIDTH = {
    "medium": {"num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192},
    # A table of the real 384 places on each side has 0.9 GB.
    "sd35_medium": {
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "qk_norm": "rms_norm",
        "dual_attention_layers": (0,),
    },
    "sd35_large": {"num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm", "num_layers": 1},
}


def pair(name: str):
    return parity.pair(diffusers.SD3Transformer2DModel, SD3Transformer2DModel, CONFIGS[name])


def inputs(batch: int = 3, size: tuple[int, int] = (6, 14), tokens: int = 5) -> parity.Inputs:
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, SMALL["in_channels"], *size, generator=generator),
        "encoder_hidden_states": torch.randn(batch, tokens, SMALL["joint_attention_dim"], generator=generator),
        "pooled_projections": torch.randn(batch, SMALL["pooled_projection_dim"], generator=generator),
        # Small, because angles in float32, as diffusers has them, would allow for any error at large ones.
        "timestep": torch.tensor([3, 7, 12])[:batch],
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_diffusers_in_float64(name) -> None:
    parity.assert_same_in_float64(*pair(name), sample_of, inputs())


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_as_exact_as_diffusers(name, dtype) -> None:
    parity.assert_as_exact_as_diffusers(*pair(name), sample_of, inputs(), dtype)


@pytest.mark.parametrize("size", ((8, 8), (18, 18), (2, 18), (10, 4)), ids=str)
def test_positions_are_the_middle_of_the_table(size) -> None:
    parity.assert_same_in_float64(*pair("sd35_medium"), sample_of, inputs(1, size, tokens=1))


@pytest.mark.parametrize("name", CONFIGS)
def test_empty_batch(name) -> None:
    _, ours = pair(name)
    assert ours(**inputs(0)).sample.shape == (0, *ours(**inputs(1)).sample.shape[1:])


def test_large_timesteps() -> None:
    theirs, ours = pair("sd3")
    parity.assert_same_in_float64(theirs, ours, sample_of, inputs() | {"timestep": torch.tensor([1.0, 437.25, 1000.0])})


def test_timestep_as_number_scalar_and_vector() -> None:
    parity.assert_takes_any_timestep(pair("sd3")[1], sample_of, inputs())


def test_bfloat16_keeps_the_timestep_in_float32() -> None:
    parity.assert_keeps_timestep_in_float32(pair("sd3")[1], sample_of, inputs())


@pytest.mark.parametrize("skipped", ((1,), (0, 2)), ids=str)
def test_skipped_layers(skipped) -> None:
    theirs, ours = pair("sd35_medium")
    torch.testing.assert_close(
        ours(**inputs(), skip_layers=skipped).sample,
        theirs(**inputs(), skip_layers=list(skipped)).sample,
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("name", FULL_WIDTH)
def test_full_width(name) -> None:
    config = {"num_layers": 2, "pos_embed_max_size": 96} | FULL_WIDTH[name]
    theirs, ours = parity.full_width_pair(diffusers.SD3Transformer2DModel, SD3Transformer2DModel, config)
    values = {
        "hidden_states": torch.randn(1, 16, 8, 12),
        "encoder_hidden_states": torch.randn(1, 7, 4096),
        "pooled_projections": torch.randn(1, 2048),
        "timestep": torch.tensor([12.0]),
    }
    parity.assert_same_in_float32(theirs, ours, sample_of, values)


@pytest.mark.parametrize("name", ("sd3", "sd35_medium"))
def test_folders_are_shared_with_diffusers(name, tmp_path) -> None:
    parity.assert_folders_are_shared(*pair(name), sample_of, inputs(), tmp_path)


@pytest.mark.parametrize("name", ("sd3", "sd35_medium"))
def test_gradient_checkpointing_gives_the_same(name) -> None:
    ours = pair(name)[1]
    for block in parity.first_blocks(ours):
        parity.assert_checkpointing_gives_the_same(ours, block, sample_of, inputs())


def test_compiles_without_graph_break() -> None:
    config = CONFIGS["sd35_medium"] | {"num_layers": 2, "dual_attention_layers": (0,)}
    ours = parity.pair(diffusers.SD3Transformer2DModel, SD3Transformer2DModel, config)[1]
    parity.assert_compiles(ours, sample_of, inputs())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "num_layers must be an integer of at least 1, got 0"),
        ({"in_channels": 4.0}, "in_channels must be an integer of at least 1, got 4.0"),
        ({"pos_embed_max_size": 0}, "pos_embed_max_size must be an integer of at least 1, got 0"),
        ({"qk_norm": "layer_norm"}, r"qk_norm must be one of \(None, 'rms_norm'\), got 'layer_norm'"),
        ({"caption_projection_dim": 25}, "caption_projection_dim must be .* = 24, got 25"),
        ({"attention_head_dim": 11}, r"must be a multiple of 4 .*, got 2 \* 11"),
        ({"dual_attention_layers": (1, 3)}, r"dual_attention_layers must be of the layers 0 to 2, got \(1, 3\)"),
        ({"sample_size": 1}, "sample_size must be at least patch_size 2, got 1"),
        ({"hidden_size": 5}, "no configuration key 'hidden_size'"),
    ],
)
def test_unsupported_configuration(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        SD3Transformer2DModel(**(SMALL | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_states": torch.zeros(3, 5, 6, 14)}, r"hidden_states must be \(N, 4, H, W\), got shape \(3, 5, 6, 14"),
        ({"hidden_states": torch.zeros(3, 4, 6, 13)}, r"multiples of 2, got \(6, 13\)"),
        ({"hidden_states": torch.zeros(3, 4, 20, 4)}, "at most pos_embed_max_size 9 patches .*, got 10 x 2 patches"),
        ({"encoder_hidden_states": torch.zeros(2, 5, 20)}, r"encoder_hidden_states must be \(3, tokens, 20\)"),
        ({"pooled_projections": torch.zeros(3, 20)}, r"pooled_projections must be \(3, 14\), got shape \(3, 20\)"),
        ({"joint_attention_kwargs": {"scale": 2}}, r"joint_attention_kwargs must be None or empty, got \['scale'\]"),
    ],
)
def test_wrong_inputs(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        SD3Transformer2DModel(**SMALL)(**(inputs() | change))
