from __future__ import annotations

import math

import pytest
import torch

from fastdiff.diffusion import (
    EDM,
    PROCESSES,
    VE,
    VP,
    CosineVP,
    DiscreteVP,
    FlowMatching,
    SubVP,
    dynamic_shift,
    process_from_dict,
    process_to_dict,
    resolution_shift,
    shifted_time,
)

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
    for t in (-0.5, -2.0, 999.5, 1000.0):
        with pytest.raises(ValueError, match="t must be -1 or from 0 to 999"):
            DiscreteVP().alpha(torch.tensor([t]))


@pytest.mark.parametrize(
    "process",
    [DiscreteVP("cosine", num_train_timesteps=500), FlowMatching(1.0), VP(0.2), SubVP(), VE(0.1), EDM(0.7), CosineVP()],
)
def test_dict_round_trip(process):
    assert process_from_dict(process_to_dict(process)) == process
    assert process_to_dict(process)["name"] in PROCESSES


CONTINUOUS = [VP(), SubVP(), CosineVP(), VE(), EDM(), FlowMatching()]


@pytest.mark.parametrize("process", [*CONTINUOUS, DiscreteVP(), DiscreteVP("sigmoid")], ids=lambda p: type(p).__name__)
def test_time_is_found_from_the_noise_level_and_from_the_timestep(process):
    t = torch.linspace(process.last_time, process.first_time, 41, dtype=torch.float64)[1:-1]
    ratio = process.sigma(t) / process.alpha(t)
    assert (ratio.diff() > 0).all()
    torch.testing.assert_close(process.time_at(ratio), t, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(process.time_of_timestep(process.timestep(t)), t, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("process", CONTINUOUS, ids=lambda p: type(p).__name__)
def test_training_times_are_in_range(process):
    times = process.time_from_unit(torch.linspace(0, 1 - 1e-12, 1001, dtype=torch.float64))
    assert times.isfinite().all() and (times.diff() > 0).all() and (times >= 0).all()


def test_the_sdes_are_those_of_the_paper():
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    integral = 0.1 * t + 0.5 * 19.9 * t**2
    torch.testing.assert_close(VP().alpha(t) ** 2, torch.exp(-integral))
    torch.testing.assert_close(VP().sigma(t) ** 2, 1 - torch.exp(-integral))
    torch.testing.assert_close(SubVP().sigma(t), 1 - torch.exp(-integral))
    torch.testing.assert_close(VE(0.01, 50.0).sigma(t), 0.01 * 5000**t)
    # DDPM's betas are VP's, divided by the number of steps (arXiv:2011.13456, appendix B).
    discrete, times = DiscreteVP(), torch.tensor([99.0, 499.0, 999.0], dtype=torch.float64)
    torch.testing.assert_close(VP().alpha((times + 1) / 1000), discrete.alpha(times), rtol=0.05, atol=0)


def test_sigmoid_schedule_is_the_papers():
    """arXiv:2212.11972, algorithm 1, written out."""
    process, t = DiscreteVP("sigmoid"), torch.tensor([0.0, 499.0, 900.0], dtype=torch.float64)

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    for time in t.tolist():
        u = (time + 1) / 1000
        gamma = (sigmoid(3) - sigmoid(u * 6 - 3)) / (sigmoid(3) - sigmoid(-3))
        assert math.isclose(process.alpha(torch.tensor([time])).item() ** 2, gamma, rel_tol=1e-9)


def test_zero_terminal_snr_equals_diffusers():
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True)
    process, t = DiscreteVP(zero_terminal_snr=True), torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(process.alpha(t) ** 2, scheduler.alphas_cumprod.double(), rtol=1e-3, atol=1e-6)
    assert process.alpha(t)[-1] == 0 and abs(process.alpha(t)[0] - DiscreteVP().alpha(t)[0]) < 1e-15


def test_between_whole_times_the_log_of_the_noise_level_is_linear():
    process, t = DiscreteVP(), torch.tensor([10.0, 10.25, 11.0], dtype=torch.float64)
    logs = (process.sigma(t) / process.alpha(t)).log()
    assert math.isclose(logs[1], 0.75 * logs[0] + 0.25 * logs[2], rel_tol=1e-12)
    torch.testing.assert_close(process.alpha(t) ** 2 + process.sigma(t) ** 2, torch.ones(3, dtype=torch.float64))


def test_shifts():
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert shifted_time(t, 3.0).tolist() == [0.0, 0.75, 1.0]
    assert resolution_shift(1024**2, 512**2) == 2.0
    for tokens, mu in ((256, 0.5), (4096, 1.15)):
        assert math.isclose(dynamic_shift(tokens), math.exp(mu))
        # FLUX writes the shifted time as e^mu / (e^mu + 1/t - 1).
        flux = math.exp(mu) / (math.exp(mu) + 1 / 0.3 - 1)
        assert math.isclose(shifted_time(torch.tensor(0.3, dtype=torch.float64), dynamic_shift(tokens)), flux)
    with pytest.raises(ValueError, match="shift must be positive, got 0"):
        shifted_time(t, 0)


def test_dict_errors():
    with pytest.raises(ValueError, match="process must have a name.*'karras'"):
        process_from_dict({"name": "karras"})
    with pytest.raises(ValueError, match="no field 'beta'"):
        process_from_dict({"name": "discrete_vp", "beta": 1})
