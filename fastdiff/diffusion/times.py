"""Distributions of the training time, as quantiles u in [0, 1) for :meth:`Process.time_from_unit`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def uniform_times(count: int, generator: torch.Generator) -> Tensor:
    """(count,) float64, uniform and stratified: one in each of `count` equal intervals, in random order.

    Each time alone is uniform; together they cover the interval, which lowers the variance of the loss
    (arXiv:2107.00630, appendix I.1).
    """
    offset = torch.rand(count, generator=generator, dtype=torch.float64)
    return (torch.randperm(count, generator=generator) + offset) / max(count, 1)


def logit_normal_times(count: int, generator: torch.Generator, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """(count,) float64, the sigmoid of a normal: more training at the middle times (arXiv:2403.03206, section 3.1).

    Stratified like :func:`uniform_times`.
    """
    return torch.sigmoid(mean + std * torch.special.ndtri(uniform_times(count, generator)))


def mode_times(count: int, generator: torch.Generator, scale: float = 1.29) -> Tensor:
    """(count,) float64, heavy at the middle with both ends kept (arXiv:2403.03206, section 3.1, mode sampling).

    ``t = 1 - u - scale * (cos^2(pi u / 2) - 1 + u)``, for `scale` from -1 (light at the middle) to 2 / (pi - 2).
    Stratified like :func:`uniform_times`.
    """
    u = 1 - uniform_times(count, generator)  # in (0, 1], so that t is in [0, 1)
    return 1 - u - scale * (torch.cos(0.5 * math.pi * u) ** 2 - 1 + u)


TIME_SAMPLERS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "uniform": uniform_times,
    "logit_normal": logit_normal_times,
    "mode": mode_times,
}
