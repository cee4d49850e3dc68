"""The blocks of NCSN++ (arXiv:2011.13456, appendix H). Attribute names are diffusers' state_dict keys.

Beside the feature map goes an image in RGB: on the way down the input, halved at every resolution and added to the
features; on the way up the output, doubled at every resolution, to which each adds its part.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from fastdiff.models.resampling import resample
from fastdiff.models.unet_blocks import Attention, BlockSettings, ResnetBlock2D, UNetStage
from fastdiff.nn import Conv2d, GroupNormSiLU

RGB = 3
ATTENTION_GROUPS = 32


# Smoothed, with zeros beyond the edge.
fir_halve = partial(resample, mode="down", taps=(1, 3, 3, 1))
fir_double = partial(resample, mode="up", taps=(1, 3, 3, 1))


def _settings_of_ncsnpp(settings: BlockSettings) -> BlockSettings:
    return replace(settings, groups=None, output_scale_factor=2**0.5)


class SkipDownBlock2D(UNetStage):
    """One resolution on the way down: SkipDownBlock2D, or AttnSkipDownBlock2D with attention behind every layer.

    Args:
        downsample: False in the last stage, which leaves the image alone.
    """

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
        settings = _settings_of_ncsnpp(settings)
        super().__init__(
            [in_channels] + [out_channels] * (layers - 1),
            out_channels,
            settings,
            (lambda _: Attention(out_channels, settings, groups=ATTENTION_GROUPS)) if attention else None,
        )
        self.resnet_down = self.skip_conv = None
        if downsample:
            self.resnet_down = ResnetBlock2D(
                out_channels, out_channels, settings, resample=fir_halve, conv_shortcut=True
            )
            self.skip_conv = Conv2d(RGB, out_channels, 1)

    def forward(self, x: Tensor, image: Tensor, time: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Returns the result, what the way up gets to see, in order of creation, and the image, halved as x is."""
        skips = self.layers(x, time)
        if self.resnet_down is not None and self.skip_conv is not None:
            image = fir_halve(image)
            skips.append(self.skip_conv(image) + self.resnet_down(skips[-1], time))
        return skips[-1], skips, image


class SkipUpBlock2D(nn.Module):
    """One resolution on the way up: SkipUpBlock2D, or AttnSkipUpBlock2D with attention behind the last layer.

    Args:
        in_channels: channels of what comes from below.
        skip_channels: channels of the stored activation that each layer takes, in order of use.
        upsample: False in the last stage, which adds nothing to the image.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: list[int],
        out_channels: int,
        settings: BlockSettings,
        *,
        attention: bool,
        upsample: bool,
    ) -> None:
        super().__init__()
        settings = _settings_of_ncsnpp(settings)
        from_below = [in_channels] + [out_channels] * (len(skip_channels) - 1)
        self.resnets = nn.ModuleList(
            # A block with attention has a rule of its own in diffusers, and so in its checkpoints.
            ResnetBlock2D(
                below + skip, out_channels, settings, groups=min(below + skip // 4, 32) if attention else None
            )
            for below, skip in zip(from_below, skip_channels, strict=True)
        )
        self.attentions = nn.ModuleList(
            [Attention(out_channels, settings, groups=ATTENTION_GROUPS)] if attention else []
        )
        self.resnet_up = self.skip_norm = self.skip_conv = None
        if upsample:
            self.resnet_up = ResnetBlock2D(
                out_channels, out_channels, settings, resample=fir_double, conv_shortcut=True
            )
            self.skip_norm = GroupNormSiLU(settings.norm_groups(out_channels), out_channels, settings.eps)
            self.skip_conv = Conv2d(out_channels, RGB, 3, padding=1)

    def forward(
        self, x: Tensor, skips: list[Tensor], image: Tensor | None, time: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Takes one entry of `skips` for each layer, from its end. Returns the result and the image at its resolution
        on entry, so half that of the result.
        """
        for resnet, skip in zip(self.resnets, reversed(skips), strict=True):
            x = resnet(torch.cat((x, skip), dim=1), time)
        for attention in self.attentions:
            x = attention(x)
        image = None if image is None else fir_double(image)
        if self.resnet_up is not None and self.skip_norm is not None and self.skip_conv is not None:
            part = self.skip_conv(self.skip_norm(x))
            image = part if image is None else image + part
            x = self.resnet_up(x, time)
        return x, image
