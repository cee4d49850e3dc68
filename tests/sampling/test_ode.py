"""The adaptive solver, likelihood, inversion and predictor-corrector, on distributions known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

import fastdiff
from fastdiff.diffusion import EDM, VE, VP, CosineVP, DiscreteVP, FlowMatching, GaussianMixture, SubVP
from fastdiff.sampling import (
    bits_per_dim,
    langevin_step,
    log_likelihood,
    predictor_corrector,
    rk45,
    sample,
    slerp,
    solver_table,
)
from fastdiff.sampling.ode import integrate, probability_flow
from fastdiff.sampling.rates import rates

MIXTURE = GaussianMixture.ring(components=8, radius=1.0, deviation=0.2)


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_rates_are_the_coefficients_of_the_papers_sdes() -> None:
    """arXiv:2011.13456, equations 30 to 35; for the straight path f = -1 / (1 - t) and g^2 = 2 t / (1 - t)."""
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    beta = 0.1 + 19.9 * t
    vp, sub, ve = rates(VP(), t), rates(SubVP(), t), rates(VE(0.01, 50.0), t)
    torch.testing.assert_close(vp.drift, -0.5 * beta)
    torch.testing.assert_close(vp.diffusion**2, beta)
    torch.testing.assert_close(sub.drift, -0.5 * beta)
    torch.testing.assert_close(sub.diffusion**2, beta * (1 - torch.exp(-2 * (0.1 * t + 0.5 * 19.9 * t**2))))
    assert (ve.drift == 0).all()
    torch.testing.assert_close(ve.diffusion, 0.01 * 5000**t * math.sqrt(2 * math.log(5000)))
    flow = rates(FlowMatching(), t)
    torch.testing.assert_close(flow.drift, -1 / (1 - t))
    torch.testing.assert_close(flow.diffusion**2, 2 * t / (1 - t))
    with pytest.raises(ValueError, match="continuous time, got DiscreteVP"):
        rates(DiscreteVP(), t)


def test_integrate_is_of_fifth_order_and_keeps_its_tolerance() -> None:
    """dx/dt = cos(t) x: the error falls with the tolerance, and the calls rise with its fifth root."""
    x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    found = []
    for tolerance in (1e-6, 1e-9, 1e-12):
        end, calls = integrate(lambda t, x: t.cos()[:, None] * x, x, 0.0, 10.0, rtol=tolerance, atol=tolerance)
        found.append(((end - x * math.exp(math.sin(10.0))).abs().max().item(), calls))
        assert found[-1][0] < 100 * tolerance
    (first, first_calls), _, (last, last_calls) = found
    assert math.log(first / last) / math.log(last_calls / first_calls) > 4


@pytest.mark.parametrize("process", [VP(), SubVP(), CosineVP(), VE(0.01, 50.0), EDM(), FlowMatching()], ids=str)
def test_rk45_is_the_flow(process) -> None:
    """Back and forth: what the flow takes to noise and back is where it was; and a sampler of many steps agrees."""
    prediction = "flow" if isinstance(process, FlowMatching | CosineVP) else "epsilon"
    network = MIXTURE.denoiser(process, prediction)
    start = noise(16)
    end = rk45(network, start, process=process, prediction=prediction, rtol=1e-9, atol=1e-9)
    flow = probability_flow(network, process, prediction)
    scale = process.data_scale(torch.tensor([process.last_time], dtype=torch.float64))
    times = (process.last_time, process.first_time)
    if not isinstance(process, FlowMatching | CosineVP):  # alpha = 0 loses x0 on the way to noise
        back, _ = integrate(flow, end / scale, *times, rtol=1e-9, atol=1e-9)
        back = back / process.start_scale(torch.tensor([process.first_time], dtype=torch.float64))
        torch.testing.assert_close(back, start, rtol=1e-4, atol=1e-4)
    with fastdiff.use_reference():
        options = {"schedule": "uniform", "sampler_options": {"final": "sigma_min"}}
        many = sample(network, start, sampler="ddim", steps=3000, process=process, prediction=prediction, **options)
    assert (many - end).abs().max() < 0.05


def test_rk45_order_of_convergence() -> None:
    """Error against model calls, over four decades of tolerance."""
    process = EDM(sigma_min=0.02)
    network = MIXTURE.denoiser(process, "edm")
    flow = probability_flow(network, process, "edm")
    start = noise(8) * process.start_scale(torch.tensor([80.0], dtype=torch.float64))
    truth, _ = integrate(flow, start, 80.0, 0.02, rtol=1e-12, atol=1e-12)
    points = []
    for tolerance in (1e-5, 1e-9):
        end, calls = integrate(flow, start, 80.0, 0.02, rtol=tolerance, atol=tolerance)
        points.append(((end - truth).square().mean().sqrt().item(), calls))
    (coarse, few), (fine, many) = points
    assert math.log(coarse / fine) / math.log(many / few) > 4


def test_rk45_does_not_depend_on_the_batch_and_follows_seeds() -> None:
    process = VP()
    network = MIXTURE.denoiser(process, "epsilon")
    draw = lambda shape, **more: rk45(network, shape, process=process, prediction="epsilon", **more)  # noqa: E731
    together = draw((3, 2), seeds=[4, 5, 6])
    assert torch.equal(draw((1, 2), seeds=[5])[0], together[1]) and together.dtype == torch.float32
    assert draw((0, 2)).shape == (0, 2)


def test_nan_reaches_the_result() -> None:
    x = torch.tensor([[1.0], [float("nan")]])
    end, _ = integrate(lambda t, x: -x, x, 0.0, 1.0)
    assert abs(end[0].item() - math.exp(-1)) < 1e-4 and end[1].isnan()


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(0.01, 50.0)], ids=str)
def test_likelihood_is_that_of_the_mixture(process) -> None:
    last = torch.tensor(process.last_time, dtype=torch.float64)
    alpha, sigma = process.alpha(last), process.sigma(last)
    x = alpha * MIXTURE.sample(24, torch.Generator().manual_seed(0)) + sigma * noise(24)
    network = MIXTURE.denoiser(process, "score")
    found = log_likelihood(network, x, process=process, prediction="score", divergence="exact", rtol=1e-7, atol=1e-7)
    error = bits_per_dim(found, 2) - bits_per_dim(MIXTURE.log_density(x, alpha, sigma), 2)
    assert error.abs().max() < 1e-3

    options = {"process": process, "prediction": "score", "probes": 4}
    estimates = torch.stack(
        [log_likelihood(network, x, seeds=range(24 * run, 24 * run + 24), **options) for run in range(6)]
    )
    deviation = estimates.std(0) / math.sqrt(6)
    assert ((estimates.mean(0) - found) / deviation).abs().mean() < 2.5


def test_likelihood_does_not_depend_on_the_batch() -> None:
    process, x = VP(), noise(3)
    network = MIXTURE.denoiser(process, "score")
    options = {"process": process, "prediction": "score"}
    with pytest.raises(ValueError, match="probes must be at least 1"):
        log_likelihood(network, x, **{**options, "probes": 0})
    together = log_likelihood(network, x, seeds=[1, 2, 3], **options)
    torch.testing.assert_close(log_likelihood(network, x[1:2], seeds=[2], **options), together[1:2])
    with pytest.raises(ValueError, match="divergence must be.*'guess'"):
        log_likelihood(network, x, divergence="guess", **options)


def test_likelihood_of_a_leaf_has_no_graph() -> None:
    process, x = VP(), noise(3)
    network = MIXTURE.denoiser(process, "score")
    options = {"process": process, "prediction": "score"}
    found = log_likelihood(network, x.clone().requires_grad_(), **options)
    assert not found.requires_grad and torch.equal(found, log_likelihood(network, x, **options))


def test_bits_of_uniform_data_are_the_bits_of_its_levels() -> None:
    assert bits_per_dim(torch.tensor(12 * math.log(0.5)), 12).item() == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("process", "prediction"),
    [(DiscreteVP(), "epsilon"), (EDM(), "edm"), (FlowMatching(), "flow"), (VP(), "v")],
    ids=str,
)
def test_inversion_leads_back(process, prediction) -> None:
    network = MIXTURE.denoiser(process, prediction)
    x0 = MIXTURE.sample(32, torch.Generator().manual_seed(0))
    errors = []
    with fastdiff.use_reference():
        for steps in (100, 400):
            options = {"process": process, "prediction": prediction, "steps": steps}
            start = sample(network, x0, sampler="ddim_inverse", **options)
            errors.append((sample(network, start, sampler="ddim", **options) - x0).square().mean().sqrt().item())
    assert errors[1] < 0.1 and errors[1] < 0.5 * errors[0], errors
    assert abs(start.std() - 1) < 0.3


def test_slerp_keeps_the_norm_of_noise() -> None:
    a, b = torch.randn(2, 3, 5000, generator=torch.Generator().manual_seed(0))
    half = slerp(a, b, 0.5)
    assert (half.norm(dim=1) / a.norm(dim=1) - 1).abs().max() < 0.05
    torch.testing.assert_close(slerp(a, b, 0.0), a, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(slerp(a, b, 1.0), b, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(slerp(a, 3 * a, 0.5), 2 * a)


@pytest.mark.parametrize("process", [VE(0.01, 50.0), VP()], ids=str)
def test_predictor_corrector_draws_from_the_mixture(process) -> None:
    network, count = MIXTURE.denoiser(process, "score"), 1500
    # In two dimensions the norm of one score says little of its mean.
    x = predictor_corrector(network, (count, 2), process=process, steps=200, snr=0.1, batch_norms=True).double()
    mean, covariance = MIXTURE.moments()
    assert ((x.mean(0) - mean).abs() < 4.5 * covariance.diagonal().sqrt() / math.sqrt(count)).all()
    assert (x.T.cov() - covariance).abs().max() < (4.5 * math.sqrt(2 / count) + 0.05) * covariance[0, 0]
    nearest = (x[:, None] - MIXTURE.means).norm(dim=2).min(1).values
    assert nearest.quantile(0.99) < 0.9
    alone = predictor_corrector(network, (1, 2), process=process, steps=20, seeds=[7])
    batch = predictor_corrector(network, (3, 2), process=process, steps=20, seeds=[6, 7, 8])
    torch.testing.assert_close(alone[0], batch[1])


def test_langevin_leaves_the_distribution_as_it_is() -> None:
    """Many small steps on a standard normal, whose score is -x: the variance stays."""
    x = torch.randn(40, 1000, generator=torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(1)
    for _ in range(100):
        x = langevin_step(x, -x, torch.randn(x.shape, generator=random), snr=0.05)
    assert abs(x.var() - 1) < 0.05


def test_ve_steps_are_those_of_diffusers() -> None:
    """Reverse diffusion on discrete levels, and the corrector with norms over the batch."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.ScoreSdeVeScheduler(num_train_timesteps=50, sigma_max=50.0)
    scheduler.set_timesteps(50)
    scheduler.set_sigmas(50)
    process = VE(0.01, 50.0)
    levels = scheduler.discrete_sigmas.flip(0).double()
    schedule = fastdiff.sampling.schedule_of_ratios(process, levels)
    table = solver_table("reverse_diffusion", process, "score", 50, schedule=schedule)
    x, score = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    seeds = torch.arange(4)
    for row in (0, 10, 48):
        ours, _ = fastdiff.ops.sampler_step(x, score, table.coefficients.float(), row, seeds=seeds)
        drawn = fastdiff.ops.philox_normal((4, 3), seeds, offset=row + 1)
        with pytest.MonkeyPatch.context() as patch:
            module = "diffusers.schedulers.scheduling_sde_ve.randn_tensor"
            patch.setattr(module, lambda *args, drawn=drawn, **kwargs: drawn)
            theirs = scheduler.step_pred(score, torch.tensor((49 - row) / 49 + 1e-4), x).prev_sample
            corrected = scheduler.step_correct(score, x).prev_sample
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
        torch.testing.assert_close(langevin_step(x, score, drawn, snr=0.15, batch_norms=True), corrected)
        own = langevin_step(x, score, drawn, snr=0.15)
        torch.testing.assert_close(langevin_step(x[:1], score[:1], drawn[:1], snr=0.15), own[:1])
