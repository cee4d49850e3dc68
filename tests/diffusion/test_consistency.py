from __future__ import annotations

import math

import pytest
import torch

from fastdiff.diffusion import GaussianMixture, consistency_loss, mse_loss, pseudo_huber_loss
from fastdiff.diffusion.consistency import (
    discretization_steps,
    ema_decay,
    heun_step,
    improved_steps,
    level_probabilities,
    noise_levels,
)


def test_curricula_are_those_of_the_papers():
    assert discretization_steps(0, 1000) == 2 and discretization_steps(1000, 1000) == 151
    assert discretization_steps(500, 1000) == math.ceil(math.sqrt(0.5 * (151**2 - 4) + 4) - 1) + 1
    assert ema_decay(2) == pytest.approx(0.9) and ema_decay(150) == pytest.approx(0.9 ** (2 / 150))
    # arXiv:2310.14189: doubling from 10 to 1280 in 8 equal periods.
    assert [improved_steps(k, 800) for k in (0, 99, 100, 650, 799)] == [11, 11, 21, 641, 1281]
    assert improved_steps(10_000, 800) == 1281
    assert [improved_steps(k, 3) for k in (0, 1, 2)] == [11, 21, 41]  # a run too short for all of them


def test_noise_levels_rise_from_end_to_end():
    sigmas = noise_levels(11)
    assert sigmas[0] == pytest.approx(0.002) and sigmas[-1] == pytest.approx(80) and (sigmas.diff() > 0).all()


def test_level_probabilities_are_a_lognormal_s():
    sigmas = noise_levels(200)
    probabilities = level_probabilities(sigmas)
    normal = torch.distributions.Normal(-1.1, 2.0)
    mass = normal.cdf(sigmas.log()).diff()
    torch.testing.assert_close(probabilities, mass / mass.sum())


def test_pseudo_huber():
    a, b = torch.zeros(1, 4), torch.tensor([[3.0, 0.0, 4.0, 0.0]])
    assert pseudo_huber_loss(a, b, 0.0).item() == 5
    assert pseudo_huber_loss(a, b, 12.0).item() == 1
    assert pseudo_huber_loss(a, a).item() == 0
    assert pseudo_huber_loss(a.double(), b.double()).item() == pytest.approx(math.sqrt(25 + 4 * 0.00054**2) - 0.00108)


DEVIATION = 0.5


def exact(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The consistency function of N(0, 0.25): the flow is a factor."""
    return x * DEVIATION / torch.sqrt(DEVIATION**2 + sigma[:, None] ** 2)


def test_distillation_of_a_perfect_teacher_is_least_at_the_exact_function():
    mixture = GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in ([[0.0, 0.0]], [DEVIATION], [1.0])))
    one = torch.ones((), dtype=torch.float64)
    teacher = lambda x, sigma: mixture.denoised(x, one, sigma)  # noqa: E731
    x0, noise = torch.randn(2, 64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigmas = noise_levels(200)
    low, high = sigmas[100].expand(64), sigmas[101].expand(64)
    options = {"teacher": teacher, "distance": mse_loss}
    best = consistency_loss(exact, exact, DEVIATION * x0, noise, low, high, **options).mean()
    identity = consistency_loss(lambda x, s: x, lambda x, s: x, DEVIATION * x0, noise, low, high, **options).mean()
    assert best < 1e-6 * identity
    # Heun's step follows the flow.
    x = DEVIATION * x0 + high[:, None] * noise
    exact_step = x * torch.sqrt((DEVIATION**2 + low[0] ** 2) / (DEVIATION**2 + high[0] ** 2))
    assert (heun_step(teacher, x, high, low) - exact_step).abs().max() < 1e-4


def test_training_has_no_gradient_through_the_target():
    parameter = torch.tensor(1.0, requires_grad=True)
    function = lambda x, sigma: parameter * x  # noqa: E731
    x0, noise = torch.zeros(3, 2), torch.ones(3, 2)
    low, high = torch.full((3,), 1.0), torch.full((3,), 2.0)
    loss = consistency_loss(function, function, x0, noise, low, high, distance=mse_loss)
    torch.testing.assert_close(loss, torch.ones(3))  # (2 - 1)^2 / (2 - 1)
    loss.sum().backward()
    assert parameter.grad.item() == pytest.approx(3 * 2 * (2 - 1) * 2)


def test_levels_of_another_precision_do_not_change_that_of_the_state():
    x, low, high = torch.ones(3, 2), torch.ones(3, dtype=torch.float64), torch.full((3,), 2.0, dtype=torch.float64)
    assert heun_step(lambda x, sigma: 0.5 * x, x, high, low).dtype == torch.float32
