from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff import ops
from fastdiff.models.condition_embeddings import CombinedTimestepTextProjEmbeddings
from fastdiff.models.config_checks import freeze, require_at_least, require_positive, require_positive_or_none
from fastdiff.models.embeddings import of_each_sample
from fastdiff.models.joint_attention import RotaryTables, SelfAttention
from fastdiff.models.pretrained import PretrainedModel
from fastdiff.models.transformer_blocks import (
    BLOCK_EPS,
    JointTransformerBlock,
    Transformer2DOutput,
    check_conditions,
    clip_float16,
)
from fastdiff.nn import AdaLayerNormContinuous, AdaLayerNormZeroSingle, Linear

ROPE_THETA = 10000.0


@dataclass(frozen=True)
class FluxTransformer2DConfig:
    """The configuration of :class:`FluxTransformer2DModel`: diffusers' keys, defaults and meanings.

    Raises:
        ValueError: a value that is not supported or does not fit the others, with its key and what is allowed.
    """

    patch_size: int = 1
    in_channels: int = 64
    out_channels: int | None = None
    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768
    guidance_embeds: bool = False
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)

    def __post_init__(self) -> None:
        freeze(self, "axes_dims_rope")
        require_positive(self, "patch_size", "in_channels", "attention_head_dim", "num_attention_heads")
        require_positive(self, "joint_attention_dim", "pooled_projection_dim")
        require_at_least(0, self, "num_layers", "num_single_layers")
        require_positive_or_none(self, "out_channels")
        uneven = any(channels < 2 or channels % 2 for channels in self.axes_dims_rope)
        if uneven or sum(self.axes_dims_rope) != self.attention_head_dim:
            raise ValueError(
                f"axes_dims_rope must be even numbers that add up to attention_head_dim {self.attention_head_dim}, "
                f"got {self.axes_dims_rope}"
            )


