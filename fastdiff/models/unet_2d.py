from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastdiff.models import config_checks
from fastdiff.models.embeddings import (
    GaussianFourierEmbedding,
    TimestepEmbedding,
    class_embedding,
    label_width,
    of_each_sample,
)
from fastdiff.models.input_checks import require_class_labels, require_feature_map, require_multiples
from fastdiff.models.ncsnpp_blocks import ATTENTION_GROUPS, RGB, SkipDownBlock2D, SkipUpBlock2D
from fastdiff.models.pretrained import PretrainedModel
from fastdiff.models.unet_blocks import (
    Attention,
    BlockSettings,
    DownBlock2D,
    MakeAttention,
    UNetMidBlock2D,
    UpBlock2D,
)
from fastdiff.nn import Conv2d, GroupNormSiLU, Timesteps


@dataclass(frozen=True)
class UNet2DConfig:
    """The configuration of :class:`UNet2DModel`: diffusers' keys, defaults and meanings.

    Raises:
        ValueError: a value that is not supported or does not fit the others, with its key and what is allowed.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1.0
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int | None = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None

    def __post_init__(self) -> None:
        config_checks.freeze(self, "down_block_types", "up_block_types", "block_out_channels")
        config_checks.require_tuple(self, "block_out_channels")
        config_checks.require_positive(self, "in_channels", "out_channels", "layers_per_block")
        config_checks.require_above_zero(self, "mid_block_scale_factor")
        config_checks.require_between(0, 1, self, "dropout")
        config_checks.require_choice(
            self,
            time_embedding_type=("positional", "fourier", "learned"),
            mid_block_type=("UNetMidBlock2D", None),
            downsample_padding=(0, 1),
            downsample_type=("conv", "resnet"),
            upsample_type=("conv", "resnet"),
            act_fn=("silu", "swish"),
            resnet_time_scale_shift=("default", "scale_shift"),
            class_embed_type=(None, "timestep", "identity"),
        )
        config_checks.require_entries(
            self,
            down_block_types=(
                "DownBlock2D",
                "AttnDownBlock2D",
                "ResnetDownsampleBlock2D",
                "SkipDownBlock2D",
                "AttnSkipDownBlock2D",
            ),
            up_block_types=(
                "UpBlock2D",
                "AttnUpBlock2D",
                "ResnetUpsampleBlock2D",
                "SkipUpBlock2D",
                "AttnSkipUpBlock2D",
            ),
        )
        skip_blocks_only = all("Skip" in entry for entry in self.down_block_types + self.up_block_types)
        if not skip_blocks_only or self.norm_num_groups is not None:
            config_checks.require_groups(self)
        self._check_skip_blocks()
        if self.time_embedding_type == "learned" and self.num_train_timesteps is None:
            raise ValueError("num_train_timesteps must be set for time_embedding_type 'learned', got None")
        config_checks.require_even_start(self)

    def _check_skip_blocks(self) -> None:
        """Each hands an image in RGB, at its resolution, to the next."""
        # The last stage of either way does nothing to it.
        down, up = (["Skip" in entry for entry in types] for types in (self.down_block_types[:-1], self.up_block_types))
        if down != sorted(down, reverse=True):
            raise ValueError(f"down_block_types must have its skip blocks first, got {self.down_block_types}")
        if up != sorted(up):
            raise ValueError(f"up_block_types must have its skip blocks last, got {self.up_block_types}")
        for key, used in (("in_channels", any(down)), ("out_channels", any(up[:-1]))):
            if used and getattr(self, key) != RGB:
                raise ValueError(f"{key} must be {RGB} for skip blocks, got {getattr(self, key)}")
        for types, channels in (
            (self.down_block_types, self.block_out_channels),
            (self.up_block_types, self.block_out_channels[::-1]),
        ):
            for entry, width in zip(types, channels, strict=True):
                if entry.startswith("AttnSkip") and width % ATTENTION_GROUPS:
                    raise ValueError(
                        f"block_out_channels must be multiples of {ATTENTION_GROUPS} for skip blocks with attention, "
                        f"got {self.block_out_channels}"
                    )


class UNet2DOutput(NamedTuple):
    sample: Tensor
    """(N, out_channels, H, W)"""


class UNet2DModel(PretrainedModel):
    """The U-Net of DDPM (arXiv:2006.11239) and its descendants, NCSN++ (arXiv:2011.13456) among them.

    Unconditional or conditioned on a class. Configuration and ``state_dict`` keys are those of diffusers'
    ``UNet2DModel``, so its checkpoints load. Every norm, time embedding and activation of a residual block is one call
    of :func:`fastdiff.ops.group_norm_silu`.

    >>> model = UNet2DModel(block_out_channels=(64, 128), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    ...                     up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    >>> model(torch.randn(2, 3, 32, 32), timestep=10).sample.shape
    torch.Size([2, 3, 32, 32])

    Args:
        **values: the fields of :class:`UNet2DConfig`.
    """

    config_class = UNet2DConfig
    config: UNet2DConfig

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self.config = config = self.parse_config(values)
        channels = config.block_out_channels
        time_channels = config.time_embedding_dim or 4 * channels[0]
        settings = BlockSettings(
            time_channels=time_channels,
            groups=config.norm_num_groups,
            eps=config.norm_eps,
            dropout=config.dropout,
            scale_shift=config.resnet_time_scale_shift == "scale_shift",
            head_dim=config.attention_head_dim,
        )
        self.conv_in = Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_proj, raw_channels = _time_projection(config)
        self.time_embedding = TimestepEmbedding(raw_channels, time_channels)
        self.class_embedding = class_embedding(
            config.class_embed_type, config.num_class_embeds, raw_channels, time_channels
        )
        self.label_width = label_width(config.class_embed_type, time_channels)

        last = len(channels) - 1
        self.down_blocks = nn.ModuleList()
        skip_channels = [channels[0]]
        for stage, block_type in enumerate(config.down_block_types):
            down = _down_block(config, settings, block_type, skip_channels[-1], channels[stage], stage == last)
            self.down_blocks.append(down)
            skip_channels += [channels[stage]] * (config.layers_per_block + (stage < last))

        self.mid_block = None if config.mid_block_type is None else _mid_block(config, settings)

        self.up_blocks = nn.ModuleList()
        in_channels = channels[last]
        for index, block_type in enumerate(config.up_block_types):
            out_channels = channels[last - index]
            block_skips = [skip_channels.pop() for _ in range(config.layers_per_block + 1)]
            up = _up_block(config, settings, block_type, in_channels, block_skips, out_channels, index == last)
            self.up_blocks.append(up)
            in_channels = out_channels

        self.conv_norm_out = GroupNormSiLU(settings.norm_groups(channels[0]), channels[0], config.norm_eps)
        self.conv_out = Conv2d(channels[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput:
        """One evaluation of the network.

        Args:
            sample: (N, in_channels, H, W); H and W multiples of 2 ** (stages - 1). Contiguous or channels-last.
            timestep: a number, or a tensor of no dimension or (N,). Kept in float32 whatever the model's dtype.
            class_labels: (N,) integers, or (N, time_embedding_dim) for class_embed_type "identity".
            return_dict: accepted for diffusers' sake; the result is a named tuple either way.

        Returns:
            ``.sample`` or ``[0]``: (N, out_channels, H, W), in the layout of `sample`.

        Raises:
            ValueError: a shape that does not fit, or class_labels given without a class embedding or the reverse.
        """
        self._check_inputs(sample, class_labels)
        if self.config.center_input_sample:
            sample = 2 * sample - 1
        timestep = of_each_sample("timestep", timestep, sample)
        time = self._embed(timestep, class_labels)

        x, image = self.conv_in(sample), sample
        skips = [x]
        for block in self.down_blocks:
            if isinstance(block, SkipDownBlock2D):
                x, block_skips, image = self.run_block(block, x, image, time)
            else:
                x, block_skips = self.run_block(block, x, time)
            skips += block_skips
        if self.mid_block is not None:
            x = self.run_block(self.mid_block, x, time)
        output: Tensor | None = None  # what the skip blocks have of it
        for block in self.up_blocks:
            layers = self.config.layers_per_block + 1
            skips, block_skips = skips[:-layers], skips[-layers:]
            if isinstance(block, SkipUpBlock2D):
                x, output = self.run_block(block, x, block_skips, output, time)
            else:
                x = self.run_block(block, x, block_skips, time)
        x = self.conv_out(self.conv_norm_out(x))
        x = x if output is None else x + output
        if self.config.time_embedding_type == "fourier":
            # The score is of order 1/sigma (arXiv:2011.13456), and a rounded one would scale the whole picture.
            sigma = timestep.to(torch.promote_types(timestep.dtype, torch.float32))
            x = (x / sigma[:, None, None, None]).to(x.dtype)
        return UNet2DOutput(x)

    def _embed(self, timestep: Tensor, class_labels: Tensor | None) -> Tensor:
        """The time (and class) embedding, (N, time_channels), through the SiLU that every block begins with."""
        dtype = self.conv_in.weight.dtype
        time = self.time_embedding(self.time_proj(timestep).to(dtype))
        if self.class_embedding is not None:
            if self.config.class_embed_type == "timestep":
                class_labels = self.time_proj(class_labels).to(dtype)
            time = time + self.class_embedding(class_labels).to(dtype)
        return nn.functional.silu(time)

    def _check_inputs(self, sample: Tensor, class_labels: Tensor | None) -> None:
        require_feature_map("sample", sample, self.config.in_channels)
        require_multiples("sample", sample, 2 ** (len(self.config.block_out_channels) - 1))
        require_class_labels(class_labels, self.class_embedding is not None, sample.shape[0], self.label_width)


def _down_block(
    config: UNet2DConfig,
    settings: BlockSettings,
    block_type: str,
    in_channels: int,
    out_channels: int,
    last: bool,
) -> nn.Module:
    layers, attends = config.layers_per_block, block_type.startswith("Attn")
    if "Skip" in block_type:
        return SkipDownBlock2D(in_channels, out_channels, layers, settings, attention=attends, downsample=not last)
    return DownBlock2D(
        in_channels,
        out_channels,
        layers,
        settings,
        attention=_attention(out_channels, settings) if attends else None,
        downsample=None if last else _resampling(block_type, config.downsample_type),
        downsample_padding=config.downsample_padding,
    )


def _mid_block(config: UNet2DConfig, settings: BlockSettings) -> UNetMidBlock2D:
    channels = config.block_out_channels[-1]
    settings = replace(settings, output_scale_factor=config.mid_block_scale_factor)
    norm_groups = None if settings.scale_shift else settings.norm_groups(channels)
    attention = partial(Attention, channels, settings, groups=config.attn_norm_num_groups or norm_groups)
    return UNetMidBlock2D(channels, settings, attention=attention if config.add_attention else None)


def _up_block(
    config: UNet2DConfig,
    settings: BlockSettings,
    block_type: str,
    in_channels: int,
    skip_channels: list[int],
    out_channels: int,
    last: bool,
) -> nn.Module:
    attends = block_type.startswith("Attn")
    if "Skip" in block_type:
        return SkipUpBlock2D(in_channels, skip_channels, out_channels, settings, attention=attends, upsample=not last)
    return UpBlock2D(
        in_channels,
        skip_channels,
        out_channels,
        settings,
        attention=_attention(out_channels, settings) if attends else None,
        upsample=None if last else _resampling(block_type, config.upsample_type),
    )


def _attention(channels: int, settings: BlockSettings) -> MakeAttention:
    return lambda _: Attention(channels, settings, groups=settings.groups)


def _resampling(block_type: str, configured: str) -> str:
    """As in diffusers only the block with attention heeds the configuration."""
    if block_type.startswith("Attn"):
        return configured
    return "resnet" if block_type.startswith("Resnet") else "conv"


def _time_projection(config: UNet2DConfig) -> tuple[nn.Module, int]:
    """The module that embeds the timestep, and its width."""
    channels = config.block_out_channels[0]
    if config.time_embedding_type == "fourier":
        return GaussianFourierEmbedding(channels, scale=16.0), 2 * channels
    if config.time_embedding_type == "learned":
        assert config.num_train_timesteps is not None  # checked by the configuration
        return nn.Embedding(config.num_train_timesteps, channels), channels
    return Timesteps(channels, config.flip_sin_to_cos, config.freq_shift), channels
