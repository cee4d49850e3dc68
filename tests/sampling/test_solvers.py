"""Solver tables against diffusers' schedulers, step by step, and against the exact solution on a Gaussian."""

from __future__ import annotations

import math

import pytest
import torch

from fastdiff import ops
from fastdiff.diffusion import PREDICTIONS, DiscreteVP, FlowMatching, get_prediction
from fastdiff.ops import StepColumn
from fastdiff.sampling import SAMPLERS, ddim, flow_euler, sample

diffusers = pytest.importorskip("diffusers")

DIFFUSERS_NAMES = {"epsilon": "epsilon", "sample": "sample", "v": "v_prediction"}


def predictions_of_some_network(steps: int) -> list[torch.Tensor]:
    """What a network might return: the solvers must agree for any values, so no network is needed."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 4, 4, generator=generator) for _ in range(steps)]


def start() -> torch.Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
@pytest.mark.parametrize("prediction", DIFFUSERS_NAMES)
@pytest.mark.parametrize(
    ("spacing", "steps"), [("trailing", 10), ("trailing", 50), ("leading", 10), ("leading", 7), ("leading", 300)]
)
def test_ddim_equals_diffusers_step_by_step(schedule, prediction, spacing, steps):
    scheduler = diffusers.DDIMScheduler(
        beta_schedule=schedule,
        timestep_spacing=spacing,
        prediction_type=DIFFUSERS_NAMES[prediction],
        clip_sample=False,
        steps_offset=0,
    )
    scheduler.set_timesteps(steps)
    table = ddim(DiscreteVP(schedule), prediction, steps, spacing=spacing)
    assert table.times.tolist() == scheduler.timesteps.tolist()
    theirs = start()
    for i, (t, output) in enumerate(zip(scheduler.timesteps, predictions_of_some_network(steps), strict=True)):
        # Each step from the same point: the schedulers' own float32 would add up over a run.
        ours, _ = ops.sampler_step(theirs, output, table.coefficients.float(), i)
        theirs = scheduler.step(output, t, theirs, eta=0.0).prev_sample
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4 * theirs.abs().max().item())


def test_ddim_steps_offset():
    scheduler = diffusers.DDIMScheduler(timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(20)
    table = ddim(DiscreteVP(), "epsilon", 20, spacing="leading", steps_offset=1)
    assert table.times.tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [("trailing", [999, 749, 499, 249]), ("leading", [750, 500, 250, 0]), ("linspace", [999, 666, 333, 0])],
)
def test_spacings(spacing, expected):
    assert ddim(DiscreteVP(), "epsilon", 4, spacing=spacing).times.tolist() == expected


def test_ddim_steps_land_on_the_next_time_where_steps_do_not_divide():
    """Knowing the true noise, every step must land on alpha * x0 + sigma * eps, whatever the spacing."""
    process = DiscreteVP()
    x0, eps = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for spacing in ("trailing", "leading", "linspace"):
        table = ddim(process, "epsilon", 7, spacing=spacing)
        arrivals = torch.cat((table.times[1:], torch.tensor([-1.0], dtype=torch.float64)))
        rows = table.coefficients[:, [StepColumn.SAMPLE, StepColumn.GUIDED]]
        for t, (c_x, c_p), arrival in zip(table.times, rows, arrivals, strict=True):
            x = process.alpha(t) * x0 + process.sigma(t) * eps
            expected = process.alpha(arrival) * x0 + process.sigma(arrival) * eps
            torch.testing.assert_close(c_x * x + c_p * eps, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 4, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler_equals_diffusers_step_by_step(steps, shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    table = flow_euler(FlowMatching(), "flow", steps, shift=shift, spacing="linspace")
    torch.testing.assert_close(table.times.float(), scheduler.sigmas[:-1], rtol=1e-5, atol=1e-6)
    timesteps = FlowMatching().timestep(table.times).float()
    torch.testing.assert_close(timesteps, scheduler.timesteps, rtol=1e-5, atol=1e-3)
    theirs = ours = start()
    for i, (t, output) in enumerate(zip(scheduler.timesteps, predictions_of_some_network(steps), strict=True)):
        ours, _ = ops.sampler_step(ours, output, table.coefficients.float(), i)
        theirs = scheduler.step(output, t, theirs).prev_sample
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_flow_euler_trailing_equals_diffusers_with_explicit_sigmas():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    table = flow_euler(FlowMatching(), "flow", 4, shift=3.0)
    torch.testing.assert_close(table.times.float(), scheduler.sigmas[:-1])
    expected = scheduler.sigmas.diff()
    torch.testing.assert_close(table.coefficients[:, StepColumn.GUIDED].float(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        table.coefficients[:, StepColumn.SAMPLE], torch.ones(4, dtype=torch.float64), rtol=1e-14, atol=0
    )


MEAN, STD = 1.5, 0.4


def gaussian_denoiser(process, prediction):
    """The exact network for x0 ~ N(MEAN, STD^2): E[prediction | x_t] is linear in x_t."""

    def denoiser(x, timestep):
        t = timestep.double() / (1000.0 if isinstance(process, FlowMatching) else 1.0)
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        variance = (alpha * STD) ** 2 + sigma**2
        residual = x.double() - alpha * MEAN
        x0, eps = MEAN + alpha * STD**2 / variance * residual, sigma / variance * residual
        w_x0, w_eps = get_prediction(prediction).weights(alpha, sigma)
        return (w_x0 * x0 + w_eps * eps).float()

    return denoiser


def exact_flow(process, x):
    """The probability-flow ODE maps quantiles to quantiles: for Gaussians it is affine."""
    first = process.time_from_unit(torch.ones((), dtype=torch.float64))
    alpha, sigma = process.alpha(first), process.sigma(first)
    scale = STD / math.sqrt((alpha * STD) ** 2 + sigma**2)
    return MEAN + scale * (x.double() - alpha * MEAN)


@pytest.mark.parametrize(
    ("sampler", "process", "predictions"),
    [
        ("flow_euler", FlowMatching(), ["flow", "v", "sample"]),
        ("ddim", FlowMatching(), ["flow"]),
        ("ddim", DiscreteVP(), list(PREDICTIONS)),
        ("ddim", DiscreteVP("cosine"), ["v", "flow", "sample"]),
    ],
)
def test_first_order_convergence_to_the_exact_flow(sampler, process, predictions):
    noise = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    exact = exact_flow(process, noise)
    for prediction in predictions:
        errors = []
        for steps in (16, 32, 64):
            result = sample(
                gaussian_denoiser(process, prediction),
                noise,
                sampler=sampler,
                steps=steps,
                process=process,
                prediction=prediction,
            )
            errors.append((result.double() - exact).square().mean().sqrt().item())
        slopes = [math.log2(coarse / fine) for coarse, fine in zip(errors, errors[1:], strict=False)]
        assert all(0.8 < slope < 1.25 for slope in slopes), (prediction, errors, slopes)
        assert errors[-1] < 0.05


def test_predictions_are_interchangeable():
    """Epsilon, x0, v and flow hold the same information: the samples must agree up to rounding."""
    process = DiscreteVP()
    noise = torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
    results = [
        sample(gaussian_denoiser(process, name), noise, process=process, prediction=name, steps=25)
        for name in PREDICTIONS
    ]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-3, atol=1e-3)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="steps must be from 1 to the process's 1000"):
        ddim(DiscreteVP(), "epsilon", 1001)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        flow_euler(FlowMatching(), "flow", 0)
    with pytest.raises(ValueError, match="spacing must be.*'karras'"):
        ddim(DiscreteVP(), "epsilon", 10, spacing="karras")
    with pytest.raises(ValueError, match="spacing must be.*'leading'"):
        flow_euler(FlowMatching(), "flow", 10, spacing="leading")
    with pytest.raises(ValueError, match="shift must be positive"):
        flow_euler(FlowMatching(), "flow", 10, shift=0.0)
    with pytest.raises(ValueError, match="'flow_euler' needs a FlowMatching process, got DiscreteVP"):
        flow_euler(DiscreteVP(), "flow", 10)
    with pytest.raises(ValueError, match="t must be whole numbers"):
        ddim(DiscreteVP(), "epsilon", 4, spacing="leading", steps_offset=500)
    with pytest.raises(ValueError, match="steps_offset must be 0 for a process in continuous time, got 1"):
        ddim(FlowMatching(), "flow", 4, steps_offset=1)
    assert set(SAMPLERS) == {"ddim", "flow_euler"}
