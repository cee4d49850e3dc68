"""Moving in the space of starting noise."""

from __future__ import annotations

import torch
from torch import Tensor


def slerp(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Spherical interpolation of each sample: between two noises, noise of the same norm (arXiv:1609.04468).

    Args:
        first, second: (N, ...).
        weight: 0 is `first`, 1 is `second`.

    Returns:
        (N, ...); where two samples are parallel, the linear interpolation.
    """
    a, b = first.flatten(1), second.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1).clamp(-1, 1)[:, None]
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    parallel = sine < 1e-4
    safe = torch.where(parallel, torch.ones_like(sine), sine)
    of_first = torch.where(parallel, torch.full_like(sine, 1 - weight), torch.sin((1 - weight) * angle) / safe)
    of_second = torch.where(parallel, torch.full_like(sine, weight), torch.sin(weight * angle) / safe)
    return (of_first * a + of_second * b).view_as(first)