class FluxTransformer2DModel(PretrainedModel):
    """The transformer of FLUX.1: blocks with a stream each for image and text, then blocks with one for both.

    Configuration and ``state_dict`` keys are those of diffusers' ``FluxTransformer2DModel``, so its checkpoints load.

    >>> model = FluxTransformer2DModel(in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=16,
    ...                                num_attention_heads=2, joint_attention_dim=24, pooled_projection_dim=12,
    ...                                axes_dims_rope=(4, 6, 6))
    >>> img_ids = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(3.0))
    >>> model(torch.randn(2, 12, 8), torch.randn(2, 5, 24), torch.randn(2, 12), timestep=0.5,
    ...       img_ids=img_ids, txt_ids=torch.zeros(5, 3)).sample.shape
    torch.Size([2, 12, 8])

    Args:
        **values: the fields of :class:`FluxTransformer2DConfig`.
    """

    config_class = FluxTransformer2DConfig
    config: FluxTransformer2DConfig

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self.config = config = self.parse_config(values)
        heads = config.num_attention_heads
        channels = heads * config.attention_head_dim
        out_channels = config.in_channels if config.out_channels is None else config.out_channels
        self.time_text_embed = CombinedTimestepTextProjEmbeddings(
            channels, config.pooled_projection_dim, timestep_scale=1000.0, guidance=config.guidance_embeds
        )
        self.context_embedder = Linear(config.joint_attention_dim, channels)
        self.x_embedder = Linear(config.in_channels, channels)
        self.transformer_blocks = nn.ModuleList(
            JointTransformerBlock(channels, heads, qk_norm=True) for _ in range(config.num_layers)
        )
        self.single_transformer_blocks = nn.ModuleList(
            FluxSingleTransformerBlock(channels, heads) for _ in range(config.num_single_layers)
        )
        self.norm_out = AdaLayerNormContinuous(channels, channels, elementwise_affine=False, eps=BLOCK_EPS)
        self.proj_out = Linear(channels, config.patch_size**2 * out_channels)

    def cache_context(self, name: str) -> AbstractContextManager[None]:
        """For diffusers' pipelines, which say what kind of call follows: nothing is kept from call to call here."""
        return nullcontext()

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor | float,
        img_ids: Tensor,
        txt_ids: Tensor,
        guidance: Tensor | float | None = None,
        *,
        joint_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DOutput:
        """One evaluation of the network.

        Args:
            hidden_states: (N, L, in_channels), the noisy picture as packed tokens.
            encoder_hidden_states: (N, M, joint_attention_dim), the text.
            pooled_projections: (N, pooled_projection_dim), the text as one vector.
            timestep: 0 to 1: a number, or a tensor of no dimension or (N,). Multiplied by 1000 in float64, whatever the
                model's dtype.
            img_ids, txt_ids: (L, axes) and (M, axes), the place of each token on each of axes_dims_rope's axes, or
                (N, L, axes) and (N, M, axes), those of each sample. (diffusers would take the first sample's for all.)
            guidance: the guidance scale that a distilled model is told, like timestep and multiplied like it; for
                guidance_embeds only.
            joint_attention_kwargs: accepted for diffusers' sake; must be None or empty.
            return_dict: accepted for diffusers' sake; the result is a named tuple either way.

        Returns:
            ``.sample`` or ``[0]``: (N, L, patch_size ** 2 * out_channels).

        Raises:
            ValueError: a shape that does not fit, guidance given to a model without guidance_embeds or the reverse, or
                joint_attention_kwargs.
        """
        config = self.config
        if hidden_states.dim() != 3 or hidden_states.shape[2] != config.in_channels:
            raise ValueError(f"hidden_states must be (N, L, {config.in_channels}), got {tuple(hidden_states.shape)}")
        check_conditions(config, hidden_states, encoder_hidden_states, pooled_projections, joint_attention_kwargs)
        if config.guidance_embeds != (guidance is not None):
            wanted = "is required by" if config.guidance_embeds else "must not be given to a model without"
            raise ValueError(f"guidance {wanted} guidance_embeds")

        x = self.x_embedder(hidden_states)
        text = self.context_embedder(encoder_hidden_states)
        timestep = of_each_sample("timestep", timestep, x)
        if guidance is not None:
            guidance = of_each_sample("guidance", guidance, x)
        temb = self.time_text_embed(timestep, pooled_projections, guidance)
        rope = rotary_tables(self._ids(txt_ids, img_ids, text, x), config.axes_dims_rope)

        for block in self.transformer_blocks:
            x, text = self.run_block(block, x, text, temb, rope)
        joint = torch.cat((text, x), dim=1)
        for block in self.single_transformer_blocks:
            joint = self.run_block(block, joint, temb, rope)
        x = joint[:, text.shape[1] :]
        return Transformer2DOutput(self.proj_out(self.norm_out(x, temb)))

    def _ids(self, txt_ids: Tensor, img_ids: Tensor, text: Tensor, x: Tensor) -> Tensor:
        """The places of all tokens, (M + L, axes), or (N, M + L, axes) if either differ between samples."""
        batch, axes = x.shape[0], len(self.config.axes_dims_rope)
        both = []
        for name, ids, tokens in (("txt_ids", txt_ids, text.shape[1]), ("img_ids", img_ids, x.shape[1])):
            if ids.shape not in ((tokens, axes), (1, tokens, axes), (batch, tokens, axes)):
                raise ValueError(
                    f"{name} must be ({tokens}, {axes}) or ({batch}, {tokens}, {axes}), a place for each token on each "
                    f"of the axes, got shape {tuple(ids.shape)}"
                )
            both.append(ids[0] if ids.dim() == 3 and ids.shape[0] == 1 else ids)
        if any(ids.dim() == 3 for ids in both):
            both = [ids.expand(batch, -1, -1) for ids in both]
        return torch.cat(both, dim=-2)


class FluxSingleTransformerBlock(nn.Module):
    """Attention and feed-forward side by side on the tokens of text and image (as in arXiv:2302.05442, section 2)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = AdaLayerNormZeroSingle(channels)
        self.proj_mlp = Linear(channels, 4 * channels)
        self.proj_out = Linear(5 * channels, channels)
        self.attn = SelfAttention(channels, heads, qk_norm=True, project_out=False)

    def forward(self, x: Tensor, temb: Tensor, rope: RotaryTables) -> Tensor:
        """x (N, L, C), temb (N, C) -> (N, L, C)."""
        y, gate = self.norm(x, temb)
        y = torch.cat((self.attn(y, rope), self.proj_mlp.gelu(y, "tanh")), dim=-1)
        return clip_float16(ops.gate_residual(self.proj_out(y), gate, x))


def rotary_tables(ids: Tensor, axes_dims: tuple[int, ...]) -> RotaryTables:
    """float32 cos and sin of (..., axes) places, (..., sum(axes_dims)): each axis turns elements of its own, in pairs.

    Angles are float64, as in diffusers: in float32 a place of a thousand would be off by 6e-5.
    """
    angles = []
    for place, channels in zip(ids.double().unbind(-1), axes_dims, strict=True):
        index = torch.arange(0, channels, 2, dtype=torch.float64, device=ids.device)
        angles.append(place[..., None] * ROPE_THETA ** (-index / channels))
    angle = torch.cat(angles, dim=-1)
    # A number for each element, the same for both of a pair.
    cos, sin = (table.float().repeat_interleave(2, dim=-1) for table in (angle.cos(), angle.sin()))
    return cos, sin
