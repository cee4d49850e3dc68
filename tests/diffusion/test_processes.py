from __future__ import annotations

import math

import pytest
import torch

from fastdiff.diffusion import PROCESSES, DiscreteVP, FlowMatching, process_from_dict, process_to_dict

diffusers = pytest.importorskip("diffusers")


def test_linear_schedule_is_the_product_of_one_minus_beta():
    process = DiscreteVP("linear", beta_start=0.1, beta_end=0.3, num_train_timesteps=3)
    t = torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    alpha_bar = torch.tensor([1.0, 0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7], dtype=torch.float64)
    torch.testing.assert_close(process.alpha(t), alpha_bar.sqrt(), rtol=1e-14, atol=0)
    torch.testing.assert_close(process.sigma(t), (1 - alpha_bar).sqrt(), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("schedule", "theirs"), [("linear", "linear"), ("scaled_linear", "scaled_linear"), ("cosine", "squaredcos_cap_v2")]
)
def test_schedules_equal_diffusers(schedule, theirs):
    scheduler = diffusers.DDPMScheduler(beta_schedule=theirs, beta_start=0.00085, beta_end=0.012)
    process = DiscreteVP(schedule, beta_start=0.00085, beta_end=0.012)
    t = torch.arange(1000, dtype=torch.float64)
    # diffusers keeps float32: a product of a thousand factors.
    torch.testing.assert_close(process.alpha(t) ** 2, scheduler.alphas_cumprod.double(), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(process.betas, scheduler.betas.double(), rtol=1e-5, atol=1e-7)


def test_cosine_schedule_is_the_closed_form():
    process = DiscreteVP("cosine")
    t = torch.arange(0, 990, dtype=torch.float64)  # the cap on beta acts at the very end only
    expected = torch.cos(((t + 1) / 1000 + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
    torch.testing.assert_close(process.alpha(t), expected, rtol=1e-10, atol=0)
    assert process.betas.max() == 0.999


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
def test_variance_is_preserved(schedule):
    process = DiscreteVP(schedule)
    t = torch.arange(-1, 1000, dtype=torch.float64)
    torch.testing.assert_close(process.alpha(t) ** 2 + process.sigma(t) ** 2, torch.ones_like(t), rtol=1e-14, atol=0)
    assert (process.sigma(t).diff() > 0).all()


def test_flow_matching_is_the_straight_line():
    process = FlowMatching()
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    assert process.alpha(t).tolist() == [1.0, 0.75, 0.0]
    assert process.sigma(t).tolist() == [0.0, 0.25, 1.0]
    assert process.timestep(t).tolist() == [0.0, 250.0, 1000.0]


def test_noised_data_has_the_moments_of_the_process():
    process, generator = DiscreteVP(), torch.Generator().manual_seed(0)
    x0 = 3.0 + 0.5 * torch.randn(200_000, generator=generator, dtype=torch.float64)
    eps = torch.randn(200_000, generator=generator, dtype=torch.float64)
    t = torch.tensor(300.0)
    x = process.alpha(t) * x0 + process.sigma(t) * eps
    variance = process.alpha(t) ** 2 * 0.25 + process.sigma(t) ** 2
    assert abs(x.mean() - 3.0 * process.alpha(t)) < 4 * math.sqrt(variance / len(x))
    assert abs(x.var() / variance - 1) < 4 * math.sqrt(2 / len(x))


def test_unit_interval_covers_every_time():
    u = torch.linspace(0, 1, 4001, dtype=torch.float64)
    times = DiscreteVP(num_train_timesteps=10).time_from_unit(u[:-1])
    assert torch.equal(times.unique(), torch.arange(10, dtype=torch.float64))
    assert torch.equal(times.long().bincount(), torch.full((10,), 400))
    # The largest quantile below 1 stays inside even where the product rounds up.
    last = torch.tensor([1.0], dtype=torch.float64).nextafter(torch.zeros(1, dtype=torch.float64))
    assert DiscreteVP(num_train_timesteps=1000).time_from_unit(last).item() == 999
    assert torch.equal(FlowMatching().time_from_unit(u), u)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="schedule must be.*'quadratic'"):
        DiscreteVP("quadratic")
    with pytest.raises(ValueError, match="beta_start and beta_end"):
        DiscreteVP(beta_start=0.5, beta_end=0.1)
    with pytest.raises(ValueError, match="num_train_timesteps"):
        DiscreteVP(num_train_timesteps=0)
    for t in (0.5, -2.0, 1000.0):
        with pytest.raises(ValueError, match="t must be whole numbers from -1 to 999"):
            DiscreteVP().alpha(torch.tensor([t]))


@pytest.mark.parametrize("process", [DiscreteVP("cosine", num_train_timesteps=500), FlowMatching(1.0)])
def test_dict_round_trip(process):
    assert process_from_dict(process_to_dict(process)) == process
    assert process_to_dict(process)["name"] in PROCESSES


def test_dict_errors():
    with pytest.raises(ValueError, match="process must have a name.*'karras'"):
        process_from_dict({"name": "karras"})
    with pytest.raises(ValueError, match="no field 'beta'"):
        process_from_dict({"name": "discrete_vp", "beta": 1})
