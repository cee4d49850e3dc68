"""The pipelines of diffusers that are understood, in what they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastdiff.models import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from fastdiff.models.pretrained import PretrainedModel
from fastdiff.pipelines import text_encoding
from fastdiff.pipelines.backbones import SD3, Backbone, DiT, Flux, UNet
from fastdiff.pipelines.text_encoding import Encode

AUTOENCODERS: dict[str, type[AutoencoderKL | AutoencoderTiny]] = {
    "AutoencoderKL": AutoencoderKL,
    "AutoencoderTiny": AutoencoderTiny,
}
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast")


@dataclass(frozen=True)
class Family:
    """A pipeline class of diffusers."""

    name: str
    backbone: type[Backbone]
    steps: int
    guidance_scale: float
    text_encoders: Mapping[str, str] = field(default_factory=dict)
    """The class in transformers of each, by its name in the folder; tokenizers have names to match."""
    encode: Encode | None = None
    """None: the network is told a class."""
    pooled: bool = False
    """Whether the network is told a pooled text, too."""
    distilled: bool = False
    """Whether guidance_scale is for the network to know, and classifier-free guidance has true_cfg_scale."""
    image_parts: tuple[str, ...] = ()
    """What diffusers wants to see in the index, and what is left out here."""
    scheduler_overrides: Mapping[str, Any] = field(default_factory=dict)
    """What diffusers' pipeline sets in its scheduler's configuration, whatever that says."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Other entries of the index, and what diffusers takes where they are missing."""

    @property
    def text_parts(self) -> dict[str, tuple[str, ...]]:
        """Names of text encoders and tokenizers, and what classes of transformers each may be."""
        encoders = {name: (wanted,) for name, wanted in self.text_encoders.items()}
        return encoders | {name.replace("text_encoder", "tokenizer"): TOKENIZERS for name in encoders}


_CLIP, _PROJECTED, _T5 = "CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "StableDiffusionPipeline",
            UNet,
            steps=50,
            guidance_scale=7.5,
            text_encoders={"text_encoder": _CLIP},
            encode=text_encoding.stable_diffusion,
            image_parts=("safety_checker", "feature_extractor", "image_encoder"),
            scheduler_overrides={"steps_offset": 1, "clip_sample": False},
            settings={"requires_safety_checker": False},
        ),
        Family(
            "StableDiffusionXLPipeline",
            UNet,
            steps=50,
            guidance_scale=5.0,
            text_encoders={"text_encoder": _CLIP, "text_encoder_2": _PROJECTED},
            encode=text_encoding.stable_diffusion_xl,
            pooled=True,
            image_parts=("image_encoder", "feature_extractor"),
            settings={"force_zeros_for_empty_prompt": True},
        ),
        Family("DiTPipeline", DiT, steps=50, guidance_scale=4.0),
        Family(
            "StableDiffusion3Pipeline",
            SD3,
            steps=28,
            guidance_scale=7.0,
            text_encoders={"text_encoder": _PROJECTED, "text_encoder_2": _PROJECTED, "text_encoder_3": _T5},
            encode=text_encoding.stable_diffusion_3,
            pooled=True,
            image_parts=("image_encoder", "feature_extractor"),
        ),
        Family(
            "FluxPipeline",
            Flux,
            steps=28,
            guidance_scale=3.5,
            text_encoders={"text_encoder": _CLIP, "text_encoder_2": _T5},
            encode=text_encoding.flux,
            pooled=True,
            distilled=True,
            image_parts=("image_encoder", "feature_extractor"),
        ),
    )
}


def get_family(name: Any) -> Family:
    """The entry of :data:`FAMILIES`; ValueError with the known names if there is none."""
    if name not in list(FAMILIES):  # a list, as a name from a file may be what no dict takes
        raise ValueError(f"the pipeline's class must be one of {list(FAMILIES)}, got {name!r}")
    return FAMILIES[name]


def family_of(network: PretrainedModel) -> Family:
    """The family that a network belongs to. ValueError for a network of none."""
    found = [family for family in FAMILIES.values() if type(network) is family.backbone.network_class]
    if not found:
        allowed = sorted({family.backbone.network_class.__name__ for family in FAMILIES.values()})
        raise ValueError(f"backbone must be one of {allowed} of fastdiff.models, got {full_name(network)}")
    if isinstance(network, UNet2DConditionModel):
        return found[network.config.addition_embed_type == "text_time"]
    return found[0]


def require_autoencoder(vae: Any) -> None:
    """ValueError for anything but one of :data:`AUTOENCODERS`."""
    if type(vae) not in AUTOENCODERS.values():
        raise ValueError(f"vae must be one of {list(AUTOENCODERS)} of fastdiff.models, got {full_name(vae)}")


def class_of_part(family: Family, name: str, part: Any) -> str:
    """The supported class of transformers that a text encoder or tokenizer is, or is derived from.

    Raises:
        ValueError: it is none.
    """
    allowed = family.text_parts[name]
    for base in type(part).__mro__:
        if base.__name__ in allowed and base.__module__.startswith("transformers."):
            return base.__name__
    raise ValueError(f"{name} must be one of {list(allowed)} of transformers, got {full_name(part)}")


def full_name(part: Any) -> str:
    """Of an object's class, with its module: many are called the same in several libraries."""
    return f"{type(part).__module__}.{type(part).__qualname__}"
