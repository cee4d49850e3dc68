"""Which noise goes with which data."""

from __future__ import annotations

import torch
from torch import Tensor


def optimal_coupling(x0: Tensor, noise: Tensor) -> Tensor:
    """Mini-batch optimal transport (arXiv:2302.00482, section 3.2): straighter paths for flow matching. Needs SciPy.

    Args:
        x0, noise: (N, ...) of one shape and dtype.

    Returns:
        (N,) int64 on the host: ``noise[result]`` goes with `x0`, such that the sum of squared distances is least.

    Raises:
        ValueError: shapes that differ.
    """
    from scipy.optimize import linear_sum_assignment  # optional: nothing else in training needs SciPy

    if x0.shape != noise.shape:
        raise ValueError(f"noise must have x0's shape {tuple(x0.shape)}, got {tuple(noise.shape)}")
    cost = torch.cdist(x0.flatten(1).double(), noise.flatten(1).double()).square()
    _, columns = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(columns, dtype=torch.int64)
