from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastdiff.models import config_checks
from fastdiff.models.autoencoder import Autoencoder, DecoderOutput
from fastdiff.models.diagonal_gaussian import DiagonalGaussianDistribution
from fastdiff.models.unet_blocks import (
    Attention,
    BlockSettings,
    Downsample2D,
    UNetMidBlock2D,
    UNetStage,
    Upsample2D,
)
from fastdiff.nn import Conv2d, GroupNormSiLU

_EPS = 1e-6


@dataclass(frozen=True)
class AutoencoderKLConfig:
    """The configuration of :class:`AutoencoderKL`: diffusers' keys, defaults and meanings.

    Of no effect here: sample_size but for the size of tiles, and force_upcast, which tells a pipeline that the network
    needs float32 or bfloat16, since its activations leave the range of float16.

    Raises:
        ValueError: a value that is not supported or does not fit the others, with its key and what is allowed.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, int] = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        config_checks.freeze(
            self,
            "down_block_types",
            "up_block_types",
            "block_out_channels",
            "sample_size",
            "latents_mean",
            "latents_std",
        )
        config_checks.require_tuple(self, "block_out_channels")
        config_checks.require_choice(self, act_fn=("silu", "swish"))
        config_checks.require_entries(
            self,
            down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
        )
        config_checks.require_groups(self)
        if not self.scaling_factor:
            raise ValueError(f"scaling_factor must not be 0, got {self.scaling_factor}")
        for key in ("latents_mean", "latents_std"):
            values = getattr(self, key)
            if values is not None and len(values) != self.latent_channels:
                raise ValueError(f"{key} must have one entry for each of {self.latent_channels} channels, got {values}")
        if self.latents_mean is not None and self.shift_factor is not None:
            raise ValueError(
                f"latents_mean takes the place of shift_factor, which must be None, got {self.shift_factor}"
            )
        if (self.latents_mean is None) != (self.latents_std is None):
            raise ValueError(
                f"latents_mean and latents_std must be given together, got {self.latents_mean} and {self.latents_std}"
            )


class AutoencoderKLOutput(NamedTuple):
    latent_dist: DiagonalGaussianDistribution
    """of latents (N, latent_channels, H / spatial_scale_factor, W / spatial_scale_factor)"""


class AutoencoderKL(Autoencoder):
    """The variational autoencoder of latent diffusion (arXiv:2112.10752), Stable Diffusion, SDXL, SD3 and FLUX.

    Configuration and ``state_dict`` keys are those of diffusers' ``AutoencoderKL``, so its checkpoints load. Every norm
    and its activation is one call of :func:`fastdiff.ops.group_norm_silu`. Channels-last input is worked on as such.

    >>> vae = AutoencoderKL(block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2,
    ...                     up_block_types=("UpDecoderBlock2D",) * 2)
    >>> latents = vae.normalize_latents(vae.encode(torch.randn(2, 3, 32, 32)).latent_dist.sample(seeds=[0, 1]))
    >>> vae.decode(vae.denormalize_latents(latents)).sample.shape
    torch.Size([2, 3, 32, 32])

    Args:
        **values: the fields of :class:`AutoencoderKLConfig`.
    """

    config_class = AutoencoderKLConfig
    config: AutoencoderKLConfig
    tile_overlap_factor = 0.25

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self.config = config = self.parse_config(values)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        latent = config.latent_channels
        self.quant_conv = Conv2d(2 * latent, 2 * latent, 1) if config.use_quant_conv else None
        self.post_quant_conv = Conv2d(latent, latent, 1) if config.use_post_quant_conv else None
        self.spatial_scale_factor = 2 ** (len(config.block_out_channels) - 1)
        sizes = config.sample_size if isinstance(config.sample_size, tuple) else (config.sample_size,)
        self.tile_sample_min_size = max(*sizes, self.spatial_scale_factor)

    def encode(self, sample: Tensor, return_dict: bool = True) -> AutoencoderKLOutput:
        """The distribution of the latents of images.

        Args:
            sample: (N, in_channels, H, W) from -1 to 1. Contiguous or channels-last. Height and width are rounded down
                to multiples of ``spatial_scale_factor``.
            return_dict: accepted for diffusers' sake; the result is a named tuple either way.

        Returns:
            ``.latent_dist`` or ``[0]``, not yet normalised: see :meth:`normalize_latents`.

        Raises:
            ValueError: a shape that does not fit.
        """
        return AutoencoderKLOutput(DiagonalGaussianDistribution(self._encode(self._encode_tile, sample)))

    def decode(self, latents: Tensor, return_dict: bool = True, generator: Any = None) -> DecoderOutput:
        """The images of latents.

        Args:
            latents: (N, latent_channels, h, w), not normalised: see :meth:`denormalize_latents`.
            return_dict, generator: accepted for diffusers' sake; the result is a named tuple either way.

        Returns:
            ``.sample`` or ``[0]``, (N, out_channels, h * spatial_scale_factor, w * spatial_scale_factor), in the
            layout of `latents`.

        Raises:
            ValueError: a shape that does not fit.
        """
        return DecoderOutput(self._decode(self._decode_tile, latents))

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        seeds: Tensor | Sequence[int] | None = None,
    ) -> DecoderOutput:
        """Encode and decode: through the mode, or a draw from the distribution with ``sample_posterior``."""
        posterior = self.encode(sample).latent_dist
        return self.decode(posterior.sample(generator, seeds=seeds) if sample_posterior else posterior.mode())

    def _encode_tile(self, x: Tensor) -> Tensor:
        x = self.encoder(x, self.run_block)
        return x if self.quant_conv is None else self.quant_conv(x)

    def _decode_tile(self, x: Tensor) -> Tensor:
        x = x if self.post_quant_conv is None else self.post_quant_conv(x)
        return self.decoder(x, self.run_block)

    def _latent_statistics(self, latents: Tensor) -> tuple[Tensor | float, Tensor | float]:
        mean, std = super()._latent_statistics(latents)
        if self.config.latents_mean is None:
            return mean, std
        mean, channel_std = (
            torch.tensor(values, dtype=latents.dtype, device=latents.device)[:, None, None]
            for values in (self.config.latents_mean, self.config.latents_std)
        )
        return mean, channel_std * std


RunBlock = Callable[..., Tensor]  # PretrainedModel.run_block


class Encoder(nn.Module):
    """(N, in_channels, H, W) -> means and log variances, (N, 2 * latent_channels, h, w)."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        channels = config.block_out_channels
        settings = BlockSettings(time_channels=None, groups=config.norm_num_groups, eps=_EPS)
        self.conv_in = Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        in_channels = channels[0]
        for index, (block_type, out_channels) in enumerate(zip(config.down_block_types, channels, strict=True)):
            block = DownEncoderBlock2D(
                in_channels,
                out_channels,
                config.layers_per_block,
                settings,
                attention=block_type == "AttnDownEncoderBlock2D",
                downsample=index < len(channels) - 1,
            )
            self.down_blocks.append(block)
            in_channels = out_channels
        self.mid_block = _mid_block(channels[-1], settings, config.mid_block_add_attention)
        self.conv_norm_out = GroupNormSiLU(config.norm_num_groups, channels[-1], _EPS)
        self.conv_out = Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor, run_block: RunBlock) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = run_block(block, x)
        x = run_block(self.mid_block, x, None)
        return self.conv_out(self.conv_norm_out(x))


