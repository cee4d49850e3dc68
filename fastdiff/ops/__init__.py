"""The fused kernels as functions. Each has the name and signature of its definition in fastdiff.reference."""

from fastdiff.ops.attention import attention
from fastdiff.ops.gate_residual import gate_residual
from fastdiff.ops.geglu import geglu
from fastdiff.ops.group_norm_silu import group_norm_silu
from fastdiff.ops.layer_norm_modulate import layer_norm_modulate
from fastdiff.ops.qk_norm_rope import qk_norm_rope
from fastdiff.ops.sampler_step import sampler_step
from fastdiff.ops.timestep_embedding import timestep_embedding

__all__ = [
    "attention",
    "gate_residual",
    "geglu",
    "group_norm_silu",
    "layer_norm_modulate",
    "qk_norm_rope",
    "sampler_step",
    "timestep_embedding",
]
