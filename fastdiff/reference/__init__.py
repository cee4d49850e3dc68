"""The pure-PyTorch definition of every op: same names, same signatures, any floating dtype.

This package is the source of truth. The kernels are tested against it in float64, the benchmarks import
their baselines from it, and ``with fastdiff.use_reference():`` runs it in place of the kernels.
"""

from fastdiff.reference.add_noise import add_noise
from fastdiff.reference.attention import attention
from fastdiff.reference.gate_residual import gate_residual
from fastdiff.reference.geglu import geglu
from fastdiff.reference.group_norm_silu import group_norm_silu
from fastdiff.reference.layer_norm_modulate import layer_norm_modulate
from fastdiff.reference.philox import philox_bits, philox_normal, philox_uniform
from fastdiff.reference.qk_norm_rope import qk_norm_rope
from fastdiff.reference.sampler_step import StepColumn, sampler_step, sampler_step_
from fastdiff.reference.timestep_embedding import timestep_embedding

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
