"""Embeddings of the timestep."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of geometrically spaced frequencies (arXiv:1706.03762, section 3.5): (N,) -> (N, channels).

    Args:
        channels: width of the embedding; must be even.
        flip_sin_to_cos: cosines first. False in DDPM (arXiv:2006.11239), True in latent diffusion and after.
        freq_shift: 1 makes the slowest frequency exactly 1/max_period (DDPM), 0 does not (latent diffusion).
    """

    def __init__(self, channels: int, flip_sin_to_cos: bool, freq_shift: float, max_period: float = 10000.0) -> None:
        super().__init__()
        self.channels = channels
        self.flip_sin_to_cos = flip_sin_to_cos
        self.freq_shift = freq_shift
        self.max_period = max_period

    def forward(self, timestep: Tensor) -> Tensor:
        half = self.channels // 2
        # float32 whatever the model's dtype: bfloat16 would round timestep 750 to 752.
        index = torch.arange(half, dtype=torch.float32, device=timestep.device)
        frequencies = torch.exp(-math.log(self.max_period) / (half - self.freq_shift) * index)
        angle = timestep.float()[:, None] * frequencies
        parts = (angle.cos(), angle.sin()) if self.flip_sin_to_cos else (angle.sin(), angle.cos())
        return torch.cat(parts, dim=-1)


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
