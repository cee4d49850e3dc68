"""The networks of the field on the fused ops, with diffusers' configuration and state_dict keys."""

from fastdiff.models.autoencoder import DecoderOutput
from fastdiff.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig, AutoencoderKLOutput
from fastdiff.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig, AutoencoderTinyOutput
from fastdiff.models.diagonal_gaussian import DiagonalGaussianDistribution
from fastdiff.models.dit import DiTTransformer2DConfig, DiTTransformer2DModel
from fastdiff.models.flux import FluxTransformer2DConfig, FluxTransformer2DModel
from fastdiff.models.sd3 import SD3Transformer2DConfig, SD3Transformer2DModel
from fastdiff.models.transformer_blocks import Transformer2DOutput
from fastdiff.models.unet_2d import UNet2DConfig, UNet2DModel, UNet2DOutput
from fastdiff.models.unet_2d_condition import UNet2DConditionConfig, UNet2DConditionModel, UNet2DConditionOutput

__all__ = [
    "AutoencoderKL",
    "AutoencoderKLConfig",
    "AutoencoderKLOutput",
    "AutoencoderTiny",
    "AutoencoderTinyConfig",
    "AutoencoderTinyOutput",
    "DecoderOutput",
    "DiTTransformer2DConfig",
    "DiTTransformer2DModel",
    "DiagonalGaussianDistribution",
    "FluxTransformer2DConfig",
    "FluxTransformer2DModel",
    "SD3Transformer2DConfig",
    "SD3Transformer2DModel",
    "Transformer2DOutput",
    "UNet2DConditionConfig",
    "UNet2DConditionModel",
    "UNet2DConditionOutput",
    "UNet2DConfig",
    "UNet2DModel",
    "UNet2DOutput",
]
