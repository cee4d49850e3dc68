"""The pure-PyTorch definition of every op: same names, same signatures, any floating dtype.

from fastdiff.reference.attention import attention
from fastdiff.reference.gate_residual import gate_residual
from fastdiff.reference.geglu import geglu
from fastdiff.reference.group_norm_silu import group_norm_silu
from fastdiff.reference.layer_norm_modulate import layer_norm_modulate
from fastdiff.reference.sampler_step import sampler_step

__all__ = ["attention", "gate_residual", "geglu", "group_norm_silu", "layer_norm_modulate", "sampler_step"]
