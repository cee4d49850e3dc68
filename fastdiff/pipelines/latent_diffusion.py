"""Latent diffusion from prompt, or class, to image."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from fastdiff.models import AutoencoderKL, AutoencoderTiny
from fastdiff.models.pretrained import PretrainedModel
from fastdiff.pipelines import folder as pipeline_folder
from fastdiff.pipelines.backbones import Condition
from fastdiff.pipelines.conditioning import Request, conditions, require_integer
from fastdiff.pipelines.families import class_of_part, family_of, require_autoencoder
from fastdiff.pipelines.scheduler_config import ImageTokens, Plan, SchedulerConfig
from fastdiff.sampling import Guidance, PairedDenoiser, run_table, solver_table
from fastdiff.sampling.denoiser import Denoiser, predicted, starting_noise
from fastdiff.sampling.loop import AnyGuidance, Callback
from fastdiff.sampling.schedule import Level

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

OUTPUTS = ("pil", "tensor", "latent")
MakeGuidance = Callable[[Denoiser], AnyGuidance]
_GUIDANCES = "Guidance, ProjectedGuidance or ClassifierGuidance"
Scale = float | Callable[[Level], float]


class PipelineOutput(NamedTuple):
    images: list[Image.Image] | Tensor
    """N images; or (N, 3, height, width) float32 from 0 to 1; or the latents (N, C, h, w) of the network's scale."""
    seeds: tuple[int, ...]
    """Of each image."""


