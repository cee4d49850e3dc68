"""The fused kernels as functions. Each has the name and signature of its definition in fastdiff.reference."""

from fastdiff.ops.attention import attention
from fastdiff.ops.group_norm_silu import group_norm_silu
from fastdiff.ops.qk_norm_rope import qk_norm_rope
from fastdiff.ops.sampler_step import sampler_step
from fastdiff.ops.timestep_embedding import timestep_embedding

__all__ = ["attention", "group_norm_silu", "qk_norm_rope", "sampler_step", "timestep_embedding"]
