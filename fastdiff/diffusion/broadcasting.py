"""One number a sample, against a batch of samples."""

from __future__ import annotations

import torch
from torch import Tensor


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(N,) -> (N, 1, ...) with as many dimensions as `like`, on its device, and in its dtype unless it is a mask."""
    values = values.to(like.device)
    values = values if values.dtype == torch.bool else values.to(like.dtype)
    return values.view(-1, *[1] * (like.dim() - 1))
