"""The stochastic solvers draw from the right distribution."""

from __future__ import annotations

import math

import pytest
import torch

from fastdiff import ops
from fastdiff.diffusion import EDM, VE, VP, DiscreteVP, GaussianMixture, SubVP
from fastdiff.ops import StepColumn
from fastdiff.sampling import SolverTable, ddpm_learned_variance, run_table, sample, solver_table

EVERYWHERE = {"tau_range": (-math.inf, math.inf)}
EDM_PROCESS = EDM(sigma_data=0.5, sigma_min=0.002, sigma_max=80.0)

# sampler, options, process, prediction, weak order
CASES = [
    ("ddpm", {}, EDM_PROCESS, "edm", 1),
    ("ddpm", {"variance": "fixed_large"}, EDM_PROCESS, "edm", 1),
    ("ddim", {"eta": 1.0}, EDM_PROCESS, "edm", 1),
    ("ddim", {"eta": 0.5}, EDM_PROCESS, "edm", 1),
    ("euler_ancestral", {}, EDM_PROCESS, "edm", 1),
    ("dpm2_ancestral", {}, EDM_PROCESS, "edm", 1),
    ("dpmpp_2s_ancestral", {}, EDM_PROCESS, "edm", 1),
    ("dpmpp_sde", {}, EDM_PROCESS, "edm", 1),
    ("dpmpp_2m_sde", {}, EDM_PROCESS, "edm", 2),
    ("dpmpp_2m_sde", {"variant": "heun"}, EDM_PROCESS, "edm", 2),
    ("dpmpp_3m_sde", {}, EDM_PROCESS, "edm", 2),
    ("sa_solver", {"tau": 1.0, **EVERYWHERE}, EDM_PROCESS, "edm", 2),
    ("sa_solver", {"tau": 0.6, "predictor_order": 3, "corrector_order": 4, **EVERYWHERE}, EDM_PROCESS, "edm", 2),
    ("edm", {"churn": 40.0, "noise_scale": 1.0}, EDM_PROCESS, "edm", 1),
    ("euler_maruyama", {}, VP(epsilon=1e-4), "score", 1),
    ("euler_maruyama", {}, SubVP(epsilon=1e-3), "score", 1),
    ("euler_maruyama", {}, VE(0.01, 50.0), "score", 1),
    ("reverse_diffusion", {"denoise": False}, VP(epsilon=1e-4), "score", 1),
    ("reverse_diffusion", {"denoise": False}, VE(0.01, 50.0), "score", 1),
]


def variance(table: SolverTable, prediction: str, deviation: float, start_deviation: float) -> float:
    """Of a sample for data N(0, deviation^2) in one dimension, exactly: every state is linear in independent noises.

    A state is kept as its row of factors of the starting noise and of each row's noise.
    """
    rows = len(table)
    x = torch.zeros(rows + 1, dtype=torch.float64)
    x[0] = start_deviation
    guided, history = torch.zeros_like(x), [torch.zeros_like(x) for _ in range(4)]
    network = GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in ([[0.0]], [deviation], [1.0])))
    for row, (level, c) in enumerate(zip(table.levels, table.coefficients, strict=False)):
        if table.calls[row]:
            guided = _factor(network, level, prediction) * x
        model = c[StepColumn.MODEL_SAMPLE] * x + c[StepColumn.MODEL_GUIDED] * guided
        x = c[StepColumn.SAMPLE] * x + c[StepColumn.GUIDED] * guided + c[StepColumn.MODEL] * model
        x = x + sum(c[StepColumn.HISTORY_0 + i] * history[i] for i in range(4))
        x[row + 1] += c[StepColumn.NOISE]
        if table.writes[row] is not None:
            history[table.writes[row]] = model
    return x.square().sum().item()


def _factor(network: GaussianMixture, level, prediction: str) -> float:
    """The perfect network for such data: prediction = factor * x."""
    from fastdiff.diffusion import get_prediction

    alpha, sigma = (torch.tensor(v, dtype=torch.float64) for v in (level.alpha, level.sigma))
    of_x0, of_epsilon = get_prediction(prediction).weights(alpha, sigma)
    x0 = network.denoised(torch.ones(1, 1, dtype=torch.float64), alpha, sigma).item()
    return (of_x0 * x0 + of_epsilon * (1 - alpha * x0) / sigma).item()


@pytest.mark.parametrize(("sampler", "options", "process", "prediction", "order"), CASES, ids=str)
def test_variance_converges(sampler, options, process, prediction, order) -> None:
    deviation, errors = 0.5, []
    for steps in (100, 200, 400):
        table = solver_table(sampler, process, prediction, steps, **options)
        assert table.is_stochastic
        first, last = table.levels[0], table.levels[-1]
        start = math.sqrt((first.alpha * deviation) ** 2 + first.sigma**2)
        expected = (last.alpha * deviation) ** 2 + last.sigma**2
        errors.append(abs(variance(table, prediction, deviation, start) / expected - 1))
    slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    # Below 1e-4 the errors are those of the last level, sigma_min.
    assert errors[-1] < 1e-4 or (errors[-1] < 0.05 and slopes[-1] > order - 0.25), (errors, slopes)


