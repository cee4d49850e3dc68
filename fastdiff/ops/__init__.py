"""The fused kernels as functions. Each has the name and signature of its definition in fastdiff.reference."""

from fastdiff.ops.add_noise import add_noise
from fastdiff.ops.attention import attention
from fastdiff.ops.gate_residual import gate_residual
from fastdiff.ops.geglu import geglu
from fastdiff.ops.group_norm_silu import group_norm_silu
from fastdiff.ops.layer_norm_modulate import layer_norm_modulate
from fastdiff.ops.philox import philox_bits, philox_normal, philox_uniform
from fastdiff.ops.qk_norm_rope import qk_norm_rope
from fastdiff.ops.sampler_step import StepColumn, sampler_step, sampler_step_
from fastdiff.ops.timestep_embedding import timestep_embedding

__all__ = [
    "StepColumn",
    "add_noise",
    "attention",
    "gate_residual",
    "geglu",
    "group_norm_silu",
    "layer_norm_modulate",
    "philox_bits",
    "philox_normal",
    "philox_uniform",
    "qk_norm_rope",
    "sampler_step",
    "sampler_step_",
    "timestep_embedding",
]
