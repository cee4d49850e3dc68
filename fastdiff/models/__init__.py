"""The networks of the field on the fused ops, with the configuration and state_dict keys of diffusers or NVlabs."""

from fastdiff.models.autoencoder import DecoderOutput
from fastdiff.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig, AutoencoderKLOutput
from fastdiff.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig, AutoencoderTinyOutput
from fastdiff.models.diagonal_gaussian import DiagonalGaussianDistribution
from fastdiff.models.dit import DiTTransformer2DConfig, DiTTransformer2DModel
from fastdiff.models.edm2 import EDM2UNet, EDM2UNetConfig
from fastdiff.models.edm_precond import (
    EDM2Precond,
    EDM2PrecondConfig,
    EDMPrecond,
    EDMPrecondConfig,
    IDDPMPrecond,
    IDDPMPrecondConfig,
    VEPrecond,
    VEPrecondConfig,
    VPPrecond,
    VPPrecondConfig,
)
from fastdiff.models.edm_unets import DhariwalUNet, DhariwalUNetConfig, SongUNet, SongUNetConfig
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
    "DhariwalUNet",
    "DhariwalUNetConfig",
    "DiTTransformer2DConfig",
    "DiTTransformer2DModel",
    "DiagonalGaussianDistribution",
    "EDM2Precond",
    "EDM2PrecondConfig",
    "EDM2UNet",
    "EDM2UNetConfig",
    "EDMPrecond",
    "EDMPrecondConfig",
    "FluxTransformer2DConfig",
    "FluxTransformer2DModel",
    "IDDPMPrecond",
    "IDDPMPrecondConfig",
    "SD3Transformer2DConfig",
    "SD3Transformer2DModel",
    "SongUNet",
    "SongUNetConfig",
    "Transformer2DOutput",
    "UNet2DConditionConfig",
    "UNet2DConditionModel",
    "UNet2DConditionOutput",
    "UNet2DConfig",
    "UNet2DModel",
    "UNet2DOutput",
    "VEPrecond",
    "VEPrecondConfig",
    "VPPrecond",
    "VPPrecondConfig",
]
