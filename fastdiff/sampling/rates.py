"""How fast a process changes: what ODEs and SDEs are made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.diffusion import DiscreteVP, Process


@dataclass(frozen=True)
class Rates:
    """alpha, sigma and their derivatives in time at some times, all (n,) float64."""

    alpha: Tensor
    sigma: Tensor
    alpha_rate: Tensor
    sigma_rate: Tensor

    @property
    def drift(self) -> Tensor:
        """f of the process's SDE ``dx = f x dt + g dw``: (log alpha)'."""
        return self.alpha_rate / self.alpha

    @property
    def diffusion(self) -> Tensor:
        """g of that SDE: ``g^2 = (sigma^2)' - 2 f sigma^2``."""
        return torch.sqrt((2 * self.sigma * (self.sigma_rate - self.drift * self.sigma)).clamp(min=0))


def rates(process: Process, times: Tensor) -> Rates:
    """The process's rates at `times`, (n,) float64. ValueError for a process in discrete time."""
    if isinstance(process, DiscreteVP):
        raise ValueError("process must be in continuous time, got DiscreteVP: its continuous form is VP")
    with torch.enable_grad():
        t = times.detach().requires_grad_()
        values = [process.alpha(t) + 0 * t, process.sigma(t) + 0 * t]  # a constant has no gradient of its own
        slopes = [torch.autograd.grad(value.sum(), t)[0] for value in values]
    return Rates(*(value.detach() for value in values), *slopes)
