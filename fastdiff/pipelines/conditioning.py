"""What a call says of its images, as the conditions that the network is told."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastdiff.pipelines.backbones import Condition
from fastdiff.pipelines.families import Family
from fastdiff.pipelines.text_encoding import TextEncoding

if TYPE_CHECKING:
    from fastdiff.pipelines.latent_diffusion import LatentDiffusionPipeline


@dataclass(frozen=True)
class Request:
    """The arguments of a call that describe its images, as :class:`LatentDiffusionPipeline` takes them."""

    prompt: str | Sequence[str] | None
    negative_prompt: str | Sequence[str] | None
    class_labels: int | Sequence[int] | Tensor | None
    prompt_embeds: Tensor | None
    pooled_prompt_embeds: Tensor | None
    negative_prompt_embeds: Tensor | None
    negative_pooled_prompt_embeds: Tensor | None
    max_sequence_length: int | None
    original_size: tuple[int, int] | None
    crops_coords_top_left: tuple[int, int] | None
    target_size: tuple[int, int] | None
    image_size: tuple[int, int]
    """Height and width in pixels."""
    guidance_scale: float | None
    """For the network to know."""

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt or ())

    @property
    def labels(self) -> list[int]:
        return [] if self.class_labels is None else torch.as_tensor(self.class_labels).flatten().tolist()

    def count(self, family: Family) -> int:
        """Number of prompts or classes."""
        if family.encode is None:
            return len(self.labels)
        return len(self.prompts) if self.prompt_embeds is None else len(self.prompt_embeds)

    def check(self, family: Family, guided: bool) -> None:
        """ValueError for what this family has no use for, or needs, and for a negative without guidance."""
        pooled = ["pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
        texts = ["prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds"]
        unused = texts if family.encode is None else ["class_labels"]
        if not family.pooled:
            unused += pooled
        if family.name != "StableDiffusionXLPipeline":
            unused += ["original_size", "crops_coords_top_left", "target_size"]
        if "T5EncoderModel" not in family.text_encoders.values():
            unused += ["max_sequence_length"]
        for name in unused:
            if getattr(self, name) is not None:
                raise ValueError(f"{name} must not be given to a {family.name}, got {_shown(getattr(self, name))}")
        self._check_values(guided)
        if family.encode is None:
            if self.class_labels is None:
                raise ValueError(f"class_labels must be given to a {family.name}, got None")
        elif (self.prompt is None) == (self.prompt_embeds is None):
            given = "neither" if self.prompt is None else "both"
            raise ValueError(f"either prompt or prompt_embeds must be given to a {family.name}, got {given}")
        if not self.count(family):
            raise ValueError(f"at least one prompt or class must be given to a {family.name}, got none")
        if family.encode is not None:
            self._check_embeds(family, "")
            self._check_embeds(family, "negative_")

    def _check_values(self, guided: bool) -> None:
        for name in ("prompt", "negative_prompt"):
            texts = getattr(self, name)
            is_texts = isinstance(texts, Sequence) and all(isinstance(text, str) for text in texts)
            if texts is not None and not is_texts:
                raise ValueError(f"{name} must be a text or a sequence of texts, got {texts!r}")
        for name in ("negative_prompt", "negative_prompt_embeds"):
            if not guided and getattr(self, name) is not None:
                raise ValueError(f"{name} must not be given without guidance, got {_shown(getattr(self, name))}")
        length = self.max_sequence_length
        if length is not None and require_integer("max_sequence_length", length) < 1:
            raise ValueError(f"max_sequence_length must be at least 1, got {length}")

    def _check_embeds(self, family: Family, which: str) -> None:
        """That texts come as a prompt, or as embeddings with all that belongs to them."""
        prompt, embeds, pooled = f"{which}prompt", f"{which}prompt_embeds", f"{which}pooled_prompt_embeds"
        given = getattr(self, embeds)
        if getattr(self, prompt) is not None and given is not None:
            raise ValueError(f"{prompt} and {embeds} must not both be given")
        if family.pooled and (given is None) != (getattr(self, pooled) is None):
            raise ValueError(f"{embeds} and {pooled} must be given together to a {family.name}")
        if given is not None and (given.dim() != 3 or len(given) != self.count(family)):
            raise ValueError(f"{embeds} must be ({self.count(family)}, L, C), got shape {tuple(given.shape)}")


def conditions(pipeline: LatentDiffusionPipeline, request: Request, guided: bool) -> tuple[Condition, Condition | None]:
    """The condition of each prompt or class and, for guidance, that of its negative. The request has been checked.

    Raises:
        ValueError: what does not fit the pipeline.
    """
    if pipeline.family.encode is None:
        return _classes(pipeline, request, guided)
    encoding = _encoding(pipeline, request, "", request.prompts)
    positive = _text_condition(pipeline, request, encoding)
    if not guided:
        return positive, None
    negative = _text_condition(pipeline, request, _negative(pipeline, request, encoding))
    for name in ("text", "pooled"):
        ours, theirs = getattr(positive, name), getattr(negative, name)
        if ours is not None and ours.shape != theirs.shape:
            raise ValueError(
                f"negative_prompt_embeds must make the same shape as the prompt's {name} {tuple(ours.shape)}, "
                f"got {tuple(theirs.shape)}"
            )
    return positive, negative


def _classes(pipeline: LatentDiffusionPipeline, request: Request, guided: bool) -> tuple[Condition, Condition | None]:
    labels, classes = request.labels, pipeline.backbone.network.config.num_embeds_ada_norm
    for label in labels:
        if not isinstance(label, int) or not 0 <= label < classes:
            raise ValueError(f"class_labels must be integers from 0 to {classes - 1}, got {label}")
    labelled = Condition(class_labels=torch.tensor(labels, device=pipeline.device))
    unlabelled = Condition(class_labels=torch.full((len(labels),), classes, device=pipeline.device))
    return labelled, unlabelled if guided else None


def _encoding(pipeline: LatentDiffusionPipeline, request: Request, which: str, prompts: list[str]) -> TextEncoding:
    """The texts of the prompts, or the embeddings that were given in their place."""
    embeds, pooled = (getattr(request, f"{which}{name}") for name in ("prompt_embeds", "pooled_prompt_embeds"))
    if embeds is not None:
        return TextEncoding(embeds, pooled)
    assert pipeline.family.encode is not None
    channels = getattr(pipeline.backbone.network.config, "joint_attention_dim", 0)
    distinct = list(dict.fromkeys(prompts))
    encoded = pipeline.family.encode(pipeline.text_parts, distinct, request.max_sequence_length, channels)
    rows = [distinct.index(prompt) for prompt in prompts]
    return TextEncoding(encoded.text[rows], None if encoded.pooled is None else encoded.pooled[rows])


def _negative(pipeline: LatentDiffusionPipeline, request: Request, encoding: TextEncoding) -> TextEncoding:
    count, given = request.count(pipeline.family), request.negative_prompt
    if given is None and request.negative_prompt_embeds is None and _zeros_for_none(pipeline):
        assert encoding.pooled is not None
        return TextEncoding(torch.zeros_like(encoding.text), torch.zeros_like(encoding.pooled))
    prompts = [given or ""] * count if given is None or isinstance(given, str) else list(given)
    if len(prompts) != count:
        raise ValueError(f"negative_prompt must be one text, or one for each of {count} prompts, got {len(prompts)}")
    return _encoding(pipeline, request, "negative_", prompts)


def _zeros_for_none(pipeline: LatentDiffusionPipeline) -> bool:
    return bool(pipeline.settings.get("force_zeros_for_empty_prompt", False))


def _text_condition(pipeline: LatentDiffusionPipeline, request: Request, encoding: TextEncoding) -> Condition:
    network = pipeline.backbone.network
    text = encoding.text.to(network.device, network.dtype)
    pooled = None if encoding.pooled is None else encoding.pooled.to(network.device, network.dtype)
    time_ids = None
    if pipeline.family.name == "StableDiffusionXLPipeline":
        size = request.image_size
        told = (request.original_size or size, request.crops_coords_top_left or (0, 0), request.target_size or size)
        numbers = [float(number) for pair in told for number in pair]
        time_ids = torch.tensor(numbers, device=network.device).expand(len(text), -1)
    return Condition(text, pooled, time_ids, guidance_scale=request.guidance_scale)


def require_integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r}") from None


def _shown(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
