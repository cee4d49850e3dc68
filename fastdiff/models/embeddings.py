"""Embeddings of the timestep."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class GaussianFourierEmbedding(nn.Module):
    """Fixed random Fourier features of log(timestep) (arXiv:2011.13456, appendix C): (N,) -> (N, 2 * channels)."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels) * scale, requires_grad=False)

    def forward(self, timestep: Tensor) -> Tensor:
        angle = timestep.float().log()[:, None] * self.weight.float() * (2 * math.pi)
        return torch.cat((angle.sin(), angle.cos()), dim=-1)


class TimestepEmbedding(nn.Module):
    """The two-layer perceptron behind the raw embedding: (N, in_channels) -> (N, out_channels)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, out_channels)
        self.linear_2 = nn.Linear(out_channels, out_channels)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.linear_2(nn.functional.silu(self.linear_1(embedding)))
