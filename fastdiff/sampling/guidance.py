"""Guidance: steering a sampler by more than one prediction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.diffusion import get_prediction
from fastdiff.sampling.denoiser import Denoiser
from fastdiff.sampling.schedule import Level


@dataclass(frozen=True)
class Guidance:
    """``guided = u + scale * (p - u)``: away from a weaker prediction u, through and beyond the prediction p.

    Classifier-free guidance if `denoiser` is the network without its condition (arXiv:2207.12598), a negative prompt if
    it is the network with another condition, autoguidance if it is a smaller or less trained network
    (arXiv:2406.02507). Done inside the step's own pass over memory.

    Args:
        denoiser: returns u; a :class:`PairedDenoiser` if one network call evaluates both.
        scale: 1 is no guidance; or a function of the :class:`Level` that returns the scale there.
        rescale: phi of arXiv:2305.08891, section 3.4: how much of the guided prediction is scaled back to the
            deviation of p, for each sample.
        interval: guide only where sigma / alpha lies in (low, high] (arXiv:2404.07724); elsewhere `denoiser` is not
            called.
    """

    denoiser: Denoiser
    scale: float | Callable[[Level], float]
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, math.inf)

    def scale_at(self, level: Level) -> float:
        """The guidance scale at a noise level: 1 outside the interval."""
        low, high = self.interval
        if not (low < level.ratio <= high):
            return 1.0
        return self.scale(level) if callable(self.scale) else self.scale


@dataclass
class ProjectedGuidance:
    """Adaptive projected guidance, APG (arXiv:2410.02416, algorithm 1): strong guidance without oversaturation.

    The difference of the two x0 is given momentum, bounded in norm, and shortened along x0 itself.

    Args:
        denoiser: returns u, as for :class:`Guidance`.
        scale: w; 1 is no guidance.
        eta: what is left of the part along x0; 1 with no momentum and no bound is classifier-free guidance.
        norm_bound: r, on the norm of the difference over a sample.
        momentum: beta, negative in the paper (-0.5).
    """

    denoiser: Denoiser
    scale: float
    eta: float = 0.0
    norm_bound: float = math.inf
    momentum: float = 0.0

    def guided(
        self, x: Tensor, p: Tensor, u: Tensor, level: Level, prediction: str, average: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(guided prediction, running average of the differences), all (N, ...)."""
        (of_x, of_p), _ = _solved(prediction, level)
        x0, difference = of_x * x + of_p * p, of_p * (p - u)
        average = difference if average is None else difference + self.momentum * average
        difference, x0 = average.flatten(1), x0.flatten(1)
        norm = difference.norm(dim=1, keepdim=True)
        # A norm of zero needs no bound and has no direction.
        difference = difference * (self.norm_bound / norm).clamp(max=1.0).nan_to_num(1.0)
        direction = torch.nn.functional.normalize(x0, dim=1)
        along = (difference * direction).sum(1, keepdim=True) * direction
        update = (difference - along + self.eta * along).view_as(p)
        return p + ((self.scale - 1) / of_p) * update, average


@dataclass(frozen=True)
class ClassifierGuidance:
    """Classifier guidance (arXiv:2105.05233, algorithm 2): ``eps' = eps - scale * sigma * grad log p(y | x_t)``.

    Args:
        log_probability: (x (N, ...), timestep (N,)) -> (N,) log p(y | x_t), differentiable in x.
        scale: s; 1 samples from p(x) p(y | x).
    """

    log_probability: Callable[[Tensor, Tensor], Tensor]
    scale: float = 1.0

    def guided(self, x: Tensor, timestep: Tensor, p: Tensor, level: Level, prediction: str) -> Tensor:
        """The guided prediction, (N, ...)."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_probability(x, timestep).sum(), x)
        (_, _), (_, of_p) = _solved(prediction, level)  # eps = ... + of_p * p
        return p - (self.scale * level.sigma / of_p) * gradient


def _solved(prediction: str, level: Level) -> list[list[float]]:
    """The rows ((x0 of x, x0 of p), (eps of x, eps of p)) at `level`."""
    alpha, sigma = torch.tensor([level.alpha, level.sigma], dtype=torch.float64)
    return get_prediction(prediction).solve(alpha, sigma).tolist()
