from __future__ import annotations

import math

import pytest
import torch

from fastdiff.diffusion import TIME_SAMPLERS, logit_normal_times, mode_times, uniform_times

COUNT = 100_000


def normal_cdf(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def ks_distance(times: torch.Tensor, cdf: torch.Tensor) -> float:
    """Largest distance between the empirical distribution of the sorted `times` and the exact one there."""
    steps = torch.arange(len(times) + 1, dtype=torch.float64) / len(times)
    return max((cdf - steps[:-1]).abs().max().item(), (cdf - steps[1:]).abs().max().item())


@pytest.mark.parametrize("name", TIME_SAMPLERS)
def test_times_lie_in_the_unit_interval_and_follow_the_generator(name):
    first, again, other = (TIME_SAMPLERS[name](1000, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert first.dtype == torch.float64 and first.shape == (1000,)
    assert ((first >= 0) & (first < 1)).all()
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert TIME_SAMPLERS[name](0, torch.Generator()).shape == (0,)


def test_uniform_distribution():
    times = uniform_times(COUNT, torch.Generator().manual_seed(0)).sort().values
    assert ks_distance(times, times) < 1.5 / COUNT  # stratified: far closer than independent draws


def test_logit_normal_distribution():
    times = logit_normal_times(COUNT, torch.Generator().manual_seed(0), mean=-0.5, std=0.7).sort().values
    assert ks_distance(times, normal_cdf((torch.logit(times) + 0.5) / 0.7)) < 1.5 / COUNT


def test_mode_distribution():
    """The quantiles of arXiv:2403.03206, equation 20: both ends stay, and the middle has the density 1 / |f'(1/2)|."""
    scale = 1.29
    times = mode_times(COUNT, torch.Generator().manual_seed(0), scale).sort().values
    for u in (0.0, 0.2, 0.5, 0.9):
        quantile = 1 - u - scale * (math.cos(math.pi / 2 * u) ** 2 - 1 + u)
        below = (times < quantile).double().mean().item()
        assert abs(below - (1 - u)) < 1e-3
    middle = ((times - 0.5).abs() < 0.01).double().mean().item()
    assert abs(middle / (0.02 / (1 + scale * (1 - math.pi / 2))) - 1) < 0.02


def test_each_place_in_the_batch_is_uniform_alone():
    generator = torch.Generator().manual_seed(0)
    first = torch.stack([uniform_times(4, generator)[0] for _ in range(4000)]).sort().values
    assert ks_distance(first, first) < 1.95 / math.sqrt(4000)  # Kolmogorov-Smirnov at 0.1 %
