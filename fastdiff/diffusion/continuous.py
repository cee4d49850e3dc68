"""Processes in continuous time: the SDEs of the score-based view, and EDM.

Each is the solution of ``dx = f(t) x dt + g(t) dw`` (arXiv:2011.13456), written by its alpha and sigma.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


class _UnscaledState:
    """What the processes share whose state is in units of data."""

    def data_scale(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time_from_unit(self, u: Tensor) -> Tensor:
        return self.last_time + (self.first_time - self.last_time) * u  # type: ignore[attr-defined]


@dataclass(frozen=True)
class VP(_UnscaledState):
    """The variance-preserving SDE (arXiv:2011.13456, equations 32 and 33): DDPM in continuous time, 0 <= t <= 1.

    ``alpha(t) = exp(-(beta_max - beta_min) t^2 / 4 - beta_min t / 2)``. The network is told
    ``timestep_scale * t``; it is trained on t >= epsilon.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    epsilon: float = 1e-3
    timestep_scale: float = 999.0

    @property
    def first_time(self) -> float:
        return 1.0

    @property
    def last_time(self) -> float:
        return self.epsilon

    def _integral(self, t: Tensor) -> Tensor:
        """-2 log alpha: the integral of beta from 0 to t."""
        return 0.5 * (self.beta_max - self.beta_min) * t**2 + self.beta_min * t

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def time_at(self, ratio: Tensor) -> Tensor:
        return self._time_of_integral(torch.log1p(ratio**2))

    def _time_of_integral(self, integral: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * integral))

    def start_scale(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def timestep(self, t: Tensor) -> Tensor:
        return self.timestep_scale * t

    def time_of_timestep(self, timestep: Tensor) -> Tensor:
        return timestep / self.timestep_scale


@dataclass(frozen=True)
class SubVP(VP):
    """The sub-VP SDE (arXiv:2011.13456, equation 35): alpha of :class:`VP`, ``sigma = 1 - alpha^2``."""

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._integral(t))

    def time_at(self, ratio: Tensor) -> Tensor:
        # alpha^2 + ratio * alpha - 1 = 0
        alpha = 2 / (ratio + torch.sqrt(ratio**2 + 4))
        return self._time_of_integral(-2 * alpha.log())

    def start_scale(self, t: Tensor) -> Tensor:
        return self.sigma(t)


@dataclass(frozen=True)
class CosineVP(_UnscaledState):
    """``alpha = cos(pi t / 2)``, ``sigma = sin(pi t / 2)``: the path of v-diffusion (arXiv:2202.00512), 0 <= t <= 1."""

    timestep_scale: float = 1.0

    @property
    def first_time(self) -> float:
        return 1.0

    @property
    def last_time(self) -> float:
        return 1e-3

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * (1 - t))  # exactly 0 at t = 1, as the cosine would not be

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * t)

    def time_at(self, ratio: Tensor) -> Tensor:
        return torch.atan(ratio) * (2 / math.pi)

    def start_scale(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def timestep(self, t: Tensor) -> Tensor:
        return self.timestep_scale * t

    def time_of_timestep(self, timestep: Tensor) -> Tensor:
        return timestep / self.timestep_scale


@dataclass(frozen=True)
class VE(_UnscaledState):
    """The variance-exploding SDE (arXiv:2011.13456, equation 31): alpha 1, sigma geometric in 0 <= t <= 1.

    The network is told sigma.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    @property
    def first_time(self) -> float:
        return 1.0

    @property
    def last_time(self) -> float:
        return 0.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def time_at(self, ratio: Tensor) -> Tensor:
        return torch.log(ratio / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)

    def start_scale(self, t: Tensor) -> Tensor:
        return self.sigma(t)

    def timestep(self, t: Tensor) -> Tensor:
        return self.sigma(t)

    def time_of_timestep(self, timestep: Tensor) -> Tensor:
        return self.time_at(timestep)


@dataclass(frozen=True)
class EDM:
    """The process of EDM (arXiv:2206.00364) with its input scaling: t is EDM's sigma.

    ``x_t = c_in(t) * (x0 + t * eps)`` with ``c_in = 1 / sqrt(t^2 + sigma_data^2)``: the state is what the network F
    is given (table 1), and what it is told is ``c_noise = ln(t) / 4``. With the prediction "edm" this is EDM's whole
    preconditioning. Samples come out in units of data. For a network that takes the unscaled ``x0 + t * eps`` use
    :class:`VE`.

    Args:
        sigma_data: deviation of the data.
        sigma_min, sigma_max: the range of t for sampling.
        p_mean, p_std: training draws ln(t) from N(p_mean, p_std^2).
        timestep_scale: the network is told ``timestep_scale * ln(t)``; 1/4 in EDM, 250 in consistency models.
    """

    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    p_mean: float = -1.2
    p_std: float = 1.2
    timestep_scale: float = 0.25

    @property
    def first_time(self) -> float:
        return self.sigma_max

    @property
    def last_time(self) -> float:
        return self.sigma_min

    def alpha(self, t: Tensor) -> Tensor:
        return 1 / self.data_scale(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t / self.data_scale(t)

    def time_at(self, ratio: Tensor) -> Tensor:
        return ratio

    def data_scale(self, t: Tensor) -> Tensor:
        return torch.sqrt(t**2 + self.sigma_data**2)

    def start_scale(self, t: Tensor) -> Tensor:
        return self.sigma(t)

    def time_from_unit(self, u: Tensor) -> Tensor:
        # The quantile 0 is sigma = 0, of which a network cannot be told: the smallest that float64 tells from it.
        return torch.exp(self.p_mean + self.p_std * torch.special.ndtri(u.clamp(min=1e-16)))

    def timestep(self, t: Tensor) -> Tensor:
        return self.timestep_scale * t.log()

    def time_of_timestep(self, timestep: Tensor) -> Tensor:
        return torch.exp(timestep / self.timestep_scale)
