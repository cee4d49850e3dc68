"""FluxTransformer2DModel against diffusers' own on random weights, and its folder format."""

from __future__ import annotations

import model_parity as parity
import pytest
import torch
from model_parity import sample_of

from fastdiff.models import FluxTransformer2DModel
from fastdiff.models.flux import FluxSingleTransformerBlock, rotary_tables
from fastdiff.models.transformer_blocks import JointTransformerBlock

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("reference_without_extension")

SMALL = {
    "in_channels": 6,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 12,
    "num_attention_heads": 2,
    "joint_attention_dim": 20,
    "pooled_projection_dim": 14,
    "axes_dims_rope": (2, 4, 6),
}
CONFIGS = {
    "schnell": SMALL,
    "dev": SMALL | {"guidance_embeds": True},
    "double_blocks": SMALL | {"num_single_layers": 0, "out_channels": 5},
    "single_blocks": SMALL | {"num_layers": 0, "num_single_layers": 1, "patch_size": 2},
}


def pair(name: str):
    return parity.pair(diffusers.FluxTransformer2DModel, FluxTransformer2DModel, CONFIGS[name])


def inputs(name: str, batch: int = 3, size: tuple[int, int] = (3, 5), tokens: int = 4) -> parity.Inputs:
    generator = torch.Generator().manual_seed(1)
    places = [torch.zeros(1), torch.arange(float(size[0])), torch.arange(float(size[1]))]
    values = {
        "hidden_states": torch.randn(batch, size[0] * size[1], SMALL["in_channels"], generator=generator),
        "encoder_hidden_states": torch.randn(batch, tokens, SMALL["joint_attention_dim"], generator=generator),
        "pooled_projections": torch.randn(batch, SMALL["pooled_projection_dim"], generator=generator),
        # Small, because angles in float32, as diffusers has them, would allow for any error at large ones; and numbers
        # that bfloat16 has, times 1000, too.
        "timestep": torch.tensor([2**-8, 2**-7, 2**-6])[:batch],
        "img_ids": torch.cartesian_prod(*places),
        "txt_ids": torch.randint(0, 9, (tokens, 3), generator=generator).float(),
    }
    if CONFIGS[name].get("guidance_embeds"):
        values["guidance"] = torch.tensor([2**-7, 2**-9, 2**-6])[:batch]
    return values


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_diffusers_in_float64(name) -> None:
    parity.assert_same_in_float64(*pair(name), sample_of, inputs(name))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_as_exact_as_diffusers(name, dtype) -> None:
    parity.assert_as_exact_as_diffusers(*pair(name), sample_of, inputs(name), dtype)


def test_real_times_and_guidance() -> None:
    theirs, ours = pair("dev")
    values = {"timestep": torch.tensor([1.0, 0.5, 0.03125]), "guidance": torch.tensor([3.5, 1.0, 30.0])}
    parity.assert_same_in_float64(theirs, ours, sample_of, inputs("dev") | values)


