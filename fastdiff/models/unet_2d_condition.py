from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fastdiff.models import config_checks
from fastdiff.models.embeddings import TimestepEmbedding, class_embedding, label_width, of_each_sample
from fastdiff.models.input_checks import require_class_labels, require_feature_map
from fastdiff.models.pretrained import PretrainedModel
from fastdiff.models.transformer_2d import Transformer2D
from fastdiff.models.unet_blocks import BlockSettings, DownBlock2D, MakeAttention, Text, UNetMidBlock2D, UpBlock2D
from fastdiff.nn import Conv2d, GroupNormSiLU, Linear, Timesteps


@dataclass(frozen=True)
class UNet2DConditionConfig:
    """The configuration of :class:`UNet2DConditionModel`: diffusers' keys, defaults and meanings.

    Mind that ``attention_head_dim`` is the NUMBER of heads, as checkpoints have it, and ``num_attention_heads`` must be
    None. ``upcast_attention`` has no effect: scores are always float32. What :class:`UNet2DConditionModel` has no
    code for must have its default.

    Raises:
        ValueError: a value that is not supported or does not fit the others, with its key and what is allowed.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = (
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    )
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1
    dropout: float = 0.0
    act_fn: str = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] = 1280
    transformer_layers_per_block: int | tuple[int | tuple[int, ...], ...] = 1
    reverse_transformer_layers_per_block: tuple[int | tuple[int, ...], ...] | None = None
    encoder_hid_dim: int | None = None
    encoder_hid_dim_type: str | None = None
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: None = None
    dual_cross_attention: bool = False
    use_linear_projection: bool = False
    class_embed_type: str | None = None
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    num_class_embeds: int | None = None
    upcast_attention: bool = False
    resnet_time_scale_shift: str = "default"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: float = 1.0
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    time_embedding_act_fn: None = None
    timestep_post_act: None = None
    time_cond_proj_dim: int | None = None
    conv_in_kernel: int = 3
    conv_out_kernel: int = 3
    projection_class_embeddings_input_dim: int | None = None
    attention_type: str = "default"
    class_embeddings_concat: bool = False
    mid_block_only_cross_attention: bool | None = None
    cross_attention_norm: None = None
    addition_embed_type_num_heads: int = 64

    def __post_init__(self) -> None:
        config_checks.freeze(
            self, "sample_size", "down_block_types", "up_block_types", "block_out_channels", *_OF_EACH_STAGE
        )
        config_checks.require_tuple(self, "block_out_channels")
        config_checks.require_choice(
            self,
            mid_block_type=("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
            downsample_padding=(0, 1),
            act_fn=("silu", "swish"),
            encoder_hid_dim_type=(None, "text_proj"),
            class_embed_type=(None, "timestep", "identity", "projection", "simple_projection"),
            addition_embed_type=(None, "text_time"),
            resnet_time_scale_shift=("default", "scale_shift"),
            # diffusers reads it for blocks that are not supported here.
            mid_block_only_cross_attention=(None, False),
        )
        for key, value in _ONLY_SUPPORTED.items():
            if getattr(self, key) != value:
                raise ValueError(f"{key} must be {value!r}: no other is supported, got {getattr(self, key)!r}")
        if self.num_attention_heads is not None:
            raise ValueError(
                "num_attention_heads must be None, since the number of heads is what attention_head_dim says, "
                f"got {self.num_attention_heads}"
            )
        config_checks.require_entries(
            self,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
        config_checks.require_length(self, *_OF_EACH_STAGE)
        config_checks.require_groups(self)
        if self.encoder_hid_dim is not None:
            object.__setattr__(self, "encoder_hid_dim_type", "text_proj")
        self._check_text()
        self._check_transformer_layers()
        self._check_embeddings()
        for key in ("conv_in_kernel", "conv_out_kernel"):
            if getattr(self, key) % 2 == 0:
                raise ValueError(f"{key} must be odd, got {getattr(self, key)}")

    def _check_text(self) -> None:
        for channels, heads, attends in zip(
            self.block_out_channels, self.per_stage("attention_head_dim"), self.attends, strict=True
        ):
            if attends and (heads < 1 or channels % heads):
                raise ValueError(
                    f"attention_head_dim, the number of heads, must divide the {channels} channels of the block, "
                    f"got {heads}"
                )
        dims = {dim for dim, here in zip(self.per_stage("cross_attention_dim"), self.attends, strict=True) if here}
        if len(dims) > 1:
            raise ValueError(
                f"cross_attention_dim must be the same in all blocks, as they see one text, got {sorted(dims)}"
            )
        if self.encoder_hid_dim_type is not None:
            if self.encoder_hid_dim is None:
                raise ValueError("encoder_hid_dim must be set for encoder_hid_dim_type 'text_proj', got None")
            if not isinstance(self.cross_attention_dim, int):
                raise ValueError(
                    f"cross_attention_dim must be one number beside encoder_hid_dim, got {self.cross_attention_dim}"
                )

    def _check_transformer_layers(self) -> None:
        layers = self.per_stage("layers_per_block")
        down = self.per_stage("transformer_layers_per_block")
        up = self.reverse_transformer_layers_per_block
        if up is None and any(isinstance(entry, tuple) for entry in down):
            raise ValueError(
                "reverse_transformer_layers_per_block must be set where transformer_layers_per_block has one entry for "
                f"each layer, {self.transformer_layers_per_block}, got None"
            )
        for key, entries, counts in (
            ("transformer_layers_per_block", down, layers),
            ("reverse_transformer_layers_per_block", up or (), [count + 1 for count in layers[::-1]]),
        ):
            for entry, count in zip(entries, counts, strict=False):
                if isinstance(entry, tuple) and len(entry) != count:
                    raise ValueError(
                        f"{key} must have one entry for each of the {count} layers of a block, got {entry}"
                    )

    def _check_embeddings(self) -> None:
        config_checks.require_even_start(self)
        if self.addition_embed_type == "text_time" and self.addition_time_embed_dim is None:
            raise ValueError("addition_time_embed_dim must be set for addition_embed_type 'text_time', got None")
        for key in ("addition_embed_type", "class_embed_type"):
            needed = getattr(self, key) in ("text_time", "projection", "simple_projection")
            if needed and self.projection_class_embeddings_input_dim is None:
                raise ValueError(
                    f"projection_class_embeddings_input_dim must be set for {key} {getattr(self, key)!r}, got None"
                )
        if self.class_embeddings_concat and self.addition_embed_type is not None:
            raise ValueError(
                f"class_embeddings_concat must be False beside addition_embed_type, got {self.addition_embed_type!r}"
            )
        if self.class_embeddings_concat and self.class_embed_type is None and self.num_class_embeds is None:
            raise ValueError("class_embeddings_concat needs class_embed_type or num_class_embeds, got neither")

    @property
    def attends(self) -> tuple[bool, ...]:
        """Of each resolution, from the highest, whether it has cross-attention."""
        here = [
            down == "CrossAttnDownBlock2D" or up == "CrossAttnUpBlock2D"
            for down, up in zip(self.down_block_types, self.up_block_types[::-1], strict=True)
        ]
        here[-1] |= self.mid_block_type == "UNetMidBlock2DCrossAttn"
        return tuple(here)

    def per_stage(self, key: str) -> tuple[Any, ...]:
        """The value of a key for each resolution, from the highest."""
        value = getattr(self, key)
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)


_OF_EACH_STAGE = (
    "only_cross_attention",
    "layers_per_block",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
    "attention_head_dim",
)
_ONLY_SUPPORTED = {
    "dual_cross_attention": False,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "attention_type": "default",
    "cross_attention_norm": None,
}


class UNet2DConditionOutput(NamedTuple):
    sample: Tensor
    """(N, out_channels, H, W)"""


class UNet2DConditionModel(PretrainedModel):
    """The U-Net of latent diffusion (arXiv:2112.10752) with cross-attention to a text: Stable Diffusion 1, 2 and XL.

    Configuration and ``state_dict`` keys are those of diffusers' ``UNet2DConditionModel``, so its checkpoints load.
    Every norm, time embedding and activation of a residual block is one call of :func:`fastdiff.ops.group_norm_silu`,
    every residual and norm of a transformer block one of :func:`fastdiff.ops.layer_norm_modulate`. Channels-last input
    is worked on as such: pixels are tokens without a copy. Without gradients the keys and values of a text are worked
    out once for all steps (:class:`fastdiff.nn.Attention`), as long as it is the same tensor that comes, and not with
    ``encoder_hid_dim``, which makes a new one of it each time.

    >>> model = UNet2DConditionModel(
    ...     down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), block_out_channels=(32, 64),
    ...     up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=16, attention_head_dim=4)
    >>> model(torch.randn(2, 4, 16, 24), timestep=10, encoder_hidden_states=torch.randn(2, 77, 16)).sample.shape
    torch.Size([2, 4, 16, 24])

    Args:
        **values: the fields of :class:`UNet2DConditionConfig`.
    """

    config_class = UNet2DConditionConfig
    config: UNet2DConditionConfig

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self.config = config = self.parse_config(values)
        channels = config.block_out_channels
        time_channels = config.time_embedding_dim or 4 * channels[0]
        settings = BlockSettings(
            time_channels=time_channels * (1 + config.class_embeddings_concat),
            groups=config.norm_num_groups,
            eps=config.norm_eps,
            dropout=config.dropout,
            scale_shift=config.resnet_time_scale_shift == "scale_shift",
        )
        self.conv_in = Conv2d(
            config.in_channels, channels[0], config.conv_in_kernel, padding=config.conv_in_kernel // 2
        )
        self._make_embeddings(time_channels)

        layers = config.per_stage("layers_per_block")
        depths = config.per_stage("transformer_layers_per_block")
        last = len(channels) - 1

        self.down_blocks = nn.ModuleList()
        skip_channels = [channels[0]]
        for stage, block_type in enumerate(config.down_block_types):
            block = DownBlock2D(
                skip_channels[-1],
                channels[stage],
                layers[stage],
                settings,
                attention=self._attention(stage, depths[stage]) if block_type == "CrossAttnDownBlock2D" else None,
                downsample="conv" if stage < last else None,
                downsample_padding=config.downsample_padding,
            )
            self.down_blocks.append(block)
            skip_channels += [channels[stage]] * (layers[stage] + (stage < last))

        self.mid_block = None
        if config.mid_block_type is not None:
            attends = config.mid_block_type == "UNetMidBlock2DCrossAttn"
            make_attention = self._attention(last, depths[last], only_cross_attention=False)
            self.mid_block = UNetMidBlock2D(
                channels[last],
                replace(settings, output_scale_factor=config.mid_block_scale_factor),
                layers=2 if attends else 1,
                attention=(lambda: make_attention(0)) if attends else None,
            )

        self.up_blocks = nn.ModuleList()
        in_channels = channels[last]
        up_depths = config.reverse_transformer_layers_per_block or depths[::-1]
        for index, block_type in enumerate(config.up_block_types):
            stage = last - index
            up_block = UpBlock2D(
                in_channels,
                [skip_channels.pop() for _ in range(layers[stage] + 1)],
                channels[stage],
                settings,
                attention=self._attention(stage, up_depths[index]) if block_type == "CrossAttnUpBlock2D" else None,
                upsample="conv" if stage > 0 else None,
            )
            self.up_blocks.append(up_block)
            in_channels = channels[stage]

        self.conv_norm_out = GroupNormSiLU(config.norm_num_groups, channels[0], config.norm_eps)
        self.conv_out = Conv2d(
            channels[0], config.out_channels, config.conv_out_kernel, padding=config.conv_out_kernel // 2
        )

    def _make_embeddings(self, time_channels: int) -> None:
        config = self.config
        raw_channels = config.block_out_channels[0]
        self.time_proj = Timesteps(raw_channels, config.flip_sin_to_cos, config.freq_shift)
        self.time_embedding = TimestepEmbedding(raw_channels, time_channels, config.time_cond_proj_dim)
        label_channels = config.projection_class_embeddings_input_dim
        self.class_embedding = class_embedding(
            config.class_embed_type, config.num_class_embeds, raw_channels, time_channels, label_channels
        )
        self.label_width = label_width(config.class_embed_type, time_channels, label_channels)
        self.encoder_hid_proj = None
        if config.encoder_hid_dim is not None:
            self.encoder_hid_proj = Linear(config.encoder_hid_dim, config.per_stage("cross_attention_dim")[0])
        self.add_embedding = None
        if config.addition_embed_type == "text_time":
            assert config.addition_time_embed_dim is not None and label_channels is not None  # checked there
            self.add_time_proj = Timesteps(config.addition_time_embed_dim, config.flip_sin_to_cos, config.freq_shift)
            self.add_embedding = TimestepEmbedding(label_channels, time_channels)

    def _attention(
        self, stage: int, depth: int | tuple[int, ...], only_cross_attention: bool | None = None
    ) -> MakeAttention:
        """Makes the transformers of a block: `depth` layers, the same for all or one number for each."""
        config = self.config
        if only_cross_attention is None:
            only_cross_attention = config.per_stage("only_cross_attention")[stage]

        def make(layer: int) -> Transformer2D:
            return Transformer2D(
                config.block_out_channels[stage],
                config.per_stage("attention_head_dim")[stage],  # the number of heads
                depth[layer] if isinstance(depth, tuple) else depth,
                config.per_stage("cross_attention_dim")[stage],
                groups=config.norm_num_groups,
                linear_projection=config.use_linear_projection,
                only_cross_attention=only_cross_attention,
            )

        return make

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None,
        class_labels: Tensor | None = None,
        *,
        timestep_cond: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput:
        """One evaluation of the network.

        Args:
            sample: (N, in_channels, H, W), of any height and width. Contiguous or channels-last.
            timestep: a number, or a tensor of no dimension or (N,). Kept in float32 whatever the model's dtype.
            encoder_hidden_states: (N, L, cross_attention_dim), or encoder_hid_dim where that is set: the text.
            class_labels: (N,) integers; or (N, time_embedding_dim) for class_embed_type "identity", and
                (N, projection_class_embeddings_input_dim) for "projection" and "simple_projection".
            timestep_cond: (N, time_cond_proj_dim), a second condition beside the timestep.
            cross_attention_kwargs: accepted for diffusers' sake; must be None or empty.
            added_cond_kwargs: for addition_embed_type "text_time" a dict with text_embeds, (N, P), and time_ids,
                (N, K): the pooled text, and K numbers such as sizes.
            down_block_additional_residuals, mid_block_additional_residual: what a ControlNet adds to each stored
                activation, in order of creation, and to the result of the middle block.
            encoder_attention_mask: (N, L), not 0 for the tokens of the text that count. They must come first, which is
                looked at on a CPU only. A text without any attends to nothing (in diffusers, to all alike).
            return_dict: accepted for diffusers' sake; the result is a named tuple either way.

        Returns:
            ``.sample`` or ``[0]``: (N, out_channels, H, W), in the layout of `sample`.

        Raises:
            ValueError: a shape that does not fit, or a condition that is missing or that the configuration has no
                place for.
        """
        self._check_inputs(
            sample, encoder_hidden_states, class_labels, timestep_cond, cross_attention_kwargs, added_cond_kwargs
        )
        if (down_block_additional_residuals is None) != (mid_block_additional_residual is None):
            raise ValueError("down_block_additional_residuals and mid_block_additional_residual must be given together")
        text = self._text(encoder_hidden_states, encoder_attention_mask)
        if self.config.center_input_sample:
            sample = 2 * sample - 1
        timestep = of_each_sample("timestep", timestep, sample)
        time = self._embed(timestep, timestep_cond, class_labels, added_cond_kwargs)

        x = self.conv_in(sample)
        skips = [x]
        for block in self.down_blocks:
            x, block_skips = self.run_block(block, x, time, text)
            skips += block_skips
        if down_block_additional_residuals is not None:
            skips = [skip + more for skip, more in zip(skips, down_block_additional_residuals, strict=True)]
        if self.mid_block is not None:
            x = self.run_block(self.mid_block, x, time, text)
        if mid_block_additional_residual is not None:
            x = x + mid_block_additional_residual
        for block in self.up_blocks:
            layers = len(cast(UpBlock2D, block).resnets)
            skips, block_skips = skips[:-layers], skips[-layers:]
            x = self.run_block(block, x, block_skips, time, text, skips[-1].shape[2:] if skips else None)
        return UNet2DConditionOutput(self.conv_out(self.conv_norm_out(x)))

    def _embed(
        self,
        timestep: Tensor,
        timestep_cond: Tensor | None,
        class_labels: Tensor | None,
        added_cond_kwargs: Mapping[str, Tensor] | None,
    ) -> Tensor:
        """The embedding of timestep and conditions, through the SiLU that every block begins with."""
        dtype = self.conv_in.weight.dtype
        time = self.time_embedding(self.time_proj(timestep).to(dtype), timestep_cond)
        if self.class_embedding is not None:
            if self.config.class_embed_type == "timestep":
                class_labels = self.time_proj(class_labels).to(dtype)
            classes = self.class_embedding(class_labels).to(dtype)
            time = torch.cat((time, classes), dim=1) if self.config.class_embeddings_concat else time + classes
        if self.add_embedding is not None:
            time = time + self.add_embedding(self._text_and_time_ids(timestep.shape[0], added_cond_kwargs).to(dtype))
        return nn.functional.silu(time)

    def _text_and_time_ids(self, batch: int, added_cond_kwargs: Mapping[str, Tensor] | None) -> Tensor:
        """The pooled text and the embedding of each number beside it, (N, projection_class_embeddings_input_dim)."""
        given = added_cond_kwargs or {}
        for key in ("text_embeds", "time_ids"):
            if key not in given:
                raise ValueError(f"added_cond_kwargs must hold {key} for addition_embed_type 'text_time'")
            if given[key].dim() != 2 or given[key].shape[0] != batch:
                raise ValueError(f"{key} must be ({batch}, channels), got shape {tuple(given[key].shape)}")
        text_embeds, time_ids = given["text_embeds"], given["time_ids"]
        times = self.add_time_proj(time_ids.flatten())
        times = times.view(batch, time_ids.shape[1] * times.shape[1])
        wanted = self.config.projection_class_embeddings_input_dim
        if text_embeds.shape[1] + times.shape[1] != wanted:
            raise ValueError(
                f"text_embeds and time_ids must make up projection_class_embeddings_input_dim {wanted}, got "
                f"{text_embeds.shape[1]} channels and {time_ids.shape[1]} numbers, each embedded in "
                f"{self.config.addition_time_embed_dim}"
            )
        return torch.cat((text_embeds, times), dim=1)

    def _text(self, hidden_states: Tensor | None, mask: Tensor | None) -> Text | None:
        if hidden_states is None:
            return None
        if self.encoder_hid_proj is not None:
            hidden_states = self.encoder_hid_proj(hidden_states)
        return Text(hidden_states, None if mask is None else _lengths(mask, hidden_states))

    def _check_inputs(
        self, sample, encoder_hidden_states, class_labels, timestep_cond, cross_attention_kwargs, added_cond_kwargs
    ) -> None:
        config = self.config
        require_feature_map("sample", sample, config.in_channels)
        batch = sample.shape[0]
        if any(config.attends):
            width = config.encoder_hid_dim or config.per_stage("cross_attention_dim")[config.attends.index(True)]
            shape = None if encoder_hidden_states is None else tuple(encoder_hidden_states.shape)
            if shape is None or len(shape) != 3 or shape[::2] != (batch, width):
                raise ValueError(
                    f"encoder_hidden_states must be ({batch}, L, {width}), "
                    f"got {'None' if shape is None else f'shape {shape}'}"
                )
        require_class_labels(class_labels, self.class_embedding is not None, batch, self.label_width)
        if timestep_cond is not None and config.time_cond_proj_dim is None:
            raise ValueError("timestep_cond must not be given to a model without time_cond_proj_dim")
        if timestep_cond is not None and timestep_cond.shape != (batch, config.time_cond_proj_dim):
            raise ValueError(
                f"timestep_cond must be ({batch}, {config.time_cond_proj_dim}), got shape {tuple(timestep_cond.shape)}"
            )
        if cross_attention_kwargs:
            raise ValueError(f"cross_attention_kwargs must be None or empty, got {sorted(cross_attention_kwargs)}")
        allowed = {"text_embeds", "time_ids"} if config.addition_embed_type == "text_time" else set()
        unknown = sorted(set(added_cond_kwargs or ()) - allowed)
        if unknown:
            raise ValueError(
                f"added_cond_kwargs may have {sorted(allowed) or 'nothing'} for addition_embed_type "
                f"{config.addition_embed_type!r}, got {unknown}"
            )


def _lengths(mask: Tensor, text: Tensor) -> Tensor:
    """How many of the first tokens a mask (N, L) keeps."""
    if mask.shape != text.shape[:2]:
        raise ValueError(f"encoder_attention_mask must be {tuple(text.shape[:2])}, got shape {tuple(mask.shape)}")
    keep = mask != 0
    # Values are looked at only where that costs nothing: on a GPU it would wait for all work before it.
    if mask.device.type == "cpu" and not torch.compiler.is_compiling() and (keep[:, 1:] & ~keep[:, :-1]).any():
        raise ValueError("encoder_attention_mask must keep the first tokens of each text and none behind a gap")
    return keep.sum(dim=1)
