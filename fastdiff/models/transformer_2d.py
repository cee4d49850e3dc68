"""The transformer between the residual blocks of a text-conditioned U-Net. Attribute names are diffusers' keys."""

from __future__ import annotations

from torch import Tensor, nn

from fastdiff import ops
from fastdiff.models.unet_blocks import Text
from fastdiff.nn import Attention, FeedForward, GroupNormSiLU, Linear

_GROUP_NORM_EPS = 1e-6  # whatever the eps of the U-Net's residual blocks


class Transformer2D(nn.Module):
    """Transformer blocks over the pixels of a feature map, with its residual: (N, C, H, W) -> (N, C, H, W).

    Args:
        layers: number of transformer blocks.
        groups: of the group norm.
        linear_projection: the projections in and out are linear layers (SD2, SDXL), not 1x1 convolutions (SD1). Only
            the shapes of the weights differ.
        only_cross_attention: the first attention of each block attends to the text, too.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        layers: int,
        cross_attention_dim: int,
        *,
        groups: int,
        linear_projection: bool,
        only_cross_attention: bool = False,
    ) -> None:
        super().__init__()
        self.norm = GroupNormSiLU(groups, channels, _GROUP_NORM_EPS, activation="identity")
        self.proj_in = _projection(channels, linear_projection)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, heads, cross_attention_dim, only_cross_attention) for _ in range(layers)
        )
        self.proj_out = _projection(channels, linear_projection)

    def forward(self, x: Tensor, text: Text) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (N, H*W, C), a view of a channels-last map
        tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens, text)
        tokens = self.proj_out(tokens)
        return x + tokens.transpose(1, 2).unflatten(-1, x.shape[2:])


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention to the text and a feed-forward network, each behind a norm and with a residual."""

    def __init__(self, channels: int, heads: int, cross_attention_dim: int, only_cross_attention: bool) -> None:
        super().__init__()
        first_dim = cross_attention_dim if only_cross_attention else None
        self.only_cross_attention = only_cross_attention
        self.norm1 = ResidualLayerNorm(channels)
        self.attn1 = Attention(channels, first_dim, heads, channels // heads)
        self.norm2 = ResidualLayerNorm(channels)
        self.attn2 = Attention(channels, cross_attention_dim, heads, channels // heads)
        self.norm3 = ResidualLayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, text: Text) -> Tensor:
        """x (N, L, C)."""
        y, _ = self.norm1(x)
        # As in diffusers, the lengths hold for the second attention only.
        y, x = self.norm2(self.attn1(y, text.hidden_states if self.only_cross_attention else None), x)
        y, x = self.norm3(self.attn2(y, text.hidden_states, text.lengths), x)
        return x + self.ff(y)


class ResidualLayerNorm(nn.LayerNorm):
    """The sum of a branch and its residual, and its layer norm, in one pass."""

    def forward(  # type: ignore[override]
        self, x: Tensor, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x and residual (N, L, C) -> the norm, and the sum."""
        neutral = x.new_zeros(x.shape[0], x.shape[2])
        return ops.layer_norm_modulate(
            x, neutral, neutral, residual=residual, eps=self.eps, weight=self.weight, bias=self.bias
        )


class PixelLinear(Linear):
    """A 1x1 convolution of a map as a linear layer of its pixels: only the weight's shape is the convolution's."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.weight = nn.Parameter(self.weight.detach()[:, :, None, None])

    @property
    def matrix(self) -> Tensor:
        return self.weight.flatten(1)


def _projection(channels: int, linear: bool) -> Linear:
    return Linear(channels, channels) if linear else PixelLinear(channels, channels)
