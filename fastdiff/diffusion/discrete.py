"""DDPM's process in discrete time, and its schedules of beta."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

SCHEDULES = ("linear", "scaled_linear", "cosine", "sigmoid")


_LOG_RATIO_TOLERANCE = 1e-3  # published levels have three digits


@dataclass(frozen=True)
class DiscreteVP:
    """The variance-preserving process of DDPM (arXiv:2006.11239): alpha^2 + sigma^2 = 1 at whole-numbered times.

    ``alpha(t)^2 = prod_{s <= t} (1 - beta_s)`` for t in 0 ... num_train_timesteps - 1, and t = -1 is clean data.
    Between whole numbers from 0 on, log(sigma / alpha) is linear in t, as in k-diffusion.

    Args:
        schedule: "linear" (DDPM), "scaled_linear" (linear in sqrt(beta), latent diffusion), "cosine"
            (arXiv:2102.09672, equation 17) or "sigmoid" (arXiv:2212.11972, start -3, end 3, tau 1). The last two have
            beta at most 0.999 and take no beta_start and beta_end.
        beta_start, beta_end: first and last beta of the two linear schedules.
        num_train_timesteps: length of the schedule.
        zero_terminal_snr: shift and scale alpha so that the last time is pure noise (arXiv:2305.08891, algorithm 1).
            Epsilon then says nothing of x0 there: it takes a network that predicts "v" or "sample".
    """

    schedule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    num_train_timesteps: int = 1000
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {list(SCHEDULES)}, got {self.schedule!r}")
        if self.num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps must be at least 1, got {self.num_train_timesteps}")
        if self.zero_terminal_snr and self.num_train_timesteps < 2:
            raise ValueError("num_train_timesteps must be at least 2 with zero_terminal_snr, got 1")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"beta_start and beta_end must satisfy 0 < beta_start <= beta_end < 1, "
                f"got {self.beta_start} and {self.beta_end}"
            )

    @property
    def first_time(self) -> float:
        return self.num_train_timesteps - 1.0

    @property
    def last_time(self) -> float:
        return 0.0

    @cached_property
    def betas(self) -> Tensor:
        """(num_train_timesteps,) float64."""
        return 1 - self._alpha_bar[1:] / self._alpha_bar[:-1]

    @cached_property
    def _alpha_bar(self) -> Tensor:
        """Squared signal coefficients with that of clean data in front, so that time t is entry t + 1."""
        steps = self.num_train_timesteps
        if self.schedule == "linear":
            betas = torch.linspace(self.beta_start, self.beta_end, steps, dtype=torch.float64)
        elif self.schedule == "scaled_linear":
            betas = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, steps, dtype=torch.float64) ** 2
        else:
            u = torch.arange(steps + 1, dtype=torch.float64) / steps
            alpha_bar = _cosine(u) if self.schedule == "cosine" else _sigmoid(u)
            betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
        alpha_bar = torch.cumprod(1 - betas, 0)
        if self.zero_terminal_snr:
            alpha = alpha_bar.sqrt()
            alpha_bar = ((alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))) ** 2
        return torch.cat((torch.ones(1, dtype=torch.float64), alpha_bar))

    def alpha(self, t: Tensor) -> Tensor:
        whole, between = self._index(t)
        exact = self._alpha_bar[whole].sqrt()
        return exact if between is None else torch.where(t == whole - 1, exact, (1 + self._ratio(between) ** 2) ** -0.5)

    def sigma(self, t: Tensor) -> Tensor:
        whole, between = self._index(t)
        exact = (1 - self._alpha_bar[whole]).sqrt()
        return (
            exact if between is None else torch.where(t == whole - 1, exact, (1 + self._ratio(between) ** -2) ** -0.5)
        )

    def time_at(self, ratio: Tensor) -> Tensor:
        log_ratio = torch.as_tensor(ratio, dtype=torch.float64).log()
        low, high = self._log_ratios[0] - _LOG_RATIO_TOLERANCE, self._log_ratios[-1] + _LOG_RATIO_TOLERANCE
        if not ((low <= log_ratio) & (log_ratio <= high)).all():
            raise ValueError(
                f"sigma / alpha must be within the process's {math.exp(self._log_ratios[0]):.4g} to "
                f"{math.exp(self._log_ratios[-1]):.4g}, got {torch.as_tensor(ratio).tolist()}"
            )
        return torch.as_tensor(np.interp(log_ratio, self._log_ratios, np.arange(self.num_train_timesteps)))

    def data_scale(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def start_scale(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time_from_unit(self, u: Tensor) -> Tensor:
        return (u * self.num_train_timesteps).floor().clamp(max=self.num_train_timesteps - 1)

    def timestep(self, t: Tensor) -> Tensor:
        return t

    def time_of_timestep(self, timestep: Tensor) -> Tensor:
        return timestep

    @cached_property
    def _log_ratios(self) -> np.ndarray:
        """log(sigma / alpha) at the times 0, 1, ..."""
        alpha_bar = self._alpha_bar[1:]
        return (0.5 * ((1 - alpha_bar).log() - alpha_bar.log())).numpy()

    def _ratio(self, t: Tensor) -> Tensor:
        return torch.as_tensor(np.interp(t, np.arange(self.num_train_timesteps), self._log_ratios)).exp()

    def _index(self, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """The entry of _alpha_bar at or below each time, and the times themselves if any is not a whole number."""
        index = t.floor().long() + 1
        fraction = index != t + 1
        if (index < 0).any() or (t > self.num_train_timesteps - 1).any() or (fraction & (index < 1)).any():
            raise ValueError(f"t must be -1 or from 0 to {self.num_train_timesteps - 1}, got {t.tolist()}")
        return index, t if fraction.any() else None


def _cosine(u: Tensor) -> Tensor:
    return torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2


def _sigmoid(u: Tensor, start: float = -3.0, end: float = 3.0) -> Tensor:
    low, high = (torch.sigmoid(torch.tensor(x, dtype=torch.float64)) for x in (start, end))
    return (high - torch.sigmoid(start + u * (end - start))) / (high - low)
