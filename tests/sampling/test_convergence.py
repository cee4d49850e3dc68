"""Every deterministic solver against the exact probability flow of a Gaussian mixture, in float64."""

from __future__ import annotations

import pytest
import torch
from convergence import CASES, MIXTURE, PROCESS, UNIFORM, errors, exact, exact_end, slope, starts

import fastdiff
from fastdiff.diffusion import FlowMatching
from fastdiff.sampling import run_table, solver_table

SLOPE_TOLERANCE = 0.15


@pytest.fixture(scope="module")
def end() -> torch.Tensor:
    return exact_end()


@pytest.mark.parametrize(("sampler", "options", "order"), CASES, ids=str)
def test_order_of_convergence(sampler: str, options: dict, order: int, end: torch.Tensor) -> None:
    coarse, fine = errors(sampler, options, end, (120, 240) if order > 2 else (60, 120))
    assert abs(slope(coarse, fine) - order) < SLOPE_TOLERANCE, (coarse, fine, slope(coarse, fine))


def test_third_order_of_the_authors_code_is_second(end: torch.Tensor) -> None:
    """The form of the authors' code and of diffusers lacks a factor 2; with few steps it is better all the same."""
    coarse, fine = errors("dpmpp_3m_uncorrected", UNIFORM, end, (120, 240))
    assert abs(slope(coarse, fine) - 2) < SLOPE_TOLERANCE
    (corrected,) = errors("dpmpp_3m", UNIFORM, end, (240,))
    assert corrected < fine / 5
    (few,), (few_corrected,) = (errors(name, {}, end, (16,)) for name in ("dpmpp_3m_uncorrected", "dpmpp_3m"))
    assert few < few_corrected


def test_a_last_step_of_first_order_costs_the_third(end: torch.Tensor) -> None:
    coarse, fine = errors("unipc", {"order": 3}, end, (120, 240))
    assert abs(slope(coarse, fine) - 2) < SLOPE_TOLERANCE


def test_average_of_predictions_is_of_first_order(end: torch.Tensor) -> None:
    """What diffusers' PNDM averages are the network's predictions, whatever they are of."""
    coarse, fine = errors("pndm", {"average": "prediction"}, end, (120, 240))
    assert abs(slope(coarse, fine) - 1) < SLOPE_TOLERANCE


@pytest.mark.parametrize(("sampler", "order"), [("flow_euler", 1), ("flow_heun", 2)])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_order_from_pure_noise_to_data(sampler: str, order: int, shift: float) -> None:
    """On the straight path from t = 1, where alpha is 0, to where sigma is nearly 0."""
    process, noise = FlowMatching(), starts(FlowMatching())
    near = 1 - 1e-7  # the same as t = 1: alpha * x0 is 1e-7 there
    end = exact(noise, process, near, 1e-3)
    found = []
    for steps in (64, 128):
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        times = 1e-3 + (1 - 1e-3) * fastdiff.diffusion.shifted_time(times, shift)
        schedule = fastdiff.sampling.schedule_of_times(process, times, clean_end=False)
        table = solver_table(sampler, process, "flow", steps, schedule=schedule)
        with fastdiff.use_reference():
            sample = run_table(table, MIXTURE.denoiser(process, "flow"), noise, prediction="flow")
        found.append((sample / (1 - 1e-3) - end).square().mean().sqrt().item())
    assert abs(slope(*found) - order) < SLOPE_TOLERANCE, found


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v", "flow", "score", "edm"])
@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2m", "unipc", "lms"])
def test_predictions_are_interchangeable(sampler: str, prediction: str) -> None:
    """They hold the same information, and nothing that a solver keeps depends on which the network returns."""
    results = []
    for name in ("edm", prediction):
        table = solver_table(sampler, PROCESS, name, 12)
        with fastdiff.use_reference():
            results.append(run_table(table, MIXTURE.denoiser(PROCESS, name), starts(PROCESS), prediction=name))
    torch.testing.assert_close(results[1], results[0], rtol=1e-8, atol=1e-8)


def test_float32_follows_float64() -> None:
    """The kernels, in float32 with coefficients rounded to it, stay near: no table amplifies rounding."""
    for sampler in ("ddim", "heun", "dpmpp_3m", "unipc", "lms", "dpm2"):
        table = solver_table(sampler, PROCESS, "edm", 20)
        network, start = MIXTURE.denoiser(PROCESS, "edm"), starts(PROCESS)
        with fastdiff.use_reference():
            expected = run_table(table, network, start, prediction="edm")
        sample = run_table(table, network, start.float(), prediction="edm")
        assert (sample.double() - expected).abs().max() < 1e-4, sampler
