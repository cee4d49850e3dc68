"""Forward processes: ``x_t = alpha(t) * x0 + sigma(t) * eps`` with eps standard normal."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor


class Process(Protocol):
    """What the samplers and the training loop ask of a process. All tensors are float64 on the host."""

    def alpha(self, t: Tensor) -> Tensor:
        """Signal coefficient at the times `t`."""
        ...

    def sigma(self, t: Tensor) -> Tensor:
        """Noise coefficient at the times `t`."""
        ...

    def time_from_unit(self, u: Tensor) -> Tensor:
        """The time at the quantile u in [0, 1) of the process's own uniform distribution, for training."""
        ...

    def timestep(self, t: Tensor) -> Tensor:
        """What the network is told at time `t`: on the scale of 0 to 1000 that time embeddings are made for."""
        ...


@dataclass(frozen=True)
class DiscreteVP:
    """The variance-preserving process of DDPM (arXiv:2006.11239): alpha^2 + sigma^2 = 1 at whole-numbered times.

    ``alpha(t)^2 = prod_{s <= t} (1 - beta_s)`` for t in 0 ... num_train_timesteps - 1, and t = -1 is clean data.

    Args:
        schedule: "linear" (DDPM), "scaled_linear" (linear in sqrt(beta), latent diffusion) or
            "cosine" (arXiv:2102.09672, equation 17, beta at most 0.999; takes no beta_start and beta_end).
        beta_start, beta_end: first and last beta of the two linear schedules.
        num_train_timesteps: length of the schedule.
    """

    schedule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    num_train_timesteps: int = 1000

    def __post_init__(self) -> None:
        if self.schedule not in ("linear", "scaled_linear", "cosine"):
            raise ValueError(f"schedule must be 'linear', 'scaled_linear' or 'cosine', got {self.schedule!r}")
        if self.num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps must be at least 1, got {self.num_train_timesteps}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"beta_start and beta_end must satisfy 0 < beta_start <= beta_end < 1, "
                f"got {self.beta_start} and {self.beta_end}"
            )

    @cached_property
    def betas(self) -> Tensor:
        """(num_train_timesteps,) float64."""
        steps = self.num_train_timesteps
        if self.schedule == "linear":
            return torch.linspace(self.beta_start, self.beta_end, steps, dtype=torch.float64)
        if self.schedule == "scaled_linear":
            return torch.linspace(self.beta_start**0.5, self.beta_end**0.5, steps, dtype=torch.float64) ** 2
        u = torch.arange(steps + 1, dtype=torch.float64) / steps
        alpha_bar = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)

    @cached_property
    def _alpha_bar(self) -> Tensor:
        """Squared signal coefficients with that of clean data in front, so that time t is entry t + 1."""
        return torch.cat((torch.ones(1, dtype=torch.float64), torch.cumprod(1 - self.betas, 0)))

    def alpha(self, t: Tensor) -> Tensor:
        return self._alpha_bar[self._index(t)].sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self._alpha_bar[self._index(t)]).sqrt()

    def time_from_unit(self, u: Tensor) -> Tensor:
        return (u * self.num_train_timesteps).floor().clamp(max=self.num_train_timesteps - 1)

    def timestep(self, t: Tensor) -> Tensor:
        return t

    def _index(self, t: Tensor) -> Tensor:
        index = t.long() + 1
        if (index != t + 1).any() or (index < 0).any() or (index > self.num_train_timesteps).any():
            raise ValueError(f"t must be whole numbers from -1 to {self.num_train_timesteps - 1}, got {t.tolist()}")
        return index


@dataclass(frozen=True)
class FlowMatching:
    """The straight path of flow matching and rectified flow (arXiv:2210.02747 CondOT, arXiv:2209.03003).

    ``x_t = (1 - t) * x0 + t * eps``: t = 0 is data and t = 1 is noise, as in Stable Diffusion 3 (arXiv:2403.03206).

    Args:
        timestep_scale: the network is told ``timestep_scale * t``.
    """

    timestep_scale: float = 1000.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time_from_unit(self, u: Tensor) -> Tensor:
        return u

    def timestep(self, t: Tensor) -> Tensor:
        return self.timestep_scale * t


PROCESSES: dict[str, type] = {"discrete_vp": DiscreteVP, "flow_matching": FlowMatching}


def process_to_dict(process: Process) -> dict[str, Any]:
    """The process as JSON-able values: its name in :data:`PROCESSES` and its fields."""
    (name,) = (name for name, kind in PROCESSES.items() if type(process) is kind)
    return {"name": name, **dataclasses.asdict(process)}  # type: ignore[call-overload]


def process_from_dict(values: dict[str, Any]) -> Process:
    """The inverse of :func:`process_to_dict`. Raises ValueError for an unknown name or field."""
    fields = dict(values)
    name = fields.pop("name", None)
    if name not in PROCESSES:
        raise ValueError(f"process must have a name out of {sorted(PROCESSES)}, got {name!r}")
    known = [field.name for field in dataclasses.fields(PROCESSES[name])]
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ValueError(f"process {name!r} has no field {unknown[0]!r}; it has {known}")
    return PROCESSES[name](**fields)