def test_the_two_noises_of_dpmpp_sde_are_of_one_path() -> None:
    """With independent noises the midpoint would be of no use to the step: the variance would miss by more."""
    table = solver_table("dpmpp_sde", EDM_PROCESS, "edm", 20)
    second_stages = [row for row, called in enumerate(table.calls) if called][1::2][:-1]
    noise = table.coefficients[second_stages, StepColumn.NOISE]
    assert (noise > 0).all()
    for row in second_stages:
        here, there, up = table.levels[row - 1], table.levels[row + 1], table.coefficients[row, StepColumn.NOISE].item()
        full = there.ratio * math.sqrt(1 - (there.ratio / here.ratio) ** 2) * there.alpha
        middle = math.sqrt(here.ratio * there.ratio)
        assert math.isclose(up / full, math.sqrt((middle - there.ratio) / (here.ratio - there.ratio)), rel_tol=1e-9)


MIXTURE = GaussianMixture.ring(components=8, radius=1.0, deviation=0.2)
COUNT = 2000


@pytest.mark.parametrize(("sampler", "options", "process", "prediction", "order"), CASES, ids=str)
def test_moments_of_a_mixture(sampler, options, process, prediction, order) -> None:
    """The whole way: Philox's noise, the step and the loop, in float32."""
    table = solver_table(sampler, process, prediction, 100, **options)
    start = ops.philox_normal((COUNT, 2), range(COUNT)) * table.start_scale
    x = run_table(table, MIXTURE.denoiser(process, prediction), start, prediction=prediction, seeds=torch.arange(COUNT))
    x = x.double() / table.levels[-1].alpha
    mean, covariance = MIXTURE.moments()
    root = math.sqrt(COUNT)
    assert ((x.mean(0) - mean).abs() < 4.5 * covariance.diagonal().sqrt() / root).all()
    # The squares' deviation for x on a ring is below that of a Gaussian, sqrt(2) * variance. And 2 % of bias.
    assert (x.T.cov() - covariance).abs().max() < (4.5 * math.sqrt(2) / root + 0.02) * covariance[0, 0]
    # The spread within a component shows the noise, which the ring's own size would hide.
    nearest = (x[:, None] - MIXTURE.means).square().sum(2).min(1).values.mean()
    truth = MIXTURE.sample(200_000, torch.Generator().manual_seed(0))
    expected = (truth[:, None] - MIXTURE.means).square().sum(2).min(1).values.mean()
    assert abs(nearest / expected - 1) < 4.5 / root + 0.05, (nearest, expected)


@pytest.mark.parametrize(("fraction", "variance"), [(-1.0, "fixed_small"), (1.0, "fixed_large")])
def test_learned_variance_reaches_the_fixed_ones(fraction: float, variance: str) -> None:
    process = DiscreteVP()
    network = MIXTURE.denoiser(process, "epsilon")

    def learned(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.cat((network(x, timestep), torch.full_like(x, fraction)), dim=1)

    options = {"process": process, "prediction": "epsilon", "steps": 30, "seeds": range(5)}
    ours = ddpm_learned_variance(learned, (5, 2), **options)
    fixed = sample(network, (5, 2), sampler="ddpm", sampler_options={"variance": variance}, **options)
    torch.testing.assert_close(ours, fixed, rtol=1e-4, atol=1e-4)


def test_learned_variance_is_that_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", timestep_spacing="leading", clip_sample=False)
    scheduler.set_timesteps(10)
    outputs = torch.randn(10, 2, 6, 4, generator=torch.Generator().manual_seed(0))
    calls, seeds = iter(outputs), [3, 4]
    start = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    options = {"sampler_options": {"spacing": "leading"}, "seeds": seeds, "steps": 10}
    ours = ddpm_learned_variance(lambda x, t: next(calls), start, process=DiscreteVP(), prediction="epsilon", **options)
    x = start
    for row, (t, output) in enumerate(zip(scheduler.timesteps, outputs, strict=True)):
        drawn = ops.philox_normal((2, 3, 4), seeds, offset=row + 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *args, drawn=drawn, **kwargs: drawn
            )
            x = scheduler.step(output, t, x).prev_sample
    assert (ours - x).abs().max() < 1e-5 * x.abs().max()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_consistency_sampling_of_the_exact_function(steps: int) -> None:
    """A perfect consistency function leads any number of steps to data: for a Gaussian it is a factor."""
    deviation = 0.5

    def function(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        sigma = timestep.double()[:, None]
        return (x * deviation / torch.sqrt(deviation**2 + sigma**2)).to(x.dtype)

    process = VE(0.002, 80.0)
    table = solver_table("consistency", process, "sample", steps, schedule="karras")
    start = ops.philox_normal((COUNT, 2), range(COUNT)) * table.start_scale
    x = run_table(table, function, start, prediction="sample", seeds=torch.arange(COUNT))
    assert (x.std(0) / deviation - 1).abs().max() < 4.5 / math.sqrt(2 * COUNT)


def test_tcd_between_ddim_and_consistency_sampling() -> None:
    process = DiscreteVP("scaled_linear", 0.00085, 0.012)
    free, bound = (solver_table("tcd", process, "epsilon", 4, gamma=gamma) for gamma in (1.0, 0.0))
    assert not bound.is_stochastic and free.is_stochastic
    ddim = solver_table("ddim", process, "epsilon", 4, schedule="lcm", final="sigma_min")
    torch.testing.assert_close(bound.coefficients[:, StepColumn.SAMPLE], ddim.coefficients[:, StepColumn.SAMPLE])
    with pytest.raises(ValueError, match="gamma must be from 0 to 1, got 2"):
        solver_table("tcd", process, "epsilon", 4, gamma=2)
