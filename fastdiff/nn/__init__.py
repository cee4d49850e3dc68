"""Drop-in torch modules on the fused ops."""

from fastdiff.nn.attention import Attention
from fastdiff.nn.group_norm_silu import GroupNormSiLU
from fastdiff.nn.timesteps import Timesteps

__all__ = ["Attention", "GroupNormSiLU", "Timesteps"]
