from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fastdiff.models.condition_embeddings import CombinedTimestepTextProjEmbeddings
from fastdiff.models.config_checks import (
    freeze,
    require_choice,
    require_patches,
    require_positive,
    require_positive_or_none,
)
from fastdiff.models.embeddings import of_each_sample
from fastdiff.models.patch_embed import PatchEmbed, grid_size, unpatchify
from fastdiff.models.pretrained import PretrainedModel
from fastdiff.models.transformer_blocks import (
    BLOCK_EPS,
    JointTransformerBlock,
    Transformer2DOutput,
    check_conditions,
)
from fastdiff.nn import AdaLayerNormContinuous, Linear


@dataclass(frozen=True)
class SD3Transformer2DConfig:
    """The configuration of :class:`SD3Transformer2DModel`: diffusers' keys, defaults and meanings.

    Raises:
        ValueError: a value that is not supported or does not fit the others, with its key and what is allowed.
    """

    sample_size: int = 128
    patch_size: int = 2
    in_channels: int = 16
    num_layers: int = 18
    attention_head_dim: int = 64
    num_attention_heads: int = 18
    joint_attention_dim: int = 4096
    caption_projection_dim: int = 1152
    pooled_projection_dim: int = 2048
    out_channels: int | None = 16
    pos_embed_max_size: int | None = 96
    dual_attention_layers: tuple[int, ...] = ()
    qk_norm: str | None = None

    def __post_init__(self) -> None:
        freeze(self, "dual_attention_layers")
        require_positive(self, "sample_size", "patch_size", "in_channels", "num_layers", "attention_head_dim")
        require_positive(self, "num_attention_heads", "joint_attention_dim", "pooled_projection_dim")
        require_choice(self, qk_norm=(None, "rms_norm"))
        require_positive_or_none(self, "out_channels", "pos_embed_max_size")
        require_patches(self)
        channels = self.num_attention_heads * self.attention_head_dim
        if self.caption_projection_dim != channels:
            raise ValueError(
                "caption_projection_dim must be num_attention_heads * attention_head_dim = "
                f"{channels}, got {self.caption_projection_dim}"
            )
        for layer in self.dual_attention_layers:
            if layer not in range(self.num_layers):
                raise ValueError(
                    f"dual_attention_layers must be of the layers 0 to {self.num_layers - 1}, "
                    f"got {self.dual_attention_layers}"
                )


class SD3Transformer2DModel(PretrainedModel):
    """The multimodal diffusion transformer of Stable Diffusion 3 and 3.5 (MMDiT, arXiv:2403.03206).

    Configuration and ``state_dict`` keys are those of diffusers' ``SD3Transformer2DModel``, so its checkpoints load.

    >>> model = SD3Transformer2DModel(sample_size=8, num_layers=2, num_attention_heads=2, attention_head_dim=8,
    ...                               caption_projection_dim=16, joint_attention_dim=24, pooled_projection_dim=12)
    >>> model(torch.randn(2, 16, 8, 8), torch.randn(2, 5, 24), torch.randn(2, 12), timestep=500).sample.shape
    torch.Size([2, 16, 8, 8])

    Args:
        **values: the fields of :class:`SD3Transformer2DConfig`.
    """

    config_class = SD3Transformer2DConfig
    config: SD3Transformer2DConfig

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self.config = config = self.parse_config(values)
        channels = config.num_attention_heads * config.attention_head_dim
        out_channels = config.in_channels if config.out_channels is None else config.out_channels
        self.pos_embed = PatchEmbed(
            config.in_channels,
            channels,
            config.patch_size,
            base_size=config.sample_size // config.patch_size,
            max_size=config.pos_embed_max_size,
        )
        self.time_text_embed = CombinedTimestepTextProjEmbeddings(channels, config.pooled_projection_dim)
        self.context_embedder = Linear(config.joint_attention_dim, channels)
        self.transformer_blocks = nn.ModuleList(
            JointTransformerBlock(
                channels,
                config.num_attention_heads,
                qk_norm=config.qk_norm is not None,
                context_pre_only=layer == config.num_layers - 1,
                dual_attention=layer in config.dual_attention_layers,
            )
            for layer in range(config.num_layers)
        )
        self.norm_out = AdaLayerNormContinuous(channels, channels, elementwise_affine=False, eps=BLOCK_EPS)
        self.proj_out = Linear(channels, config.patch_size**2 * out_channels)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor | float,
        *,
        joint_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        skip_layers: Collection[int] | None = None,
    ) -> Transformer2DOutput:
        """One evaluation of the network.

        Args:
            hidden_states: (N, in_channels, H, W), the noisy picture; H and W multiples of patch_size.
            encoder_hidden_states: (N, M, joint_attention_dim), the text.
            pooled_projections: (N, pooled_projection_dim), the text as one vector.
            timestep: 0 to 1000: a number, or a tensor of no dimension or (N,). Kept in float32 whatever the model's
                dtype.
            joint_attention_kwargs: accepted for diffusers' sake; must be None or empty.
            return_dict: accepted for diffusers' sake; the result is a named tuple either way.
            skip_layers: blocks to leave out, for skip-layer guidance.

        Returns:
            ``.sample`` or ``[0]``: (N, out_channels, H, W).

        Raises:
            ValueError: a shape that does not fit, or joint_attention_kwargs.
        """
        config = self.config
        height, width = grid_size("hidden_states", hidden_states, config.in_channels, config.patch_size)
        check_conditions(config, hidden_states, encoder_hidden_states, pooled_projections, joint_attention_kwargs)

        x = self.pos_embed(hidden_states)
        temb = self.time_text_embed(of_each_sample("timestep", timestep, x), pooled_projections)
        text = self.context_embedder(encoder_hidden_states)
        for layer, block in enumerate(self.transformer_blocks):
            if layer not in (skip_layers or ()):
                x, text = self.run_block(block, x, text, temb)
        x = self.proj_out(self.norm_out(x, temb))
        return Transformer2DOutput(unpatchify(x, height, width, config.patch_size))
