from __future__ import annotations

import itertools

import pytest
import torch

from fastdiff.diffusion import optimal_coupling

pytest.importorskip("scipy")


def test_no_permutation_is_shorter():
    x0, noise = torch.randn(2, 6, 3, 2, generator=torch.Generator().manual_seed(0))
    cost = lambda order: (x0 - noise[list(order)]).square().sum().item()  # noqa: E731
    best = min(cost(order) for order in itertools.permutations(range(6)))
    assert cost(optimal_coupling(x0, noise).tolist()) == pytest.approx(best)


def test_a_shuffled_copy_is_put_in_order():
    x0 = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    assert torch.equal(x0[order][optimal_coupling(x0, x0[order])], x0)
    with pytest.raises(ValueError, match="noise must have x0's shape"):
        optimal_coupling(x0, x0[:3])