class Decoder(nn.Module):
    """(N, latent_channels, h, w) -> (N, out_channels, H, W)."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        channels = config.block_out_channels[::-1]
        settings = BlockSettings(time_channels=None, groups=config.norm_num_groups, eps=_EPS)
        self.conv_in = Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid_block = _mid_block(channels[0], settings, config.mid_block_add_attention)
        self.up_blocks = nn.ModuleList()
        in_channels = channels[0]
        for index, (block_type, out_channels) in enumerate(zip(config.up_block_types, channels, strict=True)):
            block = UpDecoderBlock2D(
                in_channels,
                out_channels,
                config.layers_per_block + 1,
                settings,
                attention=block_type == "AttnUpDecoderBlock2D",
                upsample=index < len(channels) - 1,
            )
            self.up_blocks.append(block)
            in_channels = out_channels
        self.conv_norm_out = GroupNormSiLU(config.norm_num_groups, channels[-1], _EPS)
        self.conv_out = Conv2d(channels[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, run_block: RunBlock) -> Tensor:
        x = run_block(self.mid_block, self.conv_in(x), None)
        for block in self.up_blocks:
            x = run_block(block, x)
        return self.conv_out(self.conv_norm_out(x))


class CodingStage(UNetStage):
    """Residual blocks of one resolution, without a time embedding, each followed by attention where it is set."""

    def __init__(
        self, in_channels: int, out_channels: int, layers: int, settings: BlockSettings, attention: bool
    ) -> None:
        make_attention = partial(_attention, out_channels, settings) if attention else None
        super().__init__([in_channels] + [out_channels] * (layers - 1), out_channels, settings, make_attention)

    def forward(self, x: Tensor) -> Tensor:
        for index in range(len(self.resnets)):
            x = self.layer(index, x, None)
        return x


class DownEncoderBlock2D(CodingStage):
    """One resolution of the encoder: DownEncoderBlock2D or, with `attention`, AttnDownEncoderBlock2D."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layers: int,
        settings: BlockSettings,
        *,
        attention: bool,
        downsample: bool,
    ) -> None:
        super().__init__(in_channels, out_channels, layers, settings, attention)
        self.downsamplers = nn.ModuleList([Downsample2D(out_channels, padding=0)]) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if self.downsamplers is None else self.downsamplers[0](x)


class UpDecoderBlock2D(CodingStage):
    """One resolution of the decoder: UpDecoderBlock2D or, with `attention`, AttnUpDecoderBlock2D."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layers: int,
        settings: BlockSettings,
        *,
        attention: bool,
        upsample: bool,
    ) -> None:
        super().__init__(in_channels, out_channels, layers, settings, attention)
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels)]) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if self.upsamplers is None else self.upsamplers[0](x)


def _mid_block(channels: int, settings: BlockSettings, attention: bool) -> UNetMidBlock2D:
    return UNetMidBlock2D(channels, settings, attention=partial(_attention, channels, settings) if attention else None)


def _attention(channels: int, settings: BlockSettings, layer: int = 0) -> Attention:
    return Attention(channels, settings, groups=settings.groups)
