from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastdiff.models import config_checks
from fastdiff.models.autoencoder import Autoencoder, DecoderOutput
from fastdiff.nn import Conv2d

_ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "swish": nn.SiLU, "gelu": nn.GELU, "mish": nn.Mish}


@dataclass(frozen=True)
class AutoencoderTinyConfig:
    """The configuration of :class:`AutoencoderTiny`: diffusers' keys, defaults and meanings.

    ``block_out_channels`` is what diffusers notes beside ``decoder_block_out_channels``, and has no other value;
    ``force_upcast`` has no effect.

    Raises:
        ValueError: a value that is not supported or does not fit the others, with its key and what is allowed.
    """

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    act_fn: str = "relu"
    upsample_fn: str = "nearest"
    latent_channels: int = 4
    upsampling_scaling_factor: int = 2
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_magnitude: float = 3
    latent_shift: float = 0.5
    force_upcast: bool = False
    scaling_factor: float = 1.0
    shift_factor: float | None = 0.0
    block_out_channels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        config_checks.freeze(
            self,
            "encoder_block_out_channels",
            "decoder_block_out_channels",
            "num_encoder_blocks",
            "num_decoder_blocks",
            "block_out_channels",
        )
        config_checks.require_choice(
            self,
            act_fn=tuple(_ACTIVATIONS),
            upsample_fn=("nearest", "bilinear", "bicubic"),
            # With another factor the decoder would not undo the encoder's halving.
            upsampling_scaling_factor=(2,),
            block_out_channels=(None, self.decoder_block_out_channels),
        )
        object.__setattr__(self, "block_out_channels", self.decoder_block_out_channels)
        for part in ("encoder", "decoder"):
            channels, blocks = getattr(self, f"{part}_block_out_channels"), getattr(self, f"num_{part}_blocks")
            if len(set(channels)) != 1:
                raise ValueError(f"{part}_block_out_channels must hold one number, repeated, got {channels}")
            if len(blocks) != len(channels):
                raise ValueError(
                    f"num_{part}_blocks must have one entry for each of {part}_block_out_channels {channels}, "
                    f"got {blocks}"
                )
        if len(self.num_encoder_blocks) != len(self.num_decoder_blocks):
            raise ValueError(
                f"num_decoder_blocks must have as many entries as num_encoder_blocks {self.num_encoder_blocks}, "
                f"got {self.num_decoder_blocks}"
            )
        if not self.scaling_factor:
            raise ValueError(f"scaling_factor must not be 0, got {self.scaling_factor}")


class AutoencoderTinyOutput(NamedTuple):
    latents: Tensor
    """(N, latent_channels, H / spatial_scale_factor, W / spatial_scale_factor)"""


