from __future__ import annotations

import pytest
import torch

from fastdiff.diffusion import (
    EDM,
    DiscreteVP,
    edm_weighting,
    get_prediction,
    learned_uncertainty,
    min_snr,
    prediction_weight,
    unweighted,
)
from fastdiff.diffusion.weightings import snr, truncated_snr

T = torch.tensor([5.0, 200.0, 900.0], dtype=torch.float64)
ALPHA, SIGMA = DiscreteVP().alpha(T), DiscreteVP().sigma(T)
RATIO = (ALPHA / SIGMA) ** 2


def test_min_snr_is_the_papers_table():
    """arXiv:2303.09556: min(SNR, 5) on x0, / SNR on epsilon, / (SNR + 1) on v."""
    for prediction, divisor in (("sample", 1), ("epsilon", RATIO), ("v", RATIO + 1)):
        weight = prediction_weight(min_snr(5.0), prediction, ALPHA, SIGMA)
        torch.testing.assert_close(weight, RATIO.clamp(max=5) / divisor)


def test_edm_weight_makes_the_network_s_loss_even():
    process, t = EDM(sigma_data=0.4), torch.tensor([0.01, 1.0, 50.0], dtype=torch.float64)
    weight = prediction_weight(edm_weighting(0.4), "edm", process.alpha(t), process.sigma(t))
    torch.testing.assert_close(weight, torch.ones_like(weight))


@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow", "score", "sample"])
def test_the_factor_is_that_of_the_errors(prediction):
    """An error d of x0, at the same x_t, is an error of the prediction whose square the weight makes up for."""
    x0, eps, d = (torch.full((3,), value, dtype=torch.float64) for value in (0.3, -1.2, 0.01))
    x_t = ALPHA * x0 + SIGMA * eps
    w_x0, w_eps = get_prediction(prediction).weights(ALPHA, SIGMA)
    wrong = w_x0 * (x0 + d) + w_eps * (x_t - ALPHA * (x0 + d)) / SIGMA
    error = wrong - (w_x0 * x0 + w_eps * eps)
    torch.testing.assert_close(prediction_weight(snr, prediction, ALPHA, SIGMA) * error**2, RATIO * d**2)
    ones = prediction_weight(unweighted(prediction), prediction, ALPHA, SIGMA)
    torch.testing.assert_close(ones, torch.ones_like(ones))


def test_truncated_snr():
    torch.testing.assert_close(truncated_snr(ALPHA, SIGMA), RATIO.clamp(min=1))


def test_learned_uncertainty_is_least_at_the_loss_s_own_logarithm():
    loss = torch.tensor([0.2, 3.0], dtype=torch.float64)
    u = loss.log().requires_grad_()
    learned_uncertainty(loss, u).sum().backward()
    assert u.grad.abs().max() < 1e-12
    assert (learned_uncertainty(loss, loss.log() + 0.3) > learned_uncertainty(loss, loss.log())).all()