def test_ids_of_each_sample() -> None:
    """diffusers takes the first sample's ids for all, so it is asked for each sample by itself."""
    theirs, ours = pair("dev")
    values = inputs("dev")
    shifts = torch.tensor([0.0, 7.0, 100.0])[:, None, None]
    img_ids, txt_ids = values["img_ids"] + shifts, values["txt_ids"] * (1 + shifts)
    actual = ours(**values | {"img_ids": img_ids, "txt_ids": txt_ids}).sample
    for n in range(3):
        ids = {"img_ids": img_ids[n], "txt_ids": txt_ids[n]}
        sample = {name: x[n : n + 1] for name, x in values.items() if name not in ids}
        torch.testing.assert_close(actual[n : n + 1], theirs(**sample | ids).sample, rtol=1e-4, atol=1e-4)
    # The same for all, given in any of the ways.
    expected = ours(**values).sample
    for batch in (1, 3):
        ids = {name: values[name].expand(batch, -1, -1) for name in ("img_ids", "txt_ids")}
        torch.testing.assert_close(ours(**values | ids).sample, expected)
        torch.testing.assert_close(ours(**values | {"txt_ids": ids["txt_ids"]}).sample, expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_empty_batch(name) -> None:
    _, ours = pair(name)
    assert ours(**inputs(name, 0)).sample.shape == (0, *ours(**inputs(name, 1)).sample.shape[1:])


def test_timestep_and_guidance_as_number_scalar_and_vector() -> None:
    _, ours = pair("dev")
    values = inputs("dev")
    vector = ours(**values | {"timestep": torch.full((3,), 0.25), "guidance": torch.full((3,), 4.0)}).sample
    for as_given in (float, torch.tensor, lambda number: torch.tensor([number])):
        assert torch.equal(ours(**values | {"timestep": as_given(0.25), "guidance": as_given(4.0)}).sample, vector)


def test_bfloat16_keeps_timestep_and_guidance_in_float32() -> None:
    ours = pair("dev")[1].bfloat16()
    values = inputs("dev")
    values |= {name: x.bfloat16() for name, x in values.items() if name not in parity.ALWAYS_FLOAT32}
    sample = ours(**values | {"timestep": 0.75, "guidance": 3.5}).sample
    # bfloat16 has no 750 and no 3500: rounded, they would be the same as these.
    assert not torch.equal(ours(**values | {"timestep": 0.752, "guidance": 3.5}).sample, sample)
    assert not torch.equal(ours(**values | {"timestep": 0.75, "guidance": 3.504}).sample, sample)


def test_float16_stays_in_range() -> None:
    """As in diffusers, a text that would leave the range of float16 stays at its end; so do the tokens of both."""
    flux = pytest.importorskip("diffusers.models.transformers.transformer_flux")
    signs = torch.tensor([1.0, -1.0] * 12)
    text, x, temb = 60000 * signs.expand(2, 4, -1), torch.randn(2, 5, 24), torch.randn(2, 24)
    double, single = flux.FluxTransformerBlock(24, 2, 12), flux.FluxSingleTransformerBlock(24, 2, 12)
    with torch.no_grad():
        for norm, last in ((double.norm1_context, double.ff_context.net[2]), (single.norm, single.proj_out)):
            norm.linear.bias += 1  # of the gate, too
            last.bias.copy_(20000 * signs)
    ours_double, ours_single = JointTransformerBlock(24, 2, qk_norm=True), FluxSingleTransformerBlock(24, 2)
    ours_double.load_state_dict(double.state_dict())
    ours_single.load_state_dict(single.state_dict())
    for module in (double, single, ours_double, ours_single):
        module.half()
    text, x, temb = text.half(), x.half(), temb.half()
    rope = rotary_tables(torch.randint(9, (9, 3)), (2, 4, 6))

    expected = torch.cat(double(x, text, temb, rope), dim=1)
    actual = torch.cat(ours_double(x, text, temb, rope)[::-1], dim=1)
    assert (actual[:, :4].abs() == 65504).any()
    torch.testing.assert_close(actual, expected, rtol=0.01, atol=0.01)
    expected = torch.cat(single(x, text, temb, rope), dim=1)
    actual = ours_single(torch.cat((text, x), dim=1), temb, rope)
    assert (actual[:, :4].abs() == 65504).any()
    torch.testing.assert_close(actual, expected, rtol=0.01, atol=0.01)


def test_full_width() -> None:
    """FLUX.1 dev with one block of each kind, half a billion weights."""
    config = {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": True}
    theirs, ours = parity.full_width_pair(diffusers.FluxTransformer2DModel, FluxTransformer2DModel, config)
    values = {
        "hidden_states": torch.randn(1, 6, 64),
        "encoder_hidden_states": torch.randn(1, 5, 4096),
        "pooled_projections": torch.randn(1, 768),
        "timestep": torch.tensor([0.01]),
        "guidance": torch.tensor([0.01]),
        "img_ids": torch.cartesian_prod(torch.zeros(1), torch.arange(2.0), torch.arange(3.0)),
        "txt_ids": torch.zeros(5, 3),
    }
    parity.assert_same_in_float32(theirs, ours, sample_of, values)


@pytest.mark.parametrize("name", ("schnell", "dev"))
def test_folders_are_shared_with_diffusers(name, tmp_path) -> None:
    parity.assert_folders_are_shared(*pair(name), sample_of, inputs(name), tmp_path)


@pytest.mark.parametrize("name", ("schnell", "dev"))
def test_gradient_checkpointing_gives_the_same(name) -> None:
    ours = pair(name)[1]
    for block in parity.first_blocks(ours):
        parity.assert_checkpointing_gives_the_same(ours, block, sample_of, inputs(name))


def test_compiles_without_graph_break() -> None:
    config = CONFIGS["dev"] | {"num_layers": 1, "num_single_layers": 1}
    ours = parity.pair(diffusers.FluxTransformer2DModel, FluxTransformer2DModel, config)[1]
    parity.assert_compiles(ours, sample_of, inputs("dev"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": -1}, "num_layers must be an integer of at least 0, got -1"),
        ({"patch_size": 0}, "patch_size must be an integer of at least 1, got 0"),
        ({"out_channels": 0}, "out_channels must be an integer of at least 1, got 0"),
        ({"axes_dims_rope": (2, 4, 4)}, r"axes_dims_rope must be .* attention_head_dim 12, got \(2, 4, 4\)"),
        ({"axes_dims_rope": (3, 3, 6)}, r"axes_dims_rope must be even numbers .*, got \(3, 3, 6\)"),
        ({"qk_norm": "rms_norm"}, "no configuration key 'qk_norm'"),
    ],
)
def test_unsupported_configuration(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        FluxTransformer2DModel(**(SMALL | change))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("dev", {"hidden_states": torch.zeros(3, 15, 5)}, r"hidden_states must be \(N, L, 6\), got \(3, 15, 5\)"),
        ("dev", {"encoder_hidden_states": torch.zeros(3, 5, 21)}, r"encoder_hidden_states must be \(3, tokens, 20\)"),
        ("dev", {"pooled_projections": torch.zeros(2, 14)}, r"pooled_projections must be \(3, 14\)"),
        ("dev", {"img_ids": torch.zeros(14, 3)}, r"img_ids must be \(15, 3\) or \(3, 15, 3\).*, got shape \(14, 3\)"),
        ("dev", {"txt_ids": torch.zeros(4, 2)}, r"txt_ids must be \(4, 3\) or \(3, 4, 3\).*, got shape \(4, 2\)"),
        ("dev", {"guidance": None}, "guidance is required by guidance_embeds"),
        ("schnell", {"guidance": 3.5}, "guidance must not be given to a model without guidance_embeds"),
        ("dev", {"joint_attention_kwargs": {"scale": 2}}, r"joint_attention_kwargs must be None or empty"),
    ],
)
def test_wrong_inputs(name, change, message) -> None:
    with pytest.raises(ValueError, match=message):
        FluxTransformer2DModel(**CONFIGS[name])(**(inputs(name) | change))