class AutoencoderTiny(Autoencoder):
    """The small convolutional stand-in for :class:`AutoencoderKL`, TAESD (https://github.com/madebyollin/taesd).

    Configuration and ``state_dict`` keys are those of diffusers' ``AutoencoderTiny``, so its checkpoints load. It has
    no distribution: :meth:`encode` gives the latents themselves, and no norms, so tiles see what the whole would.

    >>> vae = AutoencoderTiny()
    >>> vae.decode(vae.encode(torch.randn(1, 3, 32, 48)).latents).sample.shape
    torch.Size([1, 3, 32, 48])

    Args:
        **values: the fields of :class:`AutoencoderTinyConfig`.
    """

    config_class = AutoencoderTinyConfig
    config: AutoencoderTinyConfig
    tile_sample_min_size = 512
    tile_overlap_factor = 0.125

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self.config = config = self.parse_config(values)
        self.encoder = EncoderTiny(config)
        self.decoder = DecoderTiny(config)
        self.spatial_scale_factor = 2 ** (len(config.num_encoder_blocks) - 1)

    def encode(self, sample: Tensor, return_dict: bool = True) -> AutoencoderTinyOutput:
        """The latents of images.

        Args:
            sample: (N, in_channels, H, W) from -1 to 1. Contiguous or channels-last. Height and width are rounded up to
                multiples of ``spatial_scale_factor``.
            return_dict: accepted for diffusers' sake; the result is a named tuple either way.

        Raises:
            ValueError: a shape that does not fit.
        """
        return AutoencoderTinyOutput(self._encode(partial(self.run_block, self.encoder), sample))

    def decode(self, latents: Tensor, generator: Any = None, return_dict: bool = True) -> DecoderOutput:
        """The images of latents.

        Args:
            latents: (N, latent_channels, h, w).
            generator, return_dict: accepted for diffusers' sake; the result is a named tuple either way.

        Returns:
            ``.sample`` or ``[0]``, (N, out_channels, h * spatial_scale_factor, w * spatial_scale_factor), in the
            layout of `latents`.

        Raises:
            ValueError: a shape that does not fit.
        """
        return DecoderOutput(self._decode(partial(self.run_block, self.decoder), latents))

    def forward(self, sample: Tensor, return_dict: bool = True) -> DecoderOutput:
        """Encode and decode, with the latents rounded to bytes between, as in an image: no gradient gets past."""
        stored = self.scale_latents(self.encode(sample).latents).mul(255).round()
        return self.decode(self.unscale_latents(stored / 255))

    def scale_latents(self, latents: Tensor) -> Tensor:
        """Latents as numbers from 0 to 1, to be stored as an image."""
        return latents.div(2 * self.config.latent_magnitude).add(self.config.latent_shift).clamp(0, 1)

    def unscale_latents(self, stored: Tensor) -> Tensor:
        """What :meth:`scale_latents` was given, if it lay between -latent_magnitude and latent_magnitude."""
        return stored.sub(self.config.latent_shift).mul(2 * self.config.latent_magnitude)

    def _latent_size(self, pixels: int) -> int:
        return -(-pixels // self.spatial_scale_factor)


class EncoderTiny(nn.Module):
    """(N, in_channels, H, W) from -1 to 1 -> latents."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_encoder_layers(config))  # in a row because diffusers' keys count through

    def forward(self, x: Tensor) -> Tensor:
        return self.layers((x + 1) / 2)  # the network knows images from 0 to 1


class DecoderTiny(nn.Module):
    """Latents -> (N, out_channels, H, W) from -1 to 1."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_decoder_layers(config))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x / 3) * 3  # a soft clamp
        return self.layers(x) * 2 - 1


class AutoencoderTinyBlock(nn.Module):
    """Three convolutions, plus the input, and a ReLU."""

    def __init__(self, channels: int, act_fn: str) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            Conv2d(channels, channels, 3, padding=1),
            _activation(act_fn),
            Conv2d(channels, channels, 3, padding=1),
            _activation(act_fn),
            Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        # In place: a convolution needs its output for no gradient.
        return self.conv(x).add_(x).relu_()


def _encoder_layers(config: AutoencoderTinyConfig) -> Iterator[nn.Module]:
    channels = config.encoder_block_out_channels[0]
    for index, blocks in enumerate(config.num_encoder_blocks):
        if index == 0:
            yield Conv2d(config.in_channels, channels, 3, padding=1)
        else:
            yield Conv2d(channels, channels, 3, padding=1, stride=2, bias=False)
        for _ in range(blocks):
            yield AutoencoderTinyBlock(channels, config.act_fn)
    yield Conv2d(channels, config.latent_channels, 3, padding=1)


def _decoder_layers(config: AutoencoderTinyConfig) -> Iterator[nn.Module]:
    channels = config.decoder_block_out_channels[0]
    yield Conv2d(config.latent_channels, channels, 3, padding=1)
    yield _activation(config.act_fn)
    last = len(config.num_decoder_blocks) - 1
    for index, blocks in enumerate(config.num_decoder_blocks):
        for _ in range(blocks):
            yield AutoencoderTinyBlock(channels, config.act_fn)
        if index < last:
            yield nn.Upsample(scale_factor=2, mode=config.upsample_fn)
            yield Conv2d(channels, channels, 3, padding=1, bias=False)
        else:
            yield Conv2d(channels, config.out_channels, 3, padding=1)


def _activation(act_fn: str) -> nn.Module:
    if act_fn == "relu":
        return nn.ReLU(inplace=True)  # its gradient needs the output only
    return _ACTIVATIONS[act_fn]()
