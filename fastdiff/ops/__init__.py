"""The fused kernels as functions. Each has the name and signature of its definition in fastdiff.reference."""

from fastdiff.ops.attention import attention
from fastdiff.ops.group_norm_silu import group_norm_silu
from fastdiff.ops.sampler_step import sampler_step

__all__ = ["attention", "group_norm_silu", "sampler_step"]
