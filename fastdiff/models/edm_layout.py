"""What the U-Nets of EDM and EDM2 share: where their blocks stand, and the checks of configuration and inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.models import config_checks
from fastdiff.models.embeddings import of_each_sample
from fastdiff.models.input_checks import require_feature_map, require_multiples


class Place(NamedTuple):
    """Where a block stands in a U-Net."""

    name: str
    """Its key, such as 32x32_block0."""
    kind: str
    """"conv" (the first layer), "down", "up", "in" (at the bottom) or "block"."""
    in_channels: int
    out_channels: int
    attention: bool = False

    @property
    def resample(self) -> str | None:
        return self.kind if self.kind in ("down", "up") else None


class Level(NamedTuple):
    """The blocks that work at one resolution, on the way down or up."""

    name: str
    """With which their keys begin, such as 32x32."""
    places: list[Place]


def encoder_levels(config: Any, in_channels: int, stem_channels: int) -> list[Level]:
    """The blocks of the way down, from the highest level on; the first is the convolution to `stem_channels`.

    `config` has img_resolution, model_channels, channel_mult, num_blocks and attn_resolutions.
    """
    levels = []
    current = in_channels
    for depth, mult in enumerate(config.channel_mult):
        resolution = config.img_resolution >> depth
        name, attends = f"{resolution}x{resolution}", resolution in config.attn_resolutions
        kind, width = ("conv", stem_channels) if depth == 0 else ("down", current)
        places = [Place(f"{name}_{kind}", kind, current, width)]
        current = width
        for index in range(config.num_blocks):
            places.append(Place(f"{name}_block{index}", "block", current, config.model_channels * mult, attends))
            current = config.model_channels * mult
        levels.append(Level(name, places))
    return levels


def decoder_levels(config: Any, encoder: list[Level], *, attend_last: bool = False) -> list[Level]:
    """The blocks of the way up, from the lowest level on. Each "block" takes a skip, the latest first.

    `attend_last`: of a level with self-attention, the last block alone has it.
    """
    skips = [place.out_channels for level in encoder for place in level.places]
    levels = []
    current = skips[-1]
    for depth, mult in reversed(list(enumerate(config.channel_mult))):
        resolution = config.img_resolution >> depth
        name, attends = f"{resolution}x{resolution}", resolution in config.attn_resolutions
        if depth == len(config.channel_mult) - 1:
            places = [Place(f"{name}_in{i}", "in", current, current, attention=i == 0) for i in range(2)]
        else:
            places = [Place(f"{name}_up", "up", current, current)]
        for index in range(config.num_blocks + 1):
            has_attention = attends and not (attend_last and index < config.num_blocks)
            width = config.model_channels * mult
            places.append(Place(f"{name}_block{index}", "block", current + skips.pop(), width, has_attention))
            current = width
        levels.append(Level(name, places))
    return levels


def check_u_net(config: Any) -> None:
    """Make the lists of a configuration tuples, and check what all of these networks have."""
    config_checks.freeze(config, "channel_mult", "attn_resolutions")
    config_checks.require_positive(config, "img_resolution", "model_channels", "num_blocks")
    config_checks.require_at_least(0, config, "label_dim")
    config_checks.require_tuple(config, "channel_mult")
    config_checks.require_tuple(config, "attn_resolutions", least=0)
    config_checks.require_between(0, 1, config, "dropout")
    least = 2 ** (len(config.channel_mult) - 1)
    if config.img_resolution < least:
        raise ValueError(
            f"img_resolution must be at least {least} for the {len(config.channel_mult)} entries of channel_mult, "
            f"got {config.img_resolution}"
        )


def check_filter(config: Any) -> None:
    config_checks.freeze(config, "resample_filter")
    taps = config.resample_filter
    is_filter = isinstance(taps, tuple) and all(map(config_checks.is_number, taps))
    if not is_filter or not taps or len(taps) % 2 or sum(taps) == 0:
        raise ValueError(f"resample_filter must hold an even number of taps whose sum is not 0, got {taps}")


def check_heads(channels: int, channels_per_head: int) -> int:
    """How many heads of at least `channels_per_head` make up the channels; ValueError if none do."""
    heads = channels // channels_per_head
    if heads == 0 or channels % heads:
        raise ValueError(f"attention on {channels} channels cannot have heads of {channels_per_head}")
    return heads


def check_sample(x: Tensor, channels: int, levels: Sequence[Any]) -> None:
    require_feature_map("x", x, channels)
    require_multiples("x", x, 2 ** (len(levels) - 1))


def noise_of_each_sample(name: str, noise: Tensor | float, x: Tensor) -> Tensor:
    """(N,) float32, or float64 where it is given so: never the dtype of a model, which would round it."""
    noise = of_each_sample(name, noise, x)
    return noise.to(torch.promote_types(noise.dtype, torch.float32))


def labels_of_each_sample(name: str, labels: Tensor | None, width: int, x: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Labels (N, width) in `dtype`, zeros (no class) where there are none; None of a model whose `width` is 0."""
    if width == 0:
        if labels is not None:
            raise ValueError(f"{name} must not be given to a model without them")
        return None
    if labels is None:
        return torch.zeros(x.shape[0], width, dtype=dtype, device=x.device)
    if labels.dim() != 2 or labels.shape[1] != width or labels.shape[0] not in (1, x.shape[0]):
        raise ValueError(
            f"{name} must be ({x.shape[0]}, {width}), one-hot where they are classes, got shape {tuple(labels.shape)}"
        )
    return labels.to(dtype).expand(x.shape[0], -1)


def dropped(labels: Tensor, probability: float) -> Tensor:
    """Labels that are zeros for a random part of the samples (arXiv:2207.12598, algorithm 1)."""
    return labels * (torch.rand(labels.shape[0], 1, device=labels.device) >= probability).to(labels.dtype)
