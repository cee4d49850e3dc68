"""The attentions of SD3 and FLUX, over one stream of tokens or two. Attribute names are diffusers' state_dict keys."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

from fastdiff import ops
from fastdiff.nn import Linear

RotaryTables: TypeAlias = tuple[Tensor, Tensor]
"""cos and sin of all tokens, (L, head_dim) or (N, L, head_dim), as :func:`fastdiff.ops.qk_norm_rope` takes them."""

_QK_EPS = 1e-6


class _HeadProjections(nn.Module):
    """Queries, keys and values of tokens, by head, with optional RMS normalisation and rotary embedding of the first
    two.
    """

    def __init__(self, channels: int, heads: int, *, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = Linear(channels, channels)
        self.to_k = Linear(channels, channels)
        self.to_v = Linear(channels, channels)
        self.norm_q, self.norm_k = (_head_norm(channels // heads, qk_norm) for _ in range(2))

    def project(self, x: Tensor, rope: RotaryTables | None) -> tuple[Tensor, Tensor, Tensor]:
        """x (N, L, C) -> three times (N, L, heads, head_dim)."""
        query, key, value = (_heads(project(x), self.heads) for project in (self.to_q, self.to_k, self.to_v))
        return *_normalise(query, key, self.norm_q, self.norm_k, rope), value


class SelfAttention(_HeadProjections):
    """Self-attention with optional RMS normalisation and rotary embedding of queries and keys.

    Args:
        channels: of the tokens.
        heads: a divisor of channels.
        qk_norm: normalise queries and keys.
        project_out: give the result its output projection; without, it is that of the heads.
    """

    def __init__(self, channels: int, heads: int, *, qk_norm: bool, project_out: bool = True) -> None:
        super().__init__(channels, heads, qk_norm=qk_norm)
        # A list because diffusers' key is to_out.0.
        self.to_out = nn.ModuleList([Linear(channels, channels)]) if project_out else None

    def forward(self, x: Tensor, rope: RotaryTables | None = None) -> Tensor:
        """x (N, L, C) -> (N, L, C)."""
        query, key, value = self.project(x, rope)
        y = ops.attention(query, key, value).flatten(2)
        return y if self.to_out is None else self.to_out[0](y)


class JointAttention(_HeadProjections):
    """Attention of image and text tokens to all of them, each with projections of its own (MMDiT, arXiv:2403.03206).

    Args:
        channels: of the tokens of both.
        heads: a divisor of channels.
        qk_norm: normalise queries and keys.
        context_pre_only: the text is attended to, and does not attend. Its query's projection has weights, since
            checkpoints have, and no use.
    """

    def __init__(self, channels: int, heads: int, *, qk_norm: bool, context_pre_only: bool = False) -> None:
        super().__init__(channels, heads, qk_norm=qk_norm)
        self.add_q_proj = Linear(channels, channels)
        self.add_k_proj = Linear(channels, channels)
        self.add_v_proj = Linear(channels, channels)
        self.norm_added_q, self.norm_added_k = (_head_norm(channels // heads, qk_norm) for _ in range(2))
        self.to_out = nn.ModuleList([Linear(channels, channels)])  # a list because diffusers' key is to_out.0
        self.to_add_out = None if context_pre_only else Linear(channels, channels)

    def forward(self, x: Tensor, text: Tensor, rope: RotaryTables | None = None) -> tuple[Tensor, Tensor | None]:
        """Image x (N, L, C) and text (N, M, C) -> the same, None for a text that does not attend.

        The rows of `rope` are those of the text, then those of the image.
        """
        text_rope, rope = (None, None) if rope is None else _split(rope, text.shape[1])
        query, key, value = self.project(x, rope)
        text_query, text_key, text_value = (
            _heads(project(text), self.heads) for project in (self.add_q_proj, self.add_k_proj, self.add_v_proj)
        )
        text_query, text_key = _normalise(text_query, text_key, self.norm_added_q, self.norm_added_k, text_rope)
        key, value = torch.cat((text_key, key), dim=1), torch.cat((text_value, value), dim=1)
        # Each with its own call: a joint one would have to gather the queries and take its result apart again, which is
        # 3 % of the time at SD3's size on a CPU (with the backward pass they are even).
        y = self.to_out[0](ops.attention(query, key, value).flatten(2))
        if self.to_add_out is None:
            return y, None
        return y, self.to_add_out(ops.attention(text_query, key, value).flatten(2))


def _head_norm(head_dim: int, wanted: bool) -> nn.RMSNorm | None:
    """Holds the weight; the kernel does its work."""
    return nn.RMSNorm(head_dim, _QK_EPS) if wanted else None


def _heads(projected: Tensor, heads: int) -> Tensor:
    return projected.unflatten(-1, (heads, -1))


def _normalise(
    query: Tensor, key: Tensor, norm_q: nn.RMSNorm | None, norm_k: nn.RMSNorm | None, rope: RotaryTables | None
) -> tuple[Tensor, Tensor]:
    if norm_q is None or norm_k is None:
        return query, key
    if rope is None:
        nothing = query.new_empty((query.shape[1], 0), dtype=torch.float32)
        rope = (nothing, nothing)
    return ops.qk_norm_rope(query, key, norm_q.weight, norm_k.weight, *rope, eps=_QK_EPS)


def _split(rope: RotaryTables, tokens: int) -> tuple[RotaryTables, RotaryTables]:
    cos, sin = rope
    return (cos[..., :tokens, :], sin[..., :tokens, :]), (cos[..., tokens:, :], sin[..., tokens:, :])
