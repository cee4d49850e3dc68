"""Consistency models: curricula, noise levels and losses (arXiv:2303.01469; improved: arXiv:2310.14189).

sigma is EDM's noise level: x = x0 + sigma * noise. `function` is the consistency function, (x, sigma) -> x0, whose
boundary condition f(x, sigma_min) = x is its own matter: see
:func:`fastdiff.sampling.solvers.consistency.boundary_condition`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastdiff.diffusion.broadcasting import per_sample
from fastdiff.diffusion.losses import pseudo_huber_loss

Function = Callable[[Tensor, Tensor], Tensor]
"""(x (N, ...), sigma (N,)) -> (N, ...)"""


def discretization_steps(step: int, total: int, *, first: int = 2, last: int = 150) -> int:
    """N(k) of consistency training: the number of noise levels at a training step (arXiv:2303.01469, appendix C)."""
    grown = step / total * ((last + 1) ** 2 - first**2) + first**2
    return math.ceil(math.sqrt(grown) - 1) + 1


def ema_decay(steps: int, *, first: int = 2, first_decay: float = 0.9) -> float:
    """mu(k) of consistency training, the target network's decay at N(k) = `steps` (arXiv:2303.01469, appendix C)."""
    return math.exp(first * math.log(first_decay) / steps)


def improved_steps(step: int, total: int, *, first: int = 10, last: int = 1280) -> int:
    """N(k) of improved consistency training: it doubles (arXiv:2310.14189, section 3.4). The target has no decay."""
    period = max(1, math.floor(total / (math.log2(last // first) + 1)))
    return min(first * 2 ** (step // period), last) + 1


def noise_levels(count: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """(count,) float64, rising: arXiv:2206.00364, equation 5."""
    ramp = torch.linspace(0, 1, count, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (low + ramp * (high - low)) ** rho


def level_probabilities(sigmas: Tensor, *, p_mean: float = -1.1, p_std: float = 2.0) -> Tensor:
    """(count - 1,) how often improved training takes each pair of neighbours (arXiv:2310.14189, section 3.5)."""
    mass = torch.erf((sigmas.log() - p_mean) / (math.sqrt(2) * p_std)).diff()
    return mass / mass.sum()


def consistency_loss(
    function: Function,
    target: Function,
    x0: Tensor,
    noise: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    teacher: Function | None = None,
    distance: Callable[[Tensor, Tensor], Tensor] = pseudo_huber_loss,
) -> Tensor:
    """(N,) how far f at one level is from f at the level below, on one path: weighted by 1 / (high - low).

    Training without a teacher takes the same noise at both levels (arXiv:2303.01469, equation 10, with the weight of
    arXiv:2310.14189, section 3.1); distillation follows the teacher's flow down with a step of Heun's (equation 6).

    Args:
        function: the network that learns.
        target: the one that is followed, without gradient: the same network, or its moving average.
        x0: (N, ...) data.
        noise: (N, ...) standard normal.
        low, high: (N,) neighbouring noise levels.
        teacher: a denoiser, (x, sigma) -> x0, to distil.
        distance: (N, ...), (N, ...) -> (N,).
    """
    low, high = low.to(x0), high.to(x0)
    above = x0 + per_sample(high, x0) * noise
    with torch.no_grad():
        below = x0 + per_sample(low, x0) * noise if teacher is None else heun_step(teacher, above, high, low)
        goal = target(below, low)
    return distance(function(above, high), goal) / (high - low)


def heun_step(teacher: Function, x: Tensor, high: Tensor, low: Tensor) -> Tensor:
    """The teacher's flow from `high` (N,) down to `low`, x (N, ...): arXiv:2206.00364, algorithm 1."""
    s, t = per_sample(high, x), per_sample(low, x)
    slope = (x - teacher(x, high)) / s
    euler = x + (t - s) * slope
    return x + (t - s) * 0.5 * (slope + (euler - teacher(euler, low)) / t)
