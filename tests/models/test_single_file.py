"""from_single_file: the configurations of the published checkpoints, and the conversion against diffusers' own."""

from __future__ import annotations

import math
import types
from pathlib import Path

import original_layouts as original
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

import fastdiff
from fastdiff.models import (
    AutoencoderKL,
    AutoencoderTiny,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from fastdiff.models.single_file import convert, find_part, infer_config
from fastdiff.models.weights import StoredTensor

single_file_utils = pytest.importorskip("diffusers.loaders.single_file_utils")

UNET, VAE = "model.diffusion_model.", "first_stage_model."
THREE_DOWN = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
THREE_UP = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
SD1 = original.ldm_unet()
SD2 = original.ldm_unet(linear=True, context_dim=1024)
UPSCALER = original.ldm_unet(
    model_channels=256, channel_mult=(1, 2, 2, 4), transformer_depth=(0, 1, 1, 1), linear=True, context_dim=1024,
    in_channels=7, num_classes=1000, disable_self_attentions=(True, True, True, False),
)  # fmt: skip
SDXL = original.ldm_unet(
    channel_mult=(1, 2, 4), transformer_depth=(0, 2, 10), middle_depth=10, linear=True, context_dim=2048,
    adm_in_channels=2816,
)  # fmt: skip
REFINER = original.ldm_unet(
    model_channels=384, transformer_depth=(0, 4, 4, 0), middle_depth=4, linear=True, context_dim=1280,
    adm_in_channels=2560,
)  # fmt: skip
TEXT_TIME = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "use_linear_projection": True}
FOUR_STAGES = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
NO_QUANT = FOUR_STAGES | {
    "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False, "sample_size": 1024,
}  # fmt: skip
VAE_16 = original.ldm_vae(z_channels=16, quant_conv=False)
FLUX = {"num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128, "num_attention_heads": 24}
SD3 = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
DIT = {"out_channels": 8, "norm_eps": 1e-6, "freq_shift": 0}  # the last two are the original code's, not diffusers'

# The published files, and what the configurations beside diffusers' copies of them say otherwise than the defaults.
PUBLISHED = {
    "sd1": (UNet2DConditionModel, UNET, SD1, {"sample_size": 64, "cross_attention_dim": 768}),
    "sd1_inpainting": (
        UNet2DConditionModel,
        UNET,
        original.ldm_unet(in_channels=9),
        {"sample_size": 64, "cross_attention_dim": 768, "in_channels": 9},
    ),
    "sd2": (
        UNet2DConditionModel,
        UNET,
        SD2,
        {
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
    ),
    "sd2_unclip": (
        UNet2DConditionModel,
        UNET,
        original.ldm_unet(linear=True, context_dim=1024, adm_in_channels=2048),
        {
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
            "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": 2048,
        },
    ),
    "sd2_upscaler": (
        UNet2DConditionModel,
        UNET,
        UPSCALER,
        {
            "sample_size": 128,
            "in_channels": 7,
            "cross_attention_dim": 1024,
            "block_out_channels": (256, 512, 512, 1024),
            "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
            "up_block_types": ("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
            "only_cross_attention": (False, True, True, False),  # published with True first, where it has no effect
            "num_class_embeds": 1000,
            "use_linear_projection": True,
        },
    ),
    "sdxl": (
        UNet2DConditionModel,
        UNET,
        SDXL,
        TEXT_TIME
        | {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "projection_class_embeddings_input_dim": 2816,
        },
    ),
    "sdxl_refiner": (
        UNet2DConditionModel,
        UNET,
        REFINER,
        TEXT_TIME
        | {
            "sample_size": 128,
            "block_out_channels": (384, 768, 1536, 1536),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": 4,
            "attention_head_dim": (6, 12, 24, 24),
            "cross_attention_dim": 1280,
            "projection_class_embeddings_input_dim": 2560,
        },
    ),
    "sd_vae": (AutoencoderKL, VAE, original.ldm_vae(), FOUR_STAGES | {"sample_size": 512}),
    "sd3_vae": (AutoencoderKL, VAE, VAE_16, NO_QUANT | {"scaling_factor": 1.5305, "shift_factor": 0.0609}),
    "flux_vae": (AutoencoderKL, "", VAE_16, NO_QUANT | {"scaling_factor": 0.3611, "shift_factor": 0.1159}),
    "dit_xl_256": (DiTTransformer2DModel, "", original.dit(), DIT),
    "dit_xl_512": (
        DiTTransformer2DModel,
        "",
        original.dit(input_size=64),
        DIT | {"sample_size": 64},
    ),
    "sd3_medium": (SD3Transformer2DModel, UNET, original.mmdit(), SD3 | {"pos_embed_max_size": 192}),
    "sd35_medium": (
        SD3Transformer2DModel,
        UNET,
        original.mmdit(pos_embed_max_size=384, qk_norm=64, dual_attention=range(13)),
        SD3 | {"pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))},
    ),
    "sd35_large": (
        SD3Transformer2DModel,
        "",
        original.mmdit(depth=38, qk_norm=64),
        {
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "pos_embed_max_size": 192,
            "qk_norm": "rms_norm",
        },
    ),
    "flux_dev": (FluxTransformer2DModel, "", original.flux(), FLUX | {"guidance_embeds": True}),
    "flux_schnell": (FluxTransformer2DModel, UNET, original.flux(guidance_embed=False), FLUX),
    "flux_fill": (
        FluxTransformer2DModel,
        "",
        original.flux(in_channels=384),
        FLUX | {"guidance_embeds": True, "in_channels": 384, "out_channels": 64},
    ),
}

# Small enough for random weights. What names and shapes of such a one do not tell is given.
SMALL_UNET = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "context_dim": 24}
SMALL_SDXL = SMALL_UNET | {
    "model_channels": 64, "linear": True, "num_res_blocks": 2, "transformer_depth": (0, 3), "middle_depth": 3,
}  # fmt: skip
SMALL_VAE = {"ch": 32, "ch_mult": (1, 2, 2), "num_res_blocks": 1}
SMALL_MMDIT = {"depth": 3, "width": 64, "pos_embed_max_size": 9, "context_dim": 20, "adm_in_channels": 14}
SMALL_FLUX = {
    "hidden_size": 48, "head_dim": 24, "depth": 2, "depth_single_blocks": 3, "in_channels": 6, "out_channels": 6,
    "context_in_dim": 20, "vec_in_dim": 14,
}  # fmt: skip
SMALL = {
    "sd1": (UNet2DConditionModel, UNET, original.ldm_unet(**SMALL_UNET, transformer_depth=(1, 0)), {}),
    "sd2": (
        UNet2DConditionModel,
        "",
        original.ldm_unet(**SMALL_UNET, transformer_depth=(1, 1), linear=True),
        {"attention_head_dim": (2, 4)},
    ),
    "unclip": (
        UNet2DConditionModel,
        UNET,
        original.ldm_unet(**SMALL_UNET | {"context_dim": 1024}, transformer_depth=(0, 1), adm_in_channels=12),
        {},
    ),
    "upscaler": (
        UNet2DConditionModel,
        UNET,
        original.ldm_unet(
            **SMALL_UNET, transformer_depth=(0, 1), linear=True, num_classes=5, disable_self_attentions=(True, True)
        ),
        {},
    ),
    "sdxl": (UNet2DConditionModel, UNET, original.ldm_unet(**SMALL_SDXL, adm_in_channels=1546), {}),
    "vae": (AutoencoderKL, VAE, original.ldm_vae(**SMALL_VAE), {"scaling_factor": 0.18215}),
    "vae_16": (
        AutoencoderKL,
        "",
        original.ldm_vae(**SMALL_VAE, z_channels=16, quant_conv=False),
        {"scaling_factor": 0.3611, "shift_factor": 0.1159},
    ),
    "sd3": (SD3Transformer2DModel, UNET, original.mmdit(**SMALL_MMDIT), {}),
    "sd35": (SD3Transformer2DModel, "", original.mmdit(**SMALL_MMDIT, qk_norm=16, dual_attention=(0, 2)), {}),
    "flux_dev": (FluxTransformer2DModel, "", original.flux(**SMALL_FLUX), {"axes_dims_rope": (4, 8, 12)}),
    "flux_schnell": (
        FluxTransformer2DModel,
        UNET,
        original.flux(**SMALL_FLUX, guidance_embed=False),
        {"axes_dims_rope": (4, 8, 12)},
    ),
}
SMALL_DIT = {"hidden_size": 128, "depth": 2, "num_classes": 5, "input_size": 8}


def random_tensors(shapes: original.Shapes, prefix: str = "") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {prefix + name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def saved(tensors: dict[str, Tensor], folder: Path) -> Path:
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


def sines(hidden_size: int, side: int) -> Tensor:
    """DiT's pos_embed (1, side * side, hidden_size): half of the channels for the column, half for the row."""
    omega = 10000 ** -(torch.arange(hidden_size // 4, dtype=torch.float64) / (hidden_size // 4))
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [place.flatten()[:, None] * omega for place in (column, row)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)[None].float()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configuration_and_shapes(name: str) -> None:
    model_class, prefix, shapes, expected = PUBLISHED[name]
    stored = {prefix + key: StoredTensor(shape, "F16") for key, shape in shapes.items()}
    part = find_part(model_class, Path("file"), stored | ({"joint_blocks.0": None} if prefix == VAE else {}))
    config = infer_config(model_class, part, {})
    assert model_class.config_class(**config) == model_class.config_class(**expected)
    with torch.device("meta"):
        model = model_class(**config)
        tensors = {prefix + key: torch.empty(shape) for key, shape in shapes.items()}
    if model_class is DiTTransformer2DModel:
        tensors["pos_embed"] = sines(1152, math.isqrt(shapes["pos_embed"][1]))
    model.load_state_dict(convert(model, part, tensors.items(), None, None), assign=True)


def by_diffusers(model, name: str, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    config = vars(model.config)
    tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    if isinstance(model, UNet2DConditionModel):
        return single_file_utils.convert_ldm_unet_checkpoint({UNET + k: v for k, v in tensors.items()}, config)
    if isinstance(model, AutoencoderKL):
        return single_file_utils.convert_ldm_vae_checkpoint(tensors, config)
    if isinstance(model, SD3Transformer2DModel):
        return single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(tensors)
    function = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
    # FLUX.1's width is a constant of the function.
    constants = tuple(SMALL_FLUX["hidden_size"] if value == 3072 else value for value in function.__code__.co_consts)
    assert constants != function.__code__.co_consts
    code = function.__code__.replace(co_consts=constants)
    return types.FunctionType(code, function.__globals__)(tensors)


@pytest.mark.parametrize("name", SMALL)
def test_tensors_are_those_of_diffusers_conversion(name: str, tmp_path: Path) -> None:
    model_class, prefix, shapes, given = SMALL[name]
    tensors = random_tensors(shapes, prefix)
    beside = {"other.network.weight": torch.ones(2)} if prefix else {}
    averages = {f"model_ema.{key.replace('.', '')}": -value for key, value in tensors.items()}
    model = model_class.from_single_file(saved(tensors | beside | averages, tmp_path), **given)
    assert not model.training
    state, expected = model.state_dict(), by_diffusers(model, name, prefix, tensors)
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(state[key], value), key


def original_dit(tensors: dict[str, Tensor], heads: int, x: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
    """The network of DiT (arXiv:2212.09748, section 3), with the conventions of the code its checkpoints are of."""

    def layer(name: str, y: Tensor) -> Tensor:
        return F.linear(y, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def mlp(first: str, second: str, activation, y: Tensor) -> Tensor:
        return layer(second, activation(layer(first, y)))

    def modulate(y: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(y, y.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    def attend(name: str, y: Tensor) -> Tensor:
        query, key, value = layer(f"{name}.qkv", y).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        scores = query @ key.mT / query.shape[-1] ** 0.5
        return layer(f"{name}.proj", (scores.softmax(-1) @ value).transpose(1, 2).flatten(2))

    patch_size = tensors["x_embedder.proj.weight"].shape[-1]
    patches = F.conv2d(x, tensors["x_embedder.proj.weight"], tensors["x_embedder.proj.bias"], stride=patch_size)
    tokens = patches.flatten(2).mT + tensors["pos_embed"]
    angle = timestep[:, None] * 10000 ** -(torch.arange(128) / 128.0).to(x)
    condition = mlp("t_embedder.mlp.0", "t_embedder.mlp.2", F.silu, torch.cat((angle.cos(), angle.sin()), dim=1))
    condition = F.silu(condition + tensors["y_embedder.embedding_table.weight"][labels])
    for number in range(sum(name.endswith("attn.qkv.weight") for name in tensors)):
        block = f"blocks.{number}"
        shift, scale, gate, *of_mlp = layer(f"{block}.adaLN_modulation.1", condition).chunk(6, dim=1)
        tokens = tokens + gate[:, None] * attend(f"{block}.attn", modulate(tokens, shift, scale))
        shift, scale, gate = of_mlp
        hidden = mlp(
            f"{block}.mlp.fc1",
            f"{block}.mlp.fc2",
            lambda y: F.gelu(y, approximate="tanh"),
            modulate(tokens, shift, scale),
        )
        tokens = tokens + gate[:, None] * hidden
    shift, scale = layer("final_layer.adaLN_modulation.1", condition).chunk(2, dim=1)
    tokens = layer("final_layer.linear", modulate(tokens, shift, scale))
    grid = tokens.unflatten(1, patches.shape[2:]).unflatten(-1, (patch_size, patch_size, -1))
    return torch.einsum("nhwpqc->nchpwq", grid).flatten(4).flatten(2, 3)


@pytest.mark.parametrize("patch_size", (2, 4))
def test_dit_is_the_original_network(patch_size: int, tmp_path: Path) -> None:
    shapes = original.dit(**SMALL_DIT, patch_size=patch_size)
    tensors = random_tensors(shapes) | {"pos_embed": sines(128, 8 // patch_size)}
    model = DiTTransformer2DModel.from_single_file(saved(tensors, tmp_path), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=generator)
    timestep, labels = torch.tensor([3.0, 977.0]), torch.tensor([4, 5])
    with fastdiff.use_reference(), torch.no_grad():
        actual = model(x, timestep, labels).sample
    expected = original_dit({key: value.double() for key, value in tensors.items()}, 2, x, timestep.double(), labels)
    # The table of places is float32 in the file, and worked out in the model.
    assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()


def test_blocks_of_dit_embed_with_weights_of_their_own(tmp_path: Path) -> None:
    """What is one tensor in the file: a step of training would be taken once for every block."""
    tensors = random_tensors(original.dit(**SMALL_DIT)) | {"pos_embed": sines(128, 4)}
    model = DiTTransformer2DModel.from_single_file(saved(tensors, tmp_path))
    first, second = (block.norm1.emb.class_embedder.embedding_table.weight for block in model.transformer_blocks)
    assert torch.equal(first, second) and first.data_ptr() != second.data_ptr()


def test_other_positions_than_dits_are_refused(tmp_path: Path) -> None:
    tensors = random_tensors(original.dit(**SMALL_DIT)) | {"pos_embed": sines(128, 4).roll(1, dims=1)}
    with pytest.raises(ValueError, match="pos_embed of .* must hold the sines and cosines of 4 x 4 places"):
        DiTTransformer2DModel.from_single_file(saved(tensors, tmp_path))


def test_parts_of_a_fused_projection_are_views(tmp_path: Path) -> None:
    model_class, prefix, shapes, given = SMALL["flux_dev"]
    model = model_class.from_single_file(saved(random_tensors(shapes, prefix), tmp_path), **given)
    attention = model.single_transformer_blocks[1].attn
    storages = {projection.weight.untyped_storage().data_ptr() for projection in (attention.to_q, attention.to_v)}
    assert len(storages) == 1
    model.save_pretrained(tmp_path / "folder")
    again = model_class.from_pretrained(tmp_path / "folder")
    assert again.config == model.config
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_dtype_and_device(tmp_path: Path) -> None:
    model_class, prefix, shapes, given = SMALL["flux_dev"]
    path = saved(random_tensors(shapes, prefix), tmp_path)
    stored = model_class.from_single_file(path, **given)
    loaded = model_class.from_single_file(path, dtype=torch.bfloat16, device="cpu", **given)
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, stored.state_dict()[key].bfloat16())
    assert model_class.from_single_file(path, device="meta", **given).device.type == "meta"


@pytest.mark.parametrize(
    ("beside", "scale"),
    [
        ("cond_stage_model.transformer.weight", (0.18215, None)),
        ("conditioner.embedders.0.transformer.weight", (0.13025, None)),
    ],
)
def test_scale_of_an_autoencoder_is_that_of_the_rest_of_the_file(beside: str, scale: tuple, tmp_path: Path) -> None:
    tensors = random_tensors(original.ldm_vae(**SMALL_VAE), VAE) | {beside: torch.ones(1)}
    config = AutoencoderKL.from_single_file(saved(tensors, tmp_path)).config
    assert (config.scaling_factor, config.shift_factor) == scale


def test_autoencoder_with_statistics_of_its_latents(tmp_path: Path) -> None:
    """They are Playground's, and its scale is not SDXL's."""
    tensors = random_tensors(original.ldm_vae(**SMALL_VAE), VAE)
    tensors |= {"edm_mean": torch.ones(4), "conditioner.embedders.0.transformer.weight": torch.ones(4)}
    with pytest.raises(ValueError, match="does not tell scaling_factor, as its latents have means"):
        AutoencoderKL.from_single_file(saved(tensors, tmp_path))


def test_flux_with_its_autoencoder_in_one_file(tmp_path: Path) -> None:
    tensors = random_tensors(original.ldm_vae(**SMALL_VAE, z_channels=16, quant_conv=False), "vae.")
    tensors |= random_tensors(original.flux(**SMALL_FLUX), UNET)
    config = AutoencoderKL.from_single_file(saved(tensors, tmp_path)).config
    assert (config.scaling_factor, config.shift_factor) == (0.3611, 0.1159)


def test_scale_of_an_autoencoder_in_its_own_file(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = saved(random_tensors(original.ldm_vae(**SMALL_VAE)), tmp_path)
    assert AutoencoderKL.from_single_file(path, scaling_factor=0.13025).config.scaling_factor == 0.13025
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"does not tell scaling_factor: 0.18215 is taken, .*SDXL's is 0.13025"):
        assert AutoencoderKL.from_single_file(path).config.scaling_factor == 0.18215
    for prefix in ("", "vae."):
        path = saved(random_tensors(original.ldm_vae(**SMALL_VAE, z_channels=16, quant_conv=False), prefix), tmp_path)
        with pytest.warns(UserWarning, match="does not tell .*that of FLUX") as caught:
            config = AutoencoderKL.from_single_file(path).config
        assert (config.scaling_factor, config.shift_factor, len(caught)) == (0.3611, 0.1159, 2)


@pytest.mark.parametrize("prefix", ("", VAE))
def test_what_lies_beside_the_weights_is_not_read(prefix: str, tmp_path: Path) -> None:
    """What an autoencoder was trained with, and averages; which say nothing of its scale."""
    tensors = random_tensors(original.ldm_vae(**SMALL_VAE), prefix)
    tensors |= {f"{prefix}{name}": torch.ones(2) for name in ("loss.discriminator.weight", "model_ema.decay")}
    with pytest.warns(UserWarning, match="does not tell scaling_factor"):
        AutoencoderKL.from_single_file(saved(tensors, tmp_path))


def test_attention_within_the_stages_of_an_autoencoder(tmp_path: Path) -> None:
    tensors = random_tensors(original.ldm_vae(**SMALL_VAE, attention_at=(0,)), VAE) | {"other": torch.ones(1)}
    model = AutoencoderKL.from_single_file(saved(tensors, tmp_path))
    assert model.config.down_block_types == ("AttnDownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D")
    assert model.config.up_block_types == ("UpDecoderBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D")
    for theirs, ours in (
        ("encoder.down.0.attn.0.k", model.encoder.down_blocks[0].attentions[0].to_k),
        ("decoder.up.0.attn.1.k", model.decoder.up_blocks[2].attentions[1].to_k),
    ):
        assert torch.equal(ours.weight, tensors[f"{VAE}{theirs}.weight"][..., 0, 0])


@pytest.mark.parametrize(
    ("model_class", "shapes", "told"),
    [
        (
            UNet2DConditionModel,
            original.ldm_unet(**SMALL_UNET, transformer_depth=(1, 1), linear=True),
            {"attention_head_dim": (2, 4)},
        ),
        (
            DiTTransformer2DModel,
            original.dit(**SMALL_DIT | {"hidden_size": 48}),
            {"num_attention_heads": 2, "attention_head_dim": 24},
        ),
        (
            SD3Transformer2DModel,
            original.mmdit(**SMALL_MMDIT | {"width": 48}),
            {"attention_head_dim": 24, "num_attention_heads": 2},
        ),
        (FluxTransformer2DModel, original.flux(**SMALL_FLUX), {"axes_dims_rope": (4, 8, 12)}),
    ],
    ids=("unet", "dit", "sd3", "flux"),
)
def test_what_a_file_does_not_tell(model_class, shapes: original.Shapes, told: dict, tmp_path: Path) -> None:
    tensors = random_tensors(shapes)
    if model_class is DiTTransformer2DModel:
        tensors["pos_embed"] = sines(48, 4)
    path = saved(tensors, tmp_path)
    with pytest.raises(ValueError, match=f"does not tell {' and '.join(told)}, as .*: give what is missing beside"):
        model_class.from_single_file(path)
    config = model_class.from_single_file(path, **told).config
    assert {key: getattr(config, key) for key in told} == told
    with pytest.raises(ValueError, match="has no configuration key 'heads'"):
        model_class.from_single_file(path, **told, heads=2)


def test_configuration_that_makes_no_model(tmp_path: Path) -> None:
    """Latent diffusion's norms have 32 groups."""
    shapes = original.ldm_unet(**SMALL_UNET | {"model_channels": 24}, transformer_depth=(1, 1))
    path = saved(random_tensors(shapes), tmp_path)
    with pytest.raises(ValueError, match="what .* tells does not make a UNet2DConditionModel: norm_num_groups must"):
        UNet2DConditionModel.from_single_file(path)
    assert UNet2DConditionModel.from_single_file(path, norm_num_groups=8).config.norm_num_groups == 8


FAMILIES = ("sd1", "vae", "sd3", "flux_dev")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("wanted", FAMILIES)
def test_file_of_another_family(name: str, wanted: str, tmp_path: Path) -> None:
    (found, prefix, shapes, _), wanted_class = SMALL[name], SMALL[wanted][0]
    if name == wanted:
        wanted_class = DiTTransformer2DModel
    path = saved(random_tensors(shapes, prefix), tmp_path)
    message = f"has no {wanted_class.__name__} in its original layout, .* is for {found.__name__}.from_single_file"
    with pytest.raises(ValueError, match=message):
        wanted_class.from_single_file(path)


def test_file_with_diffusers_own_names(tmp_path: Path) -> None:
    model = UNet2DConditionModel.from_single_file(saved(random_tensors(SMALL["sd1"][2]), tmp_path))
    model.save_pretrained(tmp_path / "folder")
    with pytest.raises(ValueError, match="is for from_pretrained, of a folder"):
        UNet2DConditionModel.from_single_file(tmp_path / "folder" / "diffusion_pytorch_model.safetensors")


def test_file_of_nothing_known(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="has no AutoencoderKL in its original layout, no decoder.mid.block_1.norm1.weight$"
    ):
        AutoencoderKL.from_single_file(saved({"layer.weight": torch.ones(2)}, tmp_path))
    with pytest.raises(ValueError, match="AutoencoderTiny has no original layout"):
        AutoencoderTiny.from_single_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", SMALL)
def test_missing_tensor(name: str, tmp_path: Path) -> None:
    """Any of them, here some: it is named, or what it would become."""
    model_class, prefix, shapes, given = SMALL[name]
    tensors = random_tensors(shapes, prefix)
    for key in list(tensors)[:: len(tensors) // 4]:
        path = saved({other: value for other, value in tensors.items() if other != key}, tmp_path)
        with pytest.raises(ValueError, match=r"has (no|nothing for|.*for which the model has no place)"):
            model_class.from_single_file(path, **given)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("more", ("scaled_fp8", "adapter.{}", "{}.lora_down.weight"))
def test_superfluous_tensor(name: str, more: str, tmp_path: Path) -> None:
    model_class, prefix, shapes, given = SMALL[name]
    tensors = random_tensors(shapes, prefix)
    key = prefix + more.format(next(iter(shapes)))
    with pytest.raises(ValueError, match=f"has {key}, for which the model has no place"):
        model_class.from_single_file(saved(tensors | {key: torch.ones(2)}, tmp_path), **given)


def test_tensor_of_another_shape(tmp_path: Path) -> None:
    model_class, prefix, shapes, given = SMALL["flux_dev"]
    for key in (
        "single_blocks.1.linear1.weight",
        "double_blocks.0.txt_mlp.2.bias",
        "final_layer.adaLN_modulation.1.bias",
    ):
        wrong = shapes | {key: (shapes[key][0] + 2, *shapes[key][1:])}
        with pytest.raises(ValueError, match=f"{key} of .* (must have 336 rows|has shape .*, which does not make up)"):
            model_class.from_single_file(saved(random_tensors(wrong, prefix), tmp_path), **given)
    for key in ("single_blocks.1.linear1.bias", "final_layer.adaLN_modulation.1.bias", "txt_in.bias"):
        path = saved(random_tensors(shapes | {key: ()}, prefix), tmp_path)
        with pytest.raises(ValueError, match=f"{key} of .* is a single number"):
            model_class.from_single_file(path, **given)
    for shape in ((3, 4, 5), (0, 4)):
        path = saved(random_tensors(shapes | {"img_in.weight": shape}), tmp_path)
        with pytest.raises(ValueError, match="img_in.weight of .* must have 2 dimensions"):
            model_class.from_single_file(path)


@pytest.mark.parametrize("dtype", (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8), ids=str)
def test_quantised_weights_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    model_class, prefix, shapes, given = SMALL["sd3"]
    tensors = random_tensors(shapes, prefix)
    other = {"text_encoders.t5xxl.weight": torch.ones(2).to(dtype)}
    model_class.from_single_file(saved(tensors | other, tmp_path), **given)
    key = f"{prefix}joint_blocks.1.x_block.mlp.fc1.weight"
    with pytest.raises(ValueError, match=f"{key} of .* is stored as [FIU]8.*: quantised weights are not supported"):
        model_class.from_single_file(saved(tensors | {key: tensors[key].to(dtype)}, tmp_path), **given)


@pytest.mark.parametrize("suffix", (".ckpt", ".pt", ".pth", ".bin"))
def test_pickle_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    with pytest.raises(FileNotFoundError, match=f"there is no model{suffix} in"):
        UNet2DConditionModel.from_single_file(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match="is a pickle, which can run code when it is loaded; only safetensors is read"):
        UNet2DConditionModel.from_single_file(path)


@pytest.mark.parametrize("damage", (lambda content: content[:-5], lambda content: content[:40], lambda content: b"no"))
def test_damaged_file(damage, tmp_path: Path) -> None:
    path = saved(random_tensors(original.ldm_vae(**SMALL_VAE)), tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="is damaged or not a safetensors file"):
        AutoencoderKL.from_single_file(path)
