"""The building blocks of the 2-D U-Nets. Attribute names are diffusers' state_dict keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import add
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff import ops
from fastdiff.models.resampling import double, halve
from fastdiff.nn import Conv2d, GroupNormSiLU, Linear


@dataclass(frozen=True)
class BlockSettings:
    """What every residual and attention block of one U-Net shares."""

    time_channels: int | None
    """Width of the time embedding; None is a network without one."""
    groups: int | None
    """Of every group norm; None is a quarter of the channels, at most 32, as in NCSN++."""
    eps: float
    dropout: float = 0.0
    scale_shift: bool = False
    """Adaptive group norm (arXiv:2105.05233, section 3) in place of the additive time embedding of DDPM."""
    head_dim: int | None = None
    """Channels of one attention head; None is a single head."""
    output_scale_factor: float = 1.0
    """What the sum of a block and its residual is divided by."""

    def norm_groups(self, channels: int, own: int | None = None) -> int:
        """Of a norm over so many channels, which may have groups of its `own`."""
        groups = own or (min(channels // 4, 32) if self.groups is None else self.groups)
        if groups == 0 or channels % groups:
            raise ValueError(
                "block_out_channels must give every norm four channels at least, and a multiple of its groups, "
                f"got {channels} channels for {groups} groups"
            )
        return groups


class Text(NamedTuple):
    """What cross-attention attends to."""

    hidden_states: Tensor
    """(N, L, cross_attention_dim)"""
    lengths: Tensor | None
    """(N,) how many of the first tokens count; None is all."""


Resample = Callable[[Tensor], Tensor]
"""Doubles or halves the height and width of a feature map (N, C, H, W)."""

MakeAttention = Callable[[int], nn.Module]
"""Makes the attention behind layer i: a module that takes the feature map and, in a model with text, the text."""


class ResnetBlock2D(nn.Module):
    """norm, SiLU, conv, norm with the time embedding, SiLU, conv, plus the shortcut.

    Args:
        resample: what both branches go through after the first norm (BigGAN's resampling block, arXiv:2011.13456).
        groups: of the first norm, where that is not what `settings` say.
        conv_shortcut: a convolution in the shortcut even where input and output have the same channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        settings: BlockSettings,
        *,
        resample: Resample | None = None,
        groups: int | None = None,
        conv_shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.scale_shift = settings.scale_shift
        self.output_scale_factor = settings.output_scale_factor
        self.resample = resample
        self.norm1 = GroupNormSiLU(settings.norm_groups(in_channels, groups), in_channels, settings.eps)
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = None
        if settings.time_channels is not None:
            self.time_emb_proj = Linear(settings.time_channels, (1 + settings.scale_shift) * out_channels)
        self.norm2 = GroupNormSiLU(settings.norm_groups(out_channels), out_channels, settings.eps)
        self.dropout = nn.Dropout(settings.dropout)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        conv_shortcut |= in_channels != out_channels
        self.conv_shortcut = Conv2d(in_channels, out_channels, 1) if conv_shortcut else None

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        """x (N, in_channels, H, W), time (N, time_channels), already through its SiLU."""
        h = self.norm1(x)
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.conv1(h)
        time = None if self.time_emb_proj is None else self.time_emb_proj(time)
        if self.scale_shift and time is not None:
            scale, shift = time.chunk(2, dim=1)
            h = self.norm2(h, scale=scale, shift=shift)
        else:
            h = self.norm2(h, time_bias=time)
        h = self.conv2(self.dropout(h))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        h = x + h
        return h if self.output_scale_factor == 1.0 else h / self.output_scale_factor


class Attention(nn.Module):
    """Self-attention over the pixels of a feature map, with its residual."""

    LEGACY_KEYS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

    def __init__(self, channels: int, settings: BlockSettings, *, groups: int | None) -> None:
        super().__init__()
        head_dim = settings.head_dim or channels
        if channels % head_dim:
            raise ValueError(f"attention_head_dim must divide the {channels} channels of the block, got {head_dim}")
        self.heads = channels // head_dim
        self.output_scale_factor = settings.output_scale_factor
        self.group_norm = (
            None if groups is None else GroupNormSiLU(groups, channels, settings.eps, activation="identity")
        )
        self.to_q = Linear(channels, channels)
        self.to_k = Linear(channels, channels)
        self.to_v = Linear(channels, channels)
        self.to_out = nn.ModuleList([Linear(channels, channels)])  # a list because diffusers' key is to_out.0

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.group_norm is None else self.group_norm(x)
        h = h.flatten(2).transpose(1, 2)  # (N, H*W, C)
        query, key, value = (
            projection(h).unflatten(-1, (self.heads, -1)) for projection in (self.to_q, self.to_k, self.to_v)
        )
        h = self.to_out[0](ops.attention(query, key, value).flatten(2))  # (N, H*W, C)
        h = x + h.transpose(1, 2).unflatten(-1, x.shape[2:])
        return h if self.output_scale_factor == 1.0 else h / self.output_scale_factor

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # Checkpoints from before diffusers 0.17 name the projections otherwise.
        for old, new in self.LEGACY_KEYS.items():
            for parameter in ("weight", "bias"):
                if f"{prefix}{old}.{parameter}" in state_dict:
                    state_dict[f"{prefix}{new}.{parameter}"] = state_dict.pop(f"{prefix}{old}.{parameter}")
        super()._load_from_state_dict(state_dict, prefix, *args)


class Downsample2D(nn.Module):
    """A strided convolution that halves the resolution."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        # Without padding of its own the convolution needs one more row and column, at the end.
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.padding == 0 else x)


class Upsample2D(nn.Module):
    """Nearest-neighbour doubling of the resolution and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """To `size`, where that is not quite the double: an odd size on the way down was rounded up."""
        x = F.interpolate(x, scale_factor=None if size else 2.0, size=size, mode="nearest")
        return self.conv(x)


class UNetStage(nn.Module):
    """Residual blocks, each followed by attention where `attention` is given: what down and up stages share.

    Args:
        in_channels: input channels of each residual block.
    """

    def __init__(
        self, in_channels: list[int], out_channels: int, settings: BlockSettings, attention: MakeAttention | None
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock2D(channels, out_channels, settings) for channels in in_channels)
        self.attentions = None if attention is None else nn.ModuleList(map(attention, range(len(in_channels))))

    def layer(self, index: int, x: Tensor, time: Tensor | None, text: Text | None = None) -> Tensor:
        x = self.resnets[index](x, time)
        return x if self.attentions is None else attend(self.attentions[index], x, text)

    def layers(self, x: Tensor, time: Tensor, text: Text | None = None) -> list[Tensor]:
        """What each layer gives, in order."""
        results = []
        for index in range(len(self.resnets)):
            x = self.layer(index, x, time, text)
            results.append(x)
        return results


class DownBlock2D(UNetStage):
    """One resolution on the way down: what diffusers calls DownBlock2D, with attention AttnDownBlock2D or
    CrossAttnDownBlock2D, and ResnetDownsampleBlock2D where it halves by a residual block.

    Args:
        downsample: "conv", "resnet", or None in the last stage.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layers: int,
        settings: BlockSettings,
        *,
        attention: MakeAttention | None,
        downsample: str | None,
        downsample_padding: int,
    ) -> None:
        super().__init__([in_channels] + [out_channels] * (layers - 1), out_channels, settings, attention)
        self.downsamplers: nn.ModuleList | None = None
        if downsample == "conv":
            self.downsamplers = nn.ModuleList([Downsample2D(out_channels, downsample_padding)])
        elif downsample == "resnet":
            self.downsamplers = nn.ModuleList([ResnetBlock2D(out_channels, out_channels, settings, resample=halve)])

    def forward(self, x: Tensor, time: Tensor, text: Text | None = None) -> tuple[Tensor, list[Tensor]]:
        """Returns the result and what the way up gets to see, in order of creation."""
        skips = self.layers(x, time, text)
        if self.downsamplers is not None:
            downsampler, x = self.downsamplers[0], skips[-1]
            skips.append(downsampler(x) if isinstance(downsampler, Downsample2D) else downsampler(x, time))
        return skips[-1], skips


class UpBlock2D(UNetStage):
    """One resolution on the way up: what diffusers calls UpBlock2D, with attention AttnUpBlock2D or
    CrossAttnUpBlock2D, and ResnetUpsampleBlock2D where it doubles by a residual block.

    Args:
        in_channels: channels of what comes from below.
        skip_channels: channels of the stored activation that each layer takes, in order of use.
        upsample: "conv", "resnet", or None in the last stage.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: list[int],
        out_channels: int,
        settings: BlockSettings,
        *,
        attention: MakeAttention | None,
        upsample: str | None,
    ) -> None:
        from_below = [in_channels] + [out_channels] * (len(skip_channels) - 1)
        super().__init__(list(map(add, from_below, skip_channels)), out_channels, settings, attention)
        self.upsamplers: nn.ModuleList | None = None
        if upsample == "conv":
            self.upsamplers = nn.ModuleList([Upsample2D(out_channels)])
        elif upsample == "resnet":
            self.upsamplers = nn.ModuleList([ResnetBlock2D(out_channels, out_channels, settings, resample=double)])

    def forward(
        self,
        x: Tensor,
        skips: list[Tensor],
        time: Tensor,
        text: Text | None = None,
        size: torch.Size | None = None,
    ) -> Tensor:
        """Takes one entry of `skips` for each layer, from its end, and grows to `size`, that of the next stage."""
        for index, skip in enumerate(reversed(skips)):
            x = self.layer(index, torch.cat((x, skip), dim=1), time, text)
        if self.upsamplers is None:
            return x
        upsampler = self.upsamplers[0]
        return upsampler(x, size) if isinstance(upsampler, Upsample2D) else upsampler(x, time)


class UNetMidBlock2D(nn.Module):
    """The lowest resolution: residual blocks, and attention behind the first where `attention` is given."""

    def __init__(
        self,
        channels: int,
        settings: BlockSettings,
        *,
        layers: int = 2,
        attention: Callable[[], nn.Module] | None,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock2D(channels, channels, settings) for _ in range(layers))
        self.attentions = nn.ModuleList([] if attention is None else [attention()])

    def forward(self, x: Tensor, time: Tensor | None, text: Text | None = None) -> Tensor:
        x = self.resnets[0](x, time)
        for attention in self.attentions:
            x = attend(attention, x, text)
        for resnet in self.resnets[1:]:
            x = resnet(x, time)
        return x


def attend(attention: nn.Module, x: Tensor, text: Text | None) -> Tensor:
    """Attention among pixels takes no text."""
    return attention(x) if text is None else attention(x, text)
