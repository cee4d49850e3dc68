"""Fused CPU and CUDA kernels for diffusion models, and the models, samplers and training built from them."""

from fastdiff import diffusion, models, nn, ops, pipelines, reference, sampling, training
from fastdiff._build_info import build_info
from fastdiff._switch import use_reference
from fastdiff._version import __version__
from fastdiff.allocator import tune_allocator

__all__ = [
    "__version__",
    "build_info",
    "diffusion",
    "models",
    "nn",
    "ops",
    "pipelines",
    "reference",
    "sampling",
    "training",
    "tune_allocator",
    "use_reference",
]
