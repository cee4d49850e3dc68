"""Weights of the training loss over the noise levels.

A weighting says how much an error of x0 counts at a level. The network's error is in its own prediction, and is the
error of x0 times a factor that depends on the level alone, so any weighting goes with any prediction.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastdiff.diffusion.predictions import get_prediction

Weighting = Callable[[Tensor, Tensor], Tensor]
"""(alpha, sigma), both (N,) float64 -> (N,) the weight of the squared error of x0."""


def prediction_weight(weighting: Weighting, prediction: str, alpha: Tensor, sigma: Tensor) -> Tensor:
    """(N,) the weight of the squared error of `prediction` that amounts to `weighting` of that of x0."""
    w_x0, w_eps = get_prediction(prediction).weights(alpha, sigma)
    return weighting(alpha, sigma) / (w_x0 - w_eps * alpha / sigma) ** 2


def snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    """Signal-to-noise ratio: as a weighting, that of an unweighted epsilon (DDPM's simple loss)."""
    return (alpha / sigma) ** 2


def truncated_snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    """``max(SNR, 1)`` (arXiv:2202.00512, section 4)."""
    return snr(alpha, sigma).clamp(min=1)


def min_snr(gamma: float = 5.0) -> Weighting:
    """``min(SNR, gamma)`` (arXiv:2303.09556, section 3.4): on epsilon min(SNR, gamma) / SNR."""
    return lambda alpha, sigma: snr(alpha, sigma).clamp(max=gamma)


def edm_weighting(sigma_data: float = 0.5) -> Weighting:
    """``(s^2 + sigma_data^2) / (s sigma_data)^2`` with s = sigma / alpha (arXiv:2206.00364, table 1): on F it is 1."""

    def weighting(alpha: Tensor, sigma: Tensor) -> Tensor:
        level = sigma / alpha
        return (level**2 + sigma_data**2) / (level * sigma_data) ** 2

    return weighting


def unweighted(prediction: str) -> Weighting:
    """That of the plain squared error of a prediction, such as the simple loss of DDPM for "epsilon"."""

    def weighting(alpha: Tensor, sigma: Tensor) -> Tensor:
        w_x0, w_eps = get_prediction(prediction).weights(alpha, sigma)
        return (w_x0 - w_eps * alpha / sigma) ** 2

    return weighting


def learned_uncertainty(loss: Tensor, log_variance: Tensor) -> Tensor:
    """``loss / exp(u) + u`` (arXiv:2312.02696, equation 21): a network u of the noise level balances the levels.

    Args:
        loss: (N,) each sample's weighted loss.
        log_variance: (N,) u at each sample's level.

    Returns:
        (N,); at its least, for u = log E[loss], every level's gradient has the same size.
    """
    return loss / torch.exp(log_variance) + log_variance
