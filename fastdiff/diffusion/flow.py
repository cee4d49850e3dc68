"""Flow matching's straight path, and the shifts of its times."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FlowMatching:
    """The straight path of flow matching and rectified flow (arXiv:2210.02747 CondOT, arXiv:2209.03003).

    ``x_t = (1 - t) * x0 + t * eps``: t = 0 is data and t = 1 is noise, as in Stable Diffusion 3 (arXiv:2403.03206).

    Args:
        timestep_scale: the network is told ``timestep_scale * t``.
    """

    timestep_scale: float = 1000.0

    @property
    def first_time(self) -> float:
        return 1.0

    @property
    def last_time(self) -> float:
        return 1e-3

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time_at(self, ratio: Tensor) -> Tensor:
        return 1 / (1 + 1 / ratio)  # and not ratio / (1 + ratio): at t = 1 the ratio is infinite

    def data_scale(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def start_scale(self, t: Tensor) -> Tensor:
        return t

    def time_from_unit(self, u: Tensor) -> Tensor:
        return u

    def timestep(self, t: Tensor) -> Tensor:
        return self.timestep_scale * t

    def time_of_timestep(self, timestep: Tensor) -> Tensor:
        return timestep / self.timestep_scale


def shifted_time(t: Tensor, shift: float) -> Tensor:
    """``shift * t / (1 + (shift - 1) * t)``: more of the path at high noise, for larger images.

    arXiv:2403.03206, equation 23; there the shift for a resolution is sqrt(pixels / pixels of the base resolution).
    """
    if shift <= 0:
        raise ValueError(f"shift must be positive, got {shift}")
    return shift * t / (1 + (shift - 1) * t)


def resolution_shift(pixels: int, base_pixels: int) -> float:
    """The shift for images of `pixels` and a model trained at `base_pixels` (arXiv:2403.03206, equation 23)."""
    return math.sqrt(pixels / base_pixels)


def dynamic_shift(
    tokens: int, *, base_tokens: int = 256, max_tokens: int = 4096, base_mu: float = 0.5, max_mu: float = 1.15
) -> float:
    """FLUX's shift for a number of image tokens: exp(mu), with mu linear in the number of tokens."""
    slope = (max_mu - base_mu) / (max_tokens - base_tokens)
    return math.exp(base_mu + slope * (tokens - base_tokens))
