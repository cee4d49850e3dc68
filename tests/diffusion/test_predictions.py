from __future__ import annotations

import pytest
import torch

from fastdiff.diffusion import EDM, PREDICTIONS, DiscreteVP, FlowMatching, get_prediction

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
    "score": lambda x0, eps, alpha, sigma: -(alpha * x0 + sigma * eps - alpha * x0) / sigma**2,
}


@pytest.mark.parametrize("process", LEVELS)
@pytest.mark.parametrize("name", TARGETS)
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


def test_edm_is_the_preconditioning_of_its_table():
    """F from D = c_skip * x + c_out * F (arXiv:2206.00364, table 1), written with the unscaled x and its sigma."""
    process = EDM(sigma_data=0.4)
    t = torch.tensor([0.002, 0.3, 1.0, 80.0], dtype=torch.float64)
    x0, eps = torch.randn(2, len(t), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x0 + t * eps
    c_skip = 0.4**2 / (t**2 + 0.4**2)
    c_out, c_in = t * 0.4 / torch.sqrt(t**2 + 0.4**2), 1 / torch.sqrt(t**2 + 0.4**2)
    w_x0, w_eps = get_prediction("edm").weights(process.alpha(t), process.sigma(t))
    torch.testing.assert_close(w_x0 * x0 + w_eps * eps, (x0 - c_skip * x) / c_out, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(process.alpha(t) * x0 + process.sigma(t) * eps, c_in * x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(process.timestep(t), t.log() / 4)


def test_every_prediction_has_a_target_here():
    assert set(PREDICTIONS) == set(TARGETS) | {"edm"}


def test_undetermined_levels_are_refused():
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    with pytest.raises(ValueError, match="'epsilon' does not determine x0 and eps at alpha"):
        get_prediction("epsilon").solve(zero, one)
    with pytest.raises(ValueError, match="'sample' does not determine x0 and eps at alpha"):
        get_prediction("sample").solve(one, zero)
    with pytest.raises(ValueError, match="'edm' does not determine x0 and eps at alpha"):
        get_prediction("edm").solve(zero, one)
    for name in ("v", "flow"):
        assert get_prediction(name).solve(zero, one).isfinite().all()
        assert get_prediction(name).solve(one, zero).isfinite().all()


def test_unknown_name():
    with pytest.raises(ValueError, match="prediction must be one of.*'epsilon'.*got 'noise'"):
        get_prediction("noise")
