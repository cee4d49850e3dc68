from __future__ import annotations

import torch
from torch import Tensor


def add_noise(
    clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor, target_clean: Tensor, target_noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Definition of :func:`fastdiff.ops.add_noise` in PyTorch's own operators."""
    dtype = torch.promote_types(clean.dtype, torch.float32)
    x, eps = clean.to(dtype), noise.to(dtype)

    def combine(of_clean: Tensor, of_noise: Tensor) -> Tensor:
        a, b = (factor.to(dtype).view(-1, *[1] * (x.dim() - 1)) for factor in (of_clean, of_noise))
        return (a * x + b * eps).to(clean.dtype)

    return combine(alpha, sigma), combine(target_clean, target_noise)
