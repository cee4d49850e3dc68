"""The networks of the field on the fused ops, with diffusers' configuration and state_dict keys."""

from fastdiff.models.dit import DiTTransformer2DConfig, DiTTransformer2DModel
from fastdiff.models.flux import FluxTransformer2DConfig, FluxTransformer2DModel
from fastdiff.models.sd3 import SD3Transformer2DConfig, SD3Transformer2DModel
from fastdiff.models.transformer_blocks import Transformer2DOutput
from fastdiff.models.unet_2d import UNet2DConfig, UNet2DModel, UNet2DOutput

__all__ = [
    "DiTTransformer2DConfig",
    "DiTTransformer2DModel",
    "FluxTransformer2DConfig",
    "FluxTransformer2DModel",
    "SD3Transformer2DConfig",
    "SD3Transformer2DModel",
    "Transformer2DOutput",
    "UNet2DConfig",
    "UNet2DModel",
    "UNet2DOutput",
]
