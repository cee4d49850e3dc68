from __future__ import annotations

import pytest
import torch

from fastdiff.diffusion import PREDICTIONS, DiscreteVP, FlowMatching, get_prediction

LEVELS = {
    "vp": (DiscreteVP(), torch.tensor([0.0, 10.0, 500.0, 999.0], dtype=torch.float64)),
    "flow": (FlowMatching(), torch.tensor([0.01, 0.3, 0.5, 0.99], dtype=torch.float64)),
}

# Written out from the papers, not from the weights under test.
TARGETS = {
    "epsilon": lambda x0, eps, alpha, sigma: eps,
    "sample": lambda x0, eps, alpha, sigma: x0,
    "v": lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0,
    "flow": lambda x0, eps, alpha, sigma: eps - x0,
}


@pytest.mark.parametrize("process", LEVELS)
@pytest.mark.parametrize("name", PREDICTIONS)
def test_target_and_its_solution(name, process):
    process, t = LEVELS[process]
    alpha, sigma = process.alpha(t), process.sigma(t)
    x0, eps = torch.randn(2, len(t), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prediction = get_prediction(name)
    w_x0, w_eps = prediction.weights(alpha, sigma)
    target = w_x0 * x0 + w_eps * eps
    torch.testing.assert_close(target, TARGETS[name](x0, eps, alpha, sigma), rtol=1e-14, atol=1e-14)

    known = torch.stack((alpha * x0 + sigma * eps, target), dim=-1)
    solved = torch.einsum("tij,tj->ti", prediction.solve(alpha, sigma), known)
    torch.testing.assert_close(solved, torch.stack((x0, eps), dim=-1), rtol=1e-10, atol=1e-10)


def test_undetermined_levels_are_refused():
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    with pytest.raises(ValueError, match="'epsilon' does not determine x0 and eps at alpha"):
        get_prediction("epsilon").solve(zero, one)
    with pytest.raises(ValueError, match="'sample' does not determine x0 and eps at alpha"):
        get_prediction("sample").solve(one, zero)
    for name in ("v", "flow"):
        assert get_prediction(name).solve(zero, one).isfinite().all()
        assert get_prediction(name).solve(one, zero).isfinite().all()


def test_unknown_name():
    with pytest.raises(ValueError, match="prediction must be one of.*'epsilon'.*got 'noise'"):
        get_prediction("noise")
