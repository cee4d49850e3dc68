"""What goes into an autoencoder, either way, in its tests."""

from __future__ import annotations

import torch
from model_parity import Inputs
from torch import Tensor, nn


def image(model: nn.Module, batch: int = 3, height: int = 24, width: int = 40) -> dict[str, Tensor]:
    return {"sample": _noise(batch, model.config.in_channels, height, width)}


def latents(model: nn.Module, batch: int = 3, height: int = 6, width: int = 10) -> dict[str, Tensor]:
    return {"latents": 2 * _noise(batch, model.config.latent_channels, height, width)}


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def decode(model: nn.Module, inputs: Inputs) -> Tensor:
    return model.decode(inputs["latents"]).sample
