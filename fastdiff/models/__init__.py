"""The networks of the field on the fused ops, with diffusers' configuration and state_dict keys."""

from fastdiff.models.unet_2d import UNet2DConfig, UNet2DModel, UNet2DOutput

__all__ = ["UNet2DConfig", "UNet2DModel", "UNet2DOutput"]
