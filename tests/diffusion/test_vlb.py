"""The bound of DDPM where it is known: Gaussian data, and the perfect network for it."""

from __future__ import annotations

import math

import torch

from fastdiff.diffusion import DiscreteVP, learned_log_variance, prior_bits, vlb_term
from fastdiff.diffusion.vlb import (
    discretized_log_likelihood,
    normal_kl,
    posterior_log_variances,
    posterior_mean,
)

PROCESS = DiscreteVP(num_train_timesteps=200, beta_start=5e-4, beta_end=0.1)


def test_posterior_is_bayes_rule():
    """q(x_{t-1} | x_t, x0) from the product of the two Gaussians q(x_t | x_{t-1}) and q(x_{t-1} | x0)."""
    t = torch.tensor([1.0, 50.0, 199.0], dtype=torch.float64)
    x0, x_t = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    beta, before = PROCESS.betas[t.long()][:, None], PROCESS.alpha(t - 1)[:, None]
    precision = (1 - beta) / beta + 1 / PROCESS.sigma(t - 1)[:, None] ** 2
    mean = ((1 - beta).sqrt() / beta * x_t + before * x0 / PROCESS.sigma(t - 1)[:, None] ** 2) / precision
    torch.testing.assert_close(posterior_mean(PROCESS, x0, x_t, t), mean)
    small, large = posterior_log_variances(PROCESS)
    torch.testing.assert_close(small[t.long()], -precision[:, 0].log())
    torch.testing.assert_close(large, PROCESS.betas.log())
    assert small[0] == small[1]


def test_kl_of_normals():
    """Against the integral on a grid."""
    x = torch.linspace(-20, 20, 100_001, dtype=torch.float64)
    p, q = torch.distributions.Normal(0.5, 1.2), torch.distributions.Normal(-1.0, 2.0)
    expected = (p.log_prob(x).exp() * (p.log_prob(x) - q.log_prob(x))).sum() * (x[1] - x[0])
    two = torch.tensor
    found = normal_kl(two(0.5), 2 * two(1.2).log(), two(-1.0), 2 * two(2.0).log())
    assert abs(found - expected) < 1e-5


def test_the_levels_probabilities_add_up():
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean, deviation in ((0.0, 0.3), (0.9, 0.05), (-3.0, 0.01), (0.0, 0.001)):
        log_variance = torch.full_like(levels, 2 * math.log(deviation))
        log_p = discretized_log_likelihood(levels, torch.full_like(levels, mean), log_variance)
        assert log_p.isfinite().all()
        if deviation > 0.01:
            assert abs(log_p.exp().sum() - 1) < 1e-9


def test_bound_of_gaussian_data_is_tight():
    """The reverse of a Gaussian is Gaussian: with the perfect mean and variance the bound is log p(x) itself."""
    deviation, count = 0.25, 4096
    generator = torch.Generator().manual_seed(0)
    x0 = deviation * torch.randn(count, 8, dtype=torch.float64, generator=generator)
    x0 = ((x0.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    total, fixed_small = prior_bits(PROCESS, x0).mean(), posterior_log_variances(PROCESS)[0]
    assert total < 0.01
    for time in range(PROCESS.num_train_timesteps):
        t = torch.full((count,), float(time), dtype=torch.float64)
        alpha, sigma = PROCESS.alpha(t)[:, None], PROCESS.sigma(t)[:, None]
        x_t = alpha * x0 + sigma * torch.randn(x0.shape, dtype=torch.float64, generator=generator)
        gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        # The reverse step's own variance: that of the posterior and of what is not known of x0.
        mean_factor = PROCESS.alpha(t - 1) * PROCESS.betas[time] / PROCESS.sigma(t) ** 2
        unknown = deviation**2 * (sigma**2 / (alpha**2 * deviation**2 + sigma**2))
        posterior = fixed_small[time].exp() if time else torch.zeros(())
        log_variance = (posterior + mean_factor[:, None] ** 2 * unknown).log().expand_as(x0)
        total = total + vlb_term(PROCESS, x0, x_t, t, gain * x_t, log_variance).mean()
    density = -0.5 * (x0 / deviation) ** 2 - math.log(deviation * math.sqrt(2 * math.pi))
    exact = math.log2(127.5) - density.mean() / math.log(2)
    assert abs(total - exact) < 0.05, (total, exact)


def test_learned_variance_lies_between_the_fixed():
    t = torch.tensor([0.0, 30.0], dtype=torch.float64)
    small, large = (table[t.long()][:, None] for table in posterior_log_variances(PROCESS))
    for fraction, expected in ((-1.0, small), (1.0, large), (0.0, (small + large) / 2)):
        found = learned_log_variance(PROCESS, torch.full((2, 3), fraction, dtype=torch.float64), t)
        torch.testing.assert_close(found, expected.expand(2, 3))
