from __future__ import annotations

import pytest
import torch

from fastdiff.diffusion import EDM, PREDICTIONS, VP, GaussianMixture, get_prediction

MIXTURE = GaussianMixture.ring(components=5, radius=1.5, deviation=0.3)


def test_score_is_the_gradient_of_the_log_density():
    """Tweedie: E[x0 | x] = (x + sigma^2 * score) / alpha."""
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    alpha, sigma = (torch.full((50,), value, dtype=torch.float64) for value in (0.8, 0.6))
    (score,) = torch.autograd.grad(MIXTURE.log_density(x, alpha, sigma).sum(), x)
    torch.testing.assert_close(MIXTURE.denoised(x, alpha, sigma), (x + 0.36 * score) / 0.8, rtol=1e-10, atol=1e-10)


def test_density_integrates_to_one():
    grid = torch.linspace(-4, 4, 161, dtype=torch.float64)
    x = torch.cartesian_prod(grid, grid)
    one, small = torch.ones((), dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
    assert abs(MIXTURE.log_density(x, one, small).exp().sum() * 0.05**2 - 1) < 1e-6


def test_moments_are_those_of_its_samples():
    x = MIXTURE.sample(100_000, torch.Generator().manual_seed(0))
    mean, covariance = MIXTURE.moments()
    assert (x.mean(0) - mean).abs().max() < 0.02 and (x.T.cov() - covariance).abs().max() < 0.03


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("process", [VP(), EDM()], ids=["vp", "edm"])
def test_denoiser_is_the_mean_of_the_target(process, name):
    if name == "edm" and isinstance(process, VP):
        pytest.skip("the prediction 'edm' is of the process EDM")
    t = torch.full((3,), process.first_time / 4, dtype=torch.float64)
    alpha, sigma = process.alpha(t), process.sigma(t)
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x0 = MIXTURE.denoised(x, alpha, sigma)
    w_x0, w_eps = get_prediction(name).weights(alpha, sigma)
    expected = w_x0[:, None] * x0 + (w_eps / sigma)[:, None] * (x - alpha[:, None] * x0)
    predict = MIXTURE.denoiser(process, name)
    torch.testing.assert_close(predict(x, process.timestep(t)), expected, rtol=1e-9, atol=1e-9)
    assert predict(x.float(), process.timestep(t).float()).dtype == torch.float32