class LatentDiffusionPipeline:
    """Latent diffusion (arXiv:2112.10752) from text or class to image: autoencoder, network, text encoders, sampler.

    Opens the folders of diffusers' StableDiffusionPipeline, StableDiffusionXLPipeline, DiTPipeline,
    StableDiffusion3Pipeline and FluxPipeline without diffusers, and draws what that draws from the same latents. Text
    encoders and tokenizers are those of transformers (``pip install 'fastdiff[pipelines]'``), and are not needed where
    there is a class, or embeddings are given. Safety checkers, and all else that looks at images, are left out.
    All models are put in evaluation mode.

    Args:
        vae: an :class:`fastdiff.models.AutoencoderKL` or :class:`fastdiff.models.AutoencoderTiny`.
        backbone: a U-Net of Stable Diffusion, or the transformer of DiT, SD3 or FLUX; says which pipeline it is. Like
            `vae`, it is put in channels-last format if it is a U-Net.
        text_encoders, tokenizers: in the order of diffusers' names (text_encoder, text_encoder_2, ...), None for one
            that is absent; none at all is all absent.
        scheduler_config: as in diffusers' scheduler_config.json, with ``_class_name``: what the network was trained on,
            and the sampler that is taken unless a call names another.
        settings: other entries of diffusers' model_index.json, such as ``force_zeros_for_empty_prompt`` of SDXL.

    Raises:
        ValueError: a part that is not supported, or parts that do not fit each other.
    """

    def __init__(
        self,
        *,
        vae: AutoencoderKL | AutoencoderTiny,
        backbone: PretrainedModel,
        text_encoders: Sequence[Any] = (),
        tokenizers: Sequence[Any] = (),
        scheduler_config: Mapping[str, Any],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.family = family = family_of(backbone)
        require_autoencoder(vae)
        self.vae, self.backbone = vae, family.backbone(backbone)
        for network in (vae, backbone) if family.backbone.part == "unet" else (vae,):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.scheduler = SchedulerConfig(scheduler_config, family.scheduler_overrides)
        self.settings = {**family.settings, **(settings or {})}
        self.text_parts: dict[str, Any] = {}
        for argument, prefix, parts in (
            ("text_encoders", "text_encoder", text_encoders),
            ("tokenizers", "tokenizer", tokenizers),
        ):
            names = [name.replace("text_encoder", prefix) for name in family.text_encoders]
            if len(parts) not in (0, len(names)):
                raise ValueError(f"{argument} must have one entry for each of {names}, or none, got {len(parts)}")
            present = zip(names, parts, strict=False)
            self.text_parts |= {name: part for name, part in present if part is not None}
        for name, part in self.text_parts.items():
            class_of_part(family, name, part)
        for model in self._models:
            model.eval()  # in training mode labels and activations are dropped at random
        if self.backbone.latent_channels != vae.config.latent_channels:
            raise ValueError(
                f"backbone must work on the {vae.config.latent_channels} latent channels of the vae, got a network "
                f"for {self.backbone.latent_channels}"
            )

    @classmethod
    def from_pretrained(
        cls,
        folder_or_id: str | os.PathLike[str],
        *,
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """The pipeline in a folder of diffusers, or on the Hugging Face hub.

        Args:
            folder_or_id: a folder, or the name of a model on the hub ("organisation/name"), of which the parts that
                are needed are fetched once.
            revision: branch, tag or commit, of a model on the hub.
            dtype: of the floating-point weights; None is as stored. An autoencoder that says ``force_upcast`` stays in
                float32 beside a network in float16.
            device: where the parts go; None is the CPU.

        Raises:
            FileNotFoundError: there is no such pipeline, or one of its files is missing.
            ImportError: it has text encoders, and transformers is not installed.
            ValueError: a pipeline, part or scheduler that is not understood, or a file that is damaged.
        """
        stored = pipeline_folder.read(folder_or_id, revision, dtype, device)
        encoders = list(stored.family.text_encoders)
        return cls(
            vae=stored.vae,
            backbone=stored.network,
            text_encoders=[stored.text_parts.get(name) for name in encoders],
            tokenizers=[stored.text_parts.get(name.replace("text_encoder", "tokenizer")) for name in encoders],
            scheduler_config=stored.scheduler,
            settings=stored.settings,
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder that diffusers opens as the pipeline that it was, and :meth:`from_pretrained` opens again.

        The scheduler's configuration is written as it was read. The index comes last: a folder whose writing was cut
        short has none, and does not open.
        """
        stored = pipeline_folder.Stored(
            self.family, self.vae, self.backbone.network, self.text_parts, self.scheduler.values, self.settings
        )
        pipeline_folder.write(Path(folder), stored)

    @property
    def device(self) -> torch.device:
        """That of the network's weights."""
        return self.backbone.network.device

    def to(self, device: torch.device | str) -> Self:
        """Move all parts to a device."""
        for model in self._models:
            model.to(device)
        return self

    @property
    def _models(self) -> list[torch.nn.Module]:
        encoders = [part for part in self.text_parts.values() if isinstance(part, torch.nn.Module)]
        return [self.vae, self.backbone.network, *encoders]

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        class_labels: int | Sequence[int] | Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        max_sequence_length: int | None = None,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] | None = None,
        target_size: tuple[int, int] | None = None,
        height: int | None = None,
        width: int | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        schedule: str | None = None,
        sampler_options: Mapping[str, Any] | None = None,
        guidance_scale: Scale | None = None,
        guidance_rescale: float = 0.0,
        true_cfg_scale: Scale = 1.0,
        guidance: AnyGuidance | MakeGuidance | None = None,
        seeds: Sequence[int] | None = None,
        latents: Tensor | None = None,
        output: str = "pil",
        callback: Callback | None = None,
        progress: bool = True,
    ) -> PipelineOutput:
        """Draw images.

        Args:
            prompt: one text, or one for each image; or in its place
            class_labels: for DiT, one number or several; or
            prompt_embeds: (P, L, C), the texts as the network sees them, with
            pooled_prompt_embeds: (P, C') but for Stable Diffusion 1 and 2.
            negative_prompt, negative_prompt_embeds, negative_pooled_prompt_embeds: what guidance leads away from: one
                text for all, or one for each; default the empty text, and for SDXL, zeros.
            max_sequence_length: tokens of T5's texts; default diffusers' (SD3 256, FLUX 512).
            original_size, crops_coords_top_left, target_size: what SDXL is told: (height, width), (top, left) and
                (height, width); default the image's size, uncropped.
            height, width: in pixels; default those that the network was trained on.
            steps: number of steps; default diffusers' (50; SD3 and FLUX 28).
            sampler: a name in :data:`fastdiff.sampling.SAMPLERS`; default that of the scheduler's configuration.
            schedule: with `sampler`, where the steps lie, a name in :data:`fastdiff.sampling.SCHEDULES`; default that
                of the sampler's authors, and for flows with the shift of the scheduler's configuration.
            sampler_options: options of the solver, and with `sampler` also of the schedule.
            guidance_scale: of classifier-free guidance (arXiv:2207.12598), up to 1 is none; default diffusers'. Or a
                function of the :class:`fastdiff.sampling.schedule.Level` that returns it. A network that is told it
                (FLUX, latent consistency models) is told it.
            guidance_rescale: phi of arXiv:2305.08891, section 3.4.
            true_cfg_scale: the scale of classifier-free guidance for a network that is told a guidance scale, or FLUX.
            guidance: in place of `guidance_scale`: an object such as :class:`fastdiff.sampling.Guidance`, or a function
                that makes one of the denoiser of the negative prompt, which is evaluated in one batch with the other:
                ``lambda negative: ProjectedGuidance(negative, scale=8.0)``. Denoisers see the states of the loop: for
                FLUX (N, tokens, channels).
            seeds: one for each image: as many as there are prompts, or a multiple, the images of the first prompt
                first. Default 0, 1, ... An image depends on its own seed alone: not on the batch, and on the device by
                rounding only.
            latents: (N, C, h, w) standard normal noise to start from, in place of the seeds' own. Not packed for FLUX.
            output: "pil", "tensor" (float32 from 0 to 1), or "latent".
            callback: called after each step, as :func:`fastdiff.sampling.sample` calls it.
            progress: show a progress bar.

        Raises:
            ValueError: an argument that is missing, does not fit, or has no use in this pipeline.
        """
        if output not in OUTPUTS:
            raise ValueError(f"output must be one of {list(OUTPUTS)}, got {output!r}")
        if guidance is not None and not (isinstance(guidance, AnyGuidance) or callable(guidance)):
            raise ValueError(
                f"guidance must be an object of {_GUIDANCES}, or a function that makes one, got {guidance!r}"
            )
        size = self._latent_size(height, width)
        factor = self.vae.spatial_scale_factor
        told, cfg_scale = self._scales(guidance_scale, true_cfg_scale, guidance_rescale, guidance)
        request = Request(
            prompt=prompt,
            negative_prompt=negative_prompt,
            class_labels=class_labels,
            prompt_embeds=prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
            max_sequence_length=max_sequence_length,
            original_size=original_size,
            crops_coords_top_left=crops_coords_top_left,
            target_size=target_size,
            image_size=(size[0] * factor, size[1] * factor),
            guidance_scale=told,
        )
        guide, make = (guidance, None) if isinstance(guidance, AnyGuidance) else (None, guidance)
        # A scale below 1 is none in diffusers, too: 0 is what the models of one step are published with.
        guided = callable(cfg_scale) or cfg_scale > 1 if guidance is None else make is not None
        # What is cheap to find wrong comes before the text encoders.
        request.check(self.family, guided)
        noise, seed_tensor, repeats = self._noise(request.count(self.family), size, seeds, latents)
        plan = self._plan(self.backbone.tokens(size), steps, sampler, schedule, sampler_options)
        condition, negative = conditions(self, request, guided)
        condition = condition.repeated(repeats)
        denoiser = self.backbone.denoiser(condition, size)
        if negative is not None:
            weaker = self._weaker(condition, negative.repeated(repeats), size)
            guide = Guidance(weaker, cfg_scale, guidance_rescale) if make is None else make(weaker)
            if not isinstance(guide, AnyGuidance):
                raise ValueError(f"guidance must return an object of {_GUIDANCES}, got {guide!r}")
        states = run_table(
            plan.table,
            denoiser,
            self.backbone.pack(noise) * plan.start_scale,
            prediction=plan.prediction,
            guidance=guide,
            seeds=seed_tensor,
            callback=callback,
            progress=progress,
        )
        drawn = self.backbone.unpack(states, size)
        return PipelineOutput(self._images(drawn, output), tuple(seed_tensor.tolist()))

    def _scales(
        self, guidance_scale: Scale | None, true_cfg_scale: Scale, rescale: float, guidance: Any
    ) -> tuple[float | None, Scale]:
        """(what the network is told, the scale of classifier-free guidance)"""
        default, is_told = self.family.guidance_scale, self.family.distilled or self.backbone.embeds_guidance
        if guidance is not None and (rescale or true_cfg_scale != 1 or not (is_told or guidance_scale is None)):
            raise ValueError(
                "guidance_rescale and a scale of classifier-free guidance must not be given beside guidance, got "
                f"{rescale} and {true_cfg_scale if is_told else guidance_scale}"
            )
        if is_told:
            if guidance_scale is not None and not self.backbone.embeds_guidance:
                raise ValueError(
                    "guidance_scale must be None for a network that is told none (true_cfg_scale is that of "
                    f"classifier-free guidance), got {guidance_scale}"
                )
            if callable(guidance_scale):
                raise ValueError(f"guidance_scale must be a number for a network that is told it, got {guidance_scale}")
            return default if guidance_scale is None else guidance_scale, true_cfg_scale
        if true_cfg_scale != 1:
            raise ValueError(
                f"true_cfg_scale must be 1 for a {self.family.name}, whose guidance_scale it is, got {true_cfg_scale}"
            )
        return None, default if guidance_scale is None else guidance_scale

    def _latent_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width in latents."""
        factor, multiple = self.vae.spatial_scale_factor, self.vae.spatial_scale_factor * self.backbone.patch
        default = self.backbone.default_size or (None, None)
        sizes = []
        for name, pixels, trained in (("height", height, default[0]), ("width", width, default[1])):
            if pixels is None:
                if trained is None:
                    raise ValueError(f"{name} must be given, since the network does not say its sample_size")
                pixels = trained * factor
            if require_integer(name, pixels) < multiple or pixels % multiple:
                raise ValueError(f"{name} must be a positive multiple of {multiple}, got {pixels}")
            sizes.append(pixels // factor)
        return sizes[0], sizes[1]

    def _noise(
        self, count: int, size: tuple[int, int], seeds: Sequence[int] | None, latents: Tensor | None
    ) -> tuple[Tensor, Tensor, int]:
        """Noise (N, C, h, w) in float32, seeds (N,), and how many images there are of each prompt."""
        shape = self.backbone.latent_channels, *size
        if seeds is not None:
            if not isinstance(seeds, Iterable):
                raise ValueError(f"seeds must be a sequence of integers, one for each image, got {seeds!r}")
            seeds = [require_integer("seeds", seed) for seed in seeds]
        images = len(latents) if latents is not None else len(seeds) if seeds is not None else count
        argument = "latents" if latents is not None else "seeds"
        if images % count or not images:
            raise ValueError(
                f"{argument} must be as many as the {count} prompts or classes, or a multiple, got {images}"
            )
        if latents is not None:
            if latents.shape[1:] != shape:
                raise ValueError(f"latents must be (N, {', '.join(map(str, shape))}), got {tuple(latents.shape)}")
            latents = latents.to(self.device, torch.float32)
        noise, seed_tensor = starting_noise((images, *shape) if latents is None else latents, seeds, self.device)
        return noise, seed_tensor, images // count

    def _plan(
        self,
        tokens: ImageTokens,
        steps: int | None,
        sampler: str | None,
        schedule: str | None,
        options: Mapping[str, Any] | None,
    ) -> Plan:
        steps = self.family.steps if steps is None else require_integer("steps", steps)
        try:
            return self._plan_for(tokens, steps, sampler, schedule, options)
        except TypeError as error:
            if not options:
                raise
            raise ValueError(f"sampler_options must fit the sampler, got {options!r}: {error}") from error

    def _plan_for(
        self,
        tokens: ImageTokens,
        steps: int,
        sampler: str | None,
        schedule: str | None,
        options: Mapping[str, Any] | None,
    ) -> Plan:
        if sampler is None:
            if schedule is not None:
                raise ValueError(f"schedule must be None without a sampler, got {schedule!r}")
            return self.scheduler.plan(steps, tokens, options)
        process, prediction, given = self.scheduler.process, self.scheduler.prediction, dict(options or {})
        if prediction == "flow" and schedule in (None, "flow"):
            given = {"shift": self.scheduler.shift(tokens), **given}
        table = solver_table(sampler, process, prediction, steps, schedule=schedule, **given)
        return Plan(table, prediction, table.start_scale)

    def _weaker(self, condition: Condition, negative: Condition, size: tuple[int, int]) -> PairedDenoiser:
        """The denoiser of the negative condition, evaluated in one batch with the other."""
        paired = self.backbone.denoiser(condition.followed_by(negative), size)

        def both(x: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
            first, second = predicted(paired, torch.cat((x, x)), torch.cat((timestep, timestep))).chunk(2)
            return first, second

        return PairedDenoiser(self.backbone.denoiser(negative, size), both)

    def _images(self, latents: Tensor, output: str) -> list[Image.Image] | Tensor:
        if output == "latent":
            return latents
        latents = self.vae.denormalize_latents(latents).to(self.vae.device, self.vae.dtype)
        decoded = self.vae.decode(latents.contiguous(memory_format=torch.channels_last)).sample
        images = (decoded.float() / 2 + 0.5).clamp(0, 1)
        if output == "tensor":
            return images
        pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(image) for image in pixels]
