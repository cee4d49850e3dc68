"""How each network of latent diffusion is called: one small adapter for each, so that the pipeline need not know."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.models import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from fastdiff.models.pretrained import PretrainedModel
from fastdiff.pipelines.scheduler_config import ImageTokens
from fastdiff.sampling.denoiser import Denoiser


@dataclass(frozen=True)
class Condition:
    """What a network is told of N samples beside their states and the timestep."""

    text: Tensor | None = None
    """(N, L, C)"""
    pooled: Tensor | None = None
    """(N, P)"""
    time_ids: Tensor | None = None
    """(N, 6): original size, crop and target size of SDXL."""
    class_labels: Tensor | None = None
    """(N,) int64"""
    guidance_scale: float | None = None
    """For networks that are told it."""

    def followed_by(self, other: Condition) -> Condition:
        """The conditions of both batches as those of one."""
        return self._each(lambda name, tensor: torch.cat((tensor, getattr(other, name))))

    def repeated(self, times: int) -> Condition:
        """Each sample's condition `times` times in a row."""
        return self._each(lambda name, tensor: tensor.repeat_interleave(times, dim=0))

    def _each(self, change: Callable[[str, Tensor], Tensor]) -> Condition:
        changed: dict[str, Any] = {
            name: change(name, value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return dataclasses.replace(self, **changed)


class Backbone(ABC):
    """A network with the latents that it works on, as states of the sampling loop.

    The states of most are the latents themselves, (N, latent_channels, height, width).
    """

    network_class: ClassVar[type[PretrainedModel]]
    part = "transformer"
    """Its subfolder in diffusers' folder."""
    embeds_guidance = False
    """Whether the network is told the guidance scale, instead of being called without its condition, too."""
    network: PretrainedModel

    def __init__(self, network: PretrainedModel) -> None:
        self.network = network

    @property
    def latent_channels(self) -> int:
        return self.network.config.in_channels

    @property
    def patch(self) -> int:
        """Height and width of the latents are multiples of this."""
        return self.network.config.patch_size

    @property
    def default_size(self) -> tuple[int, int] | None:
        """Height and width of the latents that the network was trained on, if it says so."""
        size = self.network.config.sample_size
        return (size, size) if isinstance(size, int) else size

    def tokens(self, size: tuple[int, int]) -> ImageTokens:
        return ImageTokens(size[0] // self.patch * (size[1] // self.patch))

    def pack(self, latents: Tensor) -> Tensor:
        """(N, latent_channels, height, width) -> states"""
        return latents

    def unpack(self, states: Tensor, size: tuple[int, int]) -> Tensor:
        """The inverse of :meth:`pack`, for latents of (height, width)."""
        return states

    @abstractmethod
    def denoiser(self, condition: Condition, size: tuple[int, int]) -> Denoiser:
        """(states (N, ...), timestep (N,) float32) -> predictions, like the states"""


class UNet(Backbone):
    network_class = UNet2DConditionModel
    part = "unet"
    patch = 1
    network: UNet2DConditionModel

    @property
    def embeds_guidance(self) -> bool:  # type: ignore[override]
        return self.network.config.time_cond_proj_dim is not None

    def pack(self, latents: Tensor) -> Tensor:
        return latents.contiguous(memory_format=torch.channels_last)

    def denoiser(self, condition: Condition, size: tuple[int, int]) -> Denoiser:
        unet, told = self.network, self._guidance_embedding(condition)
        added: dict[str, Any] = {"text_embeds": condition.pooled, "time_ids": condition.time_ids}

        def denoise(x: Tensor, timestep: Tensor) -> Tensor:
            return unet(
                x.to(unet.dtype),
                timestep,
                condition.text,
                timestep_cond=None if told is None else told.expand(len(x), -1),
                added_cond_kwargs=None if condition.time_ids is None else added,
            ).sample

        return denoise

    def _guidance_embedding(self, condition: Condition) -> Tensor | None:
        """(1, time_cond_proj_dim) of a latent consistency model (arXiv:2310.04378, section 4.2)."""
        if not self.embeds_guidance or condition.guidance_scale is None:
            return None
        channels, unet = self.network.config.time_cond_proj_dim, self.network
        scale = torch.tensor([condition.guidance_scale - 1], device=unet.device)
        assert channels is not None
        return ops.timestep_embedding(scale, channels, scale=1000.0, dtype=unet.dtype)


class DiT(Backbone):
    network_class = DiTTransformer2DModel
    network: DiTTransformer2DModel

    def denoiser(self, condition: Condition, size: tuple[int, int]) -> Denoiser:
        dit, labels = self.network, condition.class_labels
        assert labels is not None

        def denoise(x: Tensor, timestep: Tensor) -> Tensor:
            # The channels after the latents' are the variance that some were trained to say.
            return dit(x.to(dit.dtype), timestep, labels).sample[:, : x.shape[1]]

        return denoise


class SD3(Backbone):
    network_class = SD3Transformer2DModel
    network: SD3Transformer2DModel

    def denoiser(self, condition: Condition, size: tuple[int, int]) -> Denoiser:
        mmdit, text, pooled = self.network, condition.text, condition.pooled
        assert text is not None and pooled is not None

        def denoise(x: Tensor, timestep: Tensor) -> Tensor:
            return mmdit(x.to(mmdit.dtype), text, pooled, timestep).sample

        return denoise


class Flux(Backbone):
    """Its states are tokens, (N, height / 2 * width / 2, 4 * latent_channels), of two latents by two each."""

    network_class = FluxTransformer2DModel
    patch = 2
    network: FluxTransformer2DModel

    @property
    def embeds_guidance(self) -> bool:  # type: ignore[override]
        return self.network.config.guidance_embeds

    @property
    def latent_channels(self) -> int:
        return self.network.config.in_channels // 4

    @property
    def default_size(self) -> tuple[int, int]:
        return 128, 128

    def tokens(self, size: tuple[int, int]) -> ImageTokens:
        return dataclasses.replace(super().tokens(size), spacing="trailing")

    def pack(self, latents: Tensor) -> Tensor:
        return latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def unpack(self, states: Tensor, size: tuple[int, int]) -> Tensor:
        grid = states.unflatten(1, (size[0] // 2, size[1] // 2)).unflatten(3, (-1, 2, 2))
        return grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    def denoiser(self, condition: Condition, size: tuple[int, int]) -> Denoiser:
        flux, text, pooled = self.network, condition.text, condition.pooled
        assert text is not None and pooled is not None
        # The axes of a place are: unused, row, column. All text is at 0.
        axes = (torch.zeros(1), torch.arange(size[0] // 2), torch.arange(size[1] // 2))
        image_ids = torch.cartesian_prod(*(axis.float() for axis in axes)).to(flux.device)
        text_ids = torch.zeros(text.shape[1], 3, device=flux.device)
        scale = None
        if self.embeds_guidance and condition.guidance_scale is not None:
            scale = torch.tensor([condition.guidance_scale], device=flux.device)

        def denoise(x: Tensor, timestep: Tensor) -> Tensor:
            return flux(x.to(flux.dtype), text, pooled, timestep / 1000, image_ids, text_ids, guidance=scale).sample

        return denoise
