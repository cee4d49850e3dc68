"""Training losses."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def mse_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error for each sample, (N, ...) and (N, ...) -> (N,), in float32 at least.

    The "simple" loss (arXiv:2006.11239, equation 14; arXiv:2210.02747, equation 9). Left unaveraged over the batch
    so that a weight for each time can be applied.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction must have target's shape {tuple(target.shape)}, got {tuple(prediction.shape)}")
    error = (prediction - target).flatten(1)
    return (error.float() if error.dtype.itemsize < 4 else error).square().mean(1)


def pseudo_huber_loss(prediction: Tensor, target: Tensor, c: float | None = None) -> Tensor:
    """``sqrt(|prediction - target|^2 + c^2) - c`` for each sample, (N, ...) and (N, ...) -> (N,) (arXiv:2310.14189).

    Args:
        c: default 0.00054 sqrt(d) for d elements a sample (section 3.3).
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction must have target's shape {tuple(target.shape)}, got {tuple(prediction.shape)}")
    error = (prediction - target).flatten(1)
    error = error.float() if error.dtype.itemsize < 4 else error
    c = 0.00054 * math.sqrt(error.shape[1]) if c is None else c
    return torch.sqrt(error.square().sum(1) + c**2) - c
