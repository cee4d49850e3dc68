"""The building blocks of EDM's networks. Attribute names are the state_dict keys of NVlabs/edm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastdiff import ops
from fastdiff.models.edm_layout import Place, check_heads
from fastdiff.models.exact_buffers import ExactBuffers
from fastdiff.models.resampling import filter_kernel, resample
from fastdiff.nn import Conv2d, GroupNormSiLU, Linear


def group_norm(channels: int, eps: float, activation: str = "silu") -> GroupNormSiLU:
    """With 32 groups, or fewer so that each has four channels."""
    groups = min(32, channels // 4)
    if channels % groups:
        raise ValueError(
            f"model_channels and channel_mult must give every norm a multiple of its {groups} groups, got {channels} "
            "channels"
        )
    return GroupNormSiLU(groups, channels, eps, activation=activation)


class FourierEmbedding(ExactBuffers):
    """Sines and cosines of a noise level at fixed random frequencies (arXiv:2011.13456, appendix C)."""

    freqs: Tensor

    def __init__(self, channels: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, noise: Tensor) -> Tensor:
        """(N,) -> (N, channels) float64: of an angle of hundreds, float32 has few digits behind the point."""
        angle = noise.double()[:, None] * (2 * math.pi * self.freqs.double())
        return torch.cat((angle.sin(), angle.cos()), dim=1)


class Resample(nn.Module):
    """:func:`resample` with its filter as a buffer."""

    resample_filter: Tensor

    def __init__(self, mode: str, taps: Sequence[float]) -> None:
        super().__init__()
        self.mode = mode
        self.taps = tuple(taps)
        self.register_buffer("resample_filter", filter_kernel(taps))

    def forward(self, x: Tensor) -> Tensor:
        return resample(x, self.mode, self.taps, self.resample_filter)


class ResampledConv2d(Conv2d):
    """A convolution in the dtype of its input, of a map that is resampled before where `mode` says so.

    Args:
        filter_last: convolve at the full resolution and filter the result on the way down, which at the border is not
            the same.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        mode: str | None = None,
        taps: Sequence[float] = (1, 1),
        filter_last: bool = False,
    ) -> None:
        overhang = (len(taps) - 1) // 2 if filter_last else 0
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2 + overhang)
        self.mode = mode
        self.taps = tuple(taps)
        self.filter_last = filter_last
        self.register_buffer("resample_filter", None if mode is None else filter_kernel(taps))

    def forward(self, x: Tensor) -> Tensor:
        if self.filter_last:
            return resample(self._convolve(x), self.mode, self.taps, self.resample_filter, padded=False)
        return self._convolve(resample(x, self.mode, self.taps, self.resample_filter))

    def _convolve(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return super().forward(x)
        return self._conv_forward(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


def attend_pixels(qkv: Tensor, heads: int, normalize: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Self-attention over the pixels of a feature map.

    Args:
        qkv: (N, 3 C, H, W), the channels ordered by head, then by channel of the head, then query, key and value.
        normalize: what is done to queries, keys and values first; takes and gives (N, H W, heads, C / heads, 3).

    Returns:
        (N, C, H, W), channels-last in memory.
    """
    tokens = qkv.flatten(2).transpose(1, 2).unflatten(-1, (heads, -1, 3))
    query, key, value = (tokens if normalize is None else normalize(tokens)).unbind(-1)
    return ops.attention(query, key, value).flatten(2).transpose(1, 2).unflatten(2, qkv.shape[2:])


@dataclass(frozen=True)
class BlockSettings:
    """What all blocks of one network share."""

    emb_channels: int
    dropout: float
    eps: float
    skip_scale: float = 1.0
    """Factor of every sum of a branch and its residual."""
    adaptive_scale: bool = True
    """Scale and shift by the embedding (arXiv:2105.05233, section 3), in place of adding it."""
    channels_per_head: int | None = None
    """None is a single head."""
    resample_filter: tuple[float, ...] = (1, 1)
    resample_proj: bool = False
    """Project the residual where the resolution changes, even if the channels do not."""


class UNetBlock(nn.Module):
    """norm, SiLU, conv, norm with the embedding, SiLU, conv, plus the residual; then self-attention with its own."""

    def __init__(self, place: Place, settings: BlockSettings) -> None:
        super().__init__()
        channels, mode, taps = place.out_channels, place.resample, settings.resample_filter
        self.adaptive_scale = settings.adaptive_scale
        self.skip_scale = settings.skip_scale
        self.norm0 = group_norm(place.in_channels, settings.eps)
        self.conv0 = ResampledConv2d(place.in_channels, channels, 3, mode=mode, taps=taps)
        self.affine = Linear(settings.emb_channels, (1 + settings.adaptive_scale) * channels)
        self.norm1 = group_norm(channels, settings.eps)
        self.dropout = nn.Dropout(settings.dropout)
        self.conv1 = ResampledConv2d(channels, channels, 3)
        self.skip: nn.Module | None = None
        if place.in_channels != channels or (mode and settings.resample_proj):
            self.skip = ResampledConv2d(place.in_channels, channels, 1, mode=mode, taps=taps)
        elif mode:
            self.skip = Resample(mode, taps)
        self.heads = 0
        if place.attention:
            self.heads = check_heads(channels, settings.channels_per_head or channels)
            self.norm2 = group_norm(channels, settings.eps, activation="identity")
            self.qkv = ResampledConv2d(channels, 3 * channels, 1)
            self.proj = ResampledConv2d(channels, channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (N, in_channels, H, W), emb (N, emb_channels), through its SiLU and in the dtype of the weights."""
        h = self.conv0(self.norm0(x))
        condition = self.affine(emb)
        if self.adaptive_scale:
            scale, shift = condition.chunk(2, dim=1)
            h = self.norm1(h, scale=scale, shift=shift)
        else:
            h = self.norm1(h, time_bias=condition)
        h = self.conv1(self.dropout(h))
        x = self._scaled(h + (x if self.skip is None else self.skip(x)))
        if self.heads:
            x = self._scaled(x + self.proj(attend_pixels(self.qkv(self.norm2(x)), self.heads)))
        return x

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.skip_scale == 1.0 else x * self.skip_scale
