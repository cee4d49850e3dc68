"""Drop-in torch modules on the fused ops."""

from fastdiff.nn.ada_layer_norm import (
    AdaLayerNormContinuous,
    AdaLayerNormZero,
    AdaLayerNormZeroSingle,
    SD35AdaLayerNormZeroX,
)
from fastdiff.nn.attention import Attention
from fastdiff.nn.conv import Conv2d
from fastdiff.nn.feed_forward import GEGLU, FeedForward
from fastdiff.nn.group_norm_silu import GroupNormSiLU
from fastdiff.nn.linear import Linear
from fastdiff.nn.timesteps import Timesteps

__all__ = [
    "GEGLU",
    "AdaLayerNormContinuous",
    "AdaLayerNormZero",
    "AdaLayerNormZeroSingle",
    "Attention",
    "Conv2d",
    "FeedForward",
    "GroupNormSiLU",
    "Linear",
    "SD35AdaLayerNormZeroX",
    "Timesteps",
]
