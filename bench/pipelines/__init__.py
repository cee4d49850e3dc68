"""The pipelines that `bench/run.py pipeline` measures: networks of bench.models, put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class BenchPipeline:
    """Latent diffusion from a condition to an image, with classifier-free guidance, at the size people run."""

    class_name: str
    """In diffusers."""
    network: str
    """In bench.models.MODELS, as `autoencoder`."""
    network_part: str
    """The argument of diffusers' pipeline that it is."""
    latent: tuple[int, ...]
    guidance_scale: float
    condition: Callable[[torch.device, torch.dtype], dict[str, Any]]
    """Arguments of both sides' calls: the encoded text, since text encoders are the same code on both, or a class."""
    absent: Mapping[str, Any] = field(default_factory=dict)
    """Parts of diffusers' pipeline that are left out."""
    autoencoder: str = "sd_vae_decode"


def _text(device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    embeds = [torch.randn(1, 77, 768, generator=generator).to(device, dtype) for _ in range(2)]
    return {"prompt_embeds": embeds[0], "negative_prompt_embeds": embeds[1]}


PIPELINES = {
    "sd15": BenchPipeline(
        "StableDiffusionPipeline",
        network="sd15_unet",
        network_part="unet",
        latent=(1, 4, 64, 64),
        guidance_scale=7.5,
        condition=_text,
        absent={"text_encoder": None, "tokenizer": None, "safety_checker": None, "feature_extractor": None}
        | {"requires_safety_checker": False},
    ),
    "dit_xl_2": BenchPipeline(
        "DiTPipeline",
        network="dit_xl_2",
        network_part="transformer",
        latent=(1, 4, 32, 32),
        guidance_scale=4.0,
        condition=lambda device, dtype: {"class_labels": [207]},
    ),
}
