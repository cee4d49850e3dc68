"""The pipelines that `bench/run.py pipeline` measures: networks of bench.models, put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

AUTOENCODER = "sd_vae_decode"  # of all of them, in bench.models.MODELS


@dataclass(frozen=True)
class BenchPipeline:
    """Latent diffusion from a condition to an image, with classifier-free guidance, at the size people run."""

    class_name: str
    """In diffusers."""
    network: str
    """In bench.models.MODELS."""
    guidance_scale: float
    condition: Callable[[torch.device, torch.dtype], dict[str, Any]]
    """Arguments of both sides' calls: the encoded text, since text encoders are the same code on both, or a class."""
    absent: Mapping[str, Any] = field(default_factory=dict)
    """Parts of diffusers' pipeline that are left out."""


def _text(device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    embeds = [torch.randn(1, 77, 768, generator=generator).to(device, dtype) for _ in range(2)]
    return {"prompt_embeds": embeds[0], "negative_prompt_embeds": embeds[1]}


PIPELINES = {
    "sd15": BenchPipeline(
        "StableDiffusionPipeline",
        network="sd15_unet",
        guidance_scale=7.5,
        condition=_text,
        absent={
            **dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor")),
            "requires_safety_checker": False,
        },
    ),
    "dit_xl_2": BenchPipeline(
        "DiTPipeline",
        network="dit_xl_2",
        guidance_scale=4.0,
        condition=lambda device, dtype: {"class_labels": [207]},
    ),
}
