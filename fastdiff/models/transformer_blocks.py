"""What the diffusion transformers share. Attribute names are diffusers' state_dict keys."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastdiff import ops
from fastdiff.models.joint_attention import JointAttention, RotaryTables, SelfAttention
from fastdiff.nn import AdaLayerNormContinuous, AdaLayerNormZero, FeedForward, SD35AdaLayerNormZeroX

BLOCK_EPS = 1e-6


class Transformer2DOutput(NamedTuple):
    sample: Tensor
    """A picture (N, out_channels, H, W) of DiT and SD3, tokens (N, L, patch_size ** 2 * out_channels) of FLUX."""


class JointTransformerBlock(nn.Module):
    """A block of MMDiT (arXiv:2403.03206, figure 2b), for SD3 and as FLUX's double-stream block.

    Args:
        channels: of the tokens of image and text.
        heads: a divisor of channels.
        qk_norm: normalise queries and keys.
        context_pre_only: the text ends here, as in SD3's last block: it is attended to, and not transformed.
        dual_attention: a second attention, of the image alone (SD3.5 medium).
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        qk_norm: bool,
        context_pre_only: bool = False,
        dual_attention: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = SD35AdaLayerNormZeroX(channels) if dual_attention else AdaLayerNormZero(channels)
        self.norm1_context = (
            AdaLayerNormContinuous(channels, channels, elementwise_affine=False, eps=BLOCK_EPS)
            if context_pre_only
            else AdaLayerNormZero(channels)
        )
        self.attn = JointAttention(channels, heads, qk_norm=qk_norm, context_pre_only=context_pre_only)
        self.attn2 = SelfAttention(channels, heads, qk_norm=qk_norm) if dual_attention else None
        self.ff = FeedForward(channels, activation_fn="gelu-approximate")
        self.ff_context = None if context_pre_only else FeedForward(channels, activation_fn="gelu-approximate")

    def forward(
        self, x: Tensor, text: Tensor, temb: Tensor, rope: RotaryTables | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Image x (N, L, C), text (N, M, C) and embedding temb (N, C) -> image and text, None where it ends."""
        y, gate, shift, scale, ff_gate, *second = self.norm1(x, temb)
        if self.ff_context is None:
            attended, _ = self.attn(y, self.norm1_context(text, temb), rope)
            text_result = None
        else:
            text_y, text_gate, text_shift, text_scale, text_ff_gate = self.norm1_context(text, temb)
            attended, text_attended = self.attn(y, text_y, rope)
            text_result = finish_block(
                self.ff_context, text_attended, text_gate, text, text_scale, text_shift, text_ff_gate
            )
            text_result = clip_float16(text_result)
        if self.attn2 is not None:
            y2, gate2 = second
            x = ops.gate_residual(attended, gate, x)
            attended, gate = self.attn2(y2), gate2
        return finish_block(self.ff, attended, gate, x, scale, shift, ff_gate), text_result


def finish_block(
    feed_forward: nn.Module,
    attended: Tensor,
    gate: Tensor,
    residual: Tensor,
    scale: Tensor,
    shift: Tensor,
    ff_gate: Tensor,
    *,
    norm: nn.LayerNorm | None = None,
) -> Tensor:
    """What follows the attention of a block: its gated residual, norm and modulation, feed-forward, gated residual.

    Args:
        norm: holds eps and parameters of the norm; None is one of eps 1e-6 without parameters.
    """
    eps, weight, bias = (BLOCK_EPS, None, None) if norm is None else (norm.eps, norm.weight, norm.bias)
    y, x = ops.layer_norm_modulate(
        attended, scale, shift, gate=gate, residual=residual, eps=eps, weight=weight, bias=bias
    )
    return ops.gate_residual(feed_forward(y), ff_gate, x)


def clip_float16(x: Tensor) -> Tensor:
    """Keep a residual stream in the range of float16: infinities would turn into NaN. (diffusers does so in FLUX.)"""
    return x.clip(-65504, 65504) if x.dtype == torch.float16 else x


def check_conditions(
    config: Any, x: Tensor, text: Tensor, pooled: Tensor, joint_attention_kwargs: dict[str, Any] | None
) -> None:
    """The text of a batch x is (N, M, joint_attention_dim) as tokens and (N, pooled_projection_dim) as one vector.

    What joint_attention_kwargs are for, adapters of images and scales of LoRA, is not here: better an error than a
    silent loss.
    """
    batch, channels, pooled_channels = x.shape[0], config.joint_attention_dim, config.pooled_projection_dim
    if text.dim() != 3 or (text.shape[0], text.shape[2]) != (batch, channels):
        raise ValueError(f"encoder_hidden_states must be ({batch}, tokens, {channels}), got shape {tuple(text.shape)}")
    if pooled.shape != (batch, pooled_channels):
        raise ValueError(f"pooled_projections must be ({batch}, {pooled_channels}), got shape {tuple(pooled.shape)}")
    if joint_attention_kwargs:
        raise ValueError(f"joint_attention_kwargs must be None or empty, got {sorted(joint_attention_kwargs)}")
