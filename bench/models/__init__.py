"""The models that `bench/run.py models` measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class BenchModel:
    """A network at the size people run, with random weights."""

    class_name: str
    """In fastdiff.models and in diffusers."""
    config: Mapping[str, Any]
    inputs: Callable[[], tuple[Tensor, ...]]
    """Arguments of the method, in float32; those of other dtypes stay as they are."""
    method: str = "forward"
    channels_last: bool = True
    """Run so, on both sides; the inputs too."""


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


MODELS = {
    "icons_unet": BenchModel(
        "UNet2DModel",
        {
            "sample_size": 16,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (32, 64, 128),
            "layers_per_block": 1,
            "attention_head_dim": 32,
            "norm_num_groups": 8,
        },
        lambda: (_noise(16, 3, 16, 16), torch.full((16,), 500.0)),
    ),
    "sd15_unet": BenchModel(
        "UNet2DConditionModel",
        {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        lambda: (_noise(2, 4, 64, 64), torch.full((2,), 500.0), _noise(2, 77, 768)),
    ),
    "dit_xl_2": BenchModel(
        "DiTTransformer2DModel",
        {"sample_size": 32, "in_channels": 4, "out_channels": 8},
        lambda: (_noise(2, 4, 32, 32), torch.full((2,), 500), torch.tensor([1, 2])),
        channels_last=False,
    ),
    "sd_vae_decode": BenchModel(
        "AutoencoderKL",
        {
            "block_out_channels": (128, 256, 512, 512),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 2,
            "sample_size": 512,
        },
        lambda: (_noise(1, 4, 64, 64),),
        method="decode",
    ),
}


def fill(model: nn.Module) -> None:
    """Random weights that keep activations of order 1, in a fraction of the time of PyTorch's own."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.normal_(0, fan_in**-0.5, generator=generator)
            else:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
