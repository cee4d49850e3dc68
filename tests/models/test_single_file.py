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
    # The second norm's eps is DiT's own; beside diffusers' copy stands 1e-5.
    "dit_xl_256": (DiTTransformer2DModel, "", original.dit(), {"out_channels": 8, "norm_eps": 1e-6}),
    "dit_xl_512": (
        DiTTransformer2DModel,
        "",
        original.dit(input_size=64),
        {"out_channels": 8, "norm_eps": 1e-6, "sample_size": 64},
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
    "vae": (AutoencoderKL, VAE, original.ldm_vae(**SMALL_VAE), {}),
    "vae_16": (AutoencoderKL, "", original.ldm_vae(**SMALL_VAE, z_channels=16, quant_conv=False), {}),
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
    model.load_state_dict(convert(model, model.config, part, tensors.items(), None, None), assign=True)


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
