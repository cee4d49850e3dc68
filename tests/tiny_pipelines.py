"""diffusers' pipelines with networks of a few channels and random weights."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

UNET = {
    "sample_size": 16,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 48,
    "attention_head_dim": 4,
}
UNET_XL = UNET | {
    "cross_attention_dim": 56,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 20,
}
AUTOENCODER = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (16, 32),
    "norm_num_groups": 8,
    "sample_size": 32,
}
SHIFTED = AUTOENCODER | {"shift_factor": 0.1, "scaling_factor": 1.5}
DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "sample_size": 16,
}
SD3 = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 12,
    "pos_embed_max_size": 16,
}
FLUX = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 12,
    "axes_dims_rope": (4, 6, 6),
    "guidance_embeds": True,
}
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def clip_tokenizer() -> Any:
    """Letters, and "cat" as one token."""
    pieces = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS), "ca", "cat</w>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = {piece: number for number, piece in enumerate(pieces)}
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
        return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def clip(channels: int, projection: int | None = None) -> Any:
    """A text encoder, with a projection if it has channels."""
    torch.manual_seed(3)
    config = transformers.CLIPTextConfig(
        vocab_size=60,
        hidden_size=channels,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=projection or 16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    kind = transformers.CLIPTextModel if projection is None else transformers.CLIPTextModelWithProjection
    return kind(config).eval()


def t5_tokenizer() -> Any:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0)


def t5(channels: int) -> Any:
    torch.manual_seed(4)
    config = transformers.T5Config(vocab_size=40, d_model=channels, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return transformers.T5EncoderModel(config).eval()


def network(name: str, config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return getattr(diffusers, name)(**config).eval()


def stable_diffusion(scheduler: Any = None) -> diffusers.StableDiffusionPipeline:
    return diffusers.StableDiffusionPipeline(
        vae=network("AutoencoderKL", AUTOENCODER),
        text_encoder=clip(48),
        tokenizer=clip_tokenizer(),
        unet=network("UNet2DConditionModel", UNET),
        scheduler=scheduler or diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl(scheduler: Any = None, **settings: Any) -> diffusers.StableDiffusionXLPipeline:
    return diffusers.StableDiffusionXLPipeline(
        vae=network("AutoencoderKL", AUTOENCODER),
        text_encoder=clip(32),
        text_encoder_2=clip(24, projection=20),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=network("UNet2DConditionModel", UNET_XL),
        scheduler=scheduler or diffusers.EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
        **settings,
    )


def dit(scheduler: Any = None) -> diffusers.DiTPipeline:
    return diffusers.DiTPipeline(
        network("DiTTransformer2DModel", DIT),
        network("AutoencoderKL", AUTOENCODER),
        scheduler or diffusers.DDIMScheduler(clip_sample=False),
    )


def stable_diffusion_3(scheduler: Any = None, with_t5: bool = True) -> diffusers.StableDiffusion3Pipeline:
    return diffusers.StableDiffusion3Pipeline(
        transformer=network("SD3Transformer2DModel", SD3),
        scheduler=scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=network("AutoencoderKL", SHIFTED),
        text_encoder=clip(8, projection=8),
        text_encoder_2=clip(12, projection=4),
        text_encoder_3=t5(24) if with_t5 else None,
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=t5_tokenizer() if with_t5 else None,
    )


def flux(scheduler: Any = None, guidance_embeds: bool = True) -> diffusers.FluxPipeline:
    return diffusers.FluxPipeline(
        scheduler=scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=network("AutoencoderKL", SHIFTED),
        text_encoder=clip(12),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(24),
        tokenizer_2=t5_tokenizer(),
        transformer=network("FluxTransformer2DModel", FLUX | {"guidance_embeds": guidance_embeds}),
    )
