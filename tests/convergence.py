"""How fast the samplers converge: shared by the tests and by docs/figures/plot_convergence.py.

The data is a Gaussian mixture, so that the network is perfect and the probability flow known to rounding; what is left
is the solver's own error. The definitions of the ops run in float64.
"""

from __future__ import annotations

import math

import torch

import fastdiff
from fastdiff.diffusion import EDM, GaussianMixture, Process
from fastdiff.sampling import run_table, solver_table

MIXTURE = GaussianMixture.ring(components=8, radius=1.0, deviation=0.2)
PROCESS = EDM(sigma_data=0.5, sigma_min=0.02, sigma_max=80.0)

FULL = {"lower_order_final": False}  # the last step of lower order would decide the slope
UNIFORM = {"schedule": "exponential"}  # singlestep solvers place their stages on the schedule's levels

# sampler, options, order of convergence
CASES = [
    ("euler", {}, 1),
    ("ddim", {}, 1),
    ("heun", {}, 2),
    ("edm", {}, 2),
    ("dpm2", {}, 2),
    ("lms", {"order": 2}, 2),
    ("lms", {"order": 3}, 3),
    ("lms", {}, 4),
    ("pndm", {}, 2),  # Adams-Bashforth's weights for equal steps, on steps that are not
    ("ipndm", {}, 2),
    ("deis", {"order": 2}, 2),
    ("deis", {"order": 3}, 3),
    ("dpm_solver_2m", {}, 2),
    ("dpm_solver_3m", {}, 3),
    ("dpm_solver_2s", UNIFORM, 2),
    ("dpm_solver_3s", UNIFORM, 3),
    ("dpmpp_2m", {}, 2),
    ("dpmpp_2m", {"variant": "heun"}, 2),
    ("dpmpp_3m", {}, 3),
    ("dpmpp_2s", UNIFORM, 2),
    ("dpmpp_3s", UNIFORM, 3),
    ("dpmpp_2s_ancestral", {"eta": 0.0}, 2),
    ("dpmpp_sde", {"eta": 0.0}, 2),
    ("unipc", {"order": 1, **FULL}, 2),  # the corrector gains one order (arXiv:2302.04867, theorem 3.1)
    ("unipc", {"order": 2, **FULL}, 3),
    ("unipc", {"order": 3, **FULL}, 4),
    ("unipc", {"order": 2, "variant": "bh1", **FULL}, 3),
    ("unipc", {"order": 2, "predict": "epsilon", **UNIFORM, **FULL}, 3),
    ("sa_solver", {"tau": 0.0, **UNIFORM, **FULL}, 2),
    ("sa_solver", {"tau": 0.0, "predictor_order": 3, "corrector_order": 4, **FULL}, 4),
]


def starts(process: Process, count: int = 24) -> torch.Tensor:
    noise = torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return noise * process.start_scale(torch.tensor(process.first_time, dtype=torch.float64))


def exact(x: torch.Tensor, process: Process, first: float, last: float, steps: int = 1500) -> torch.Tensor:
    """The flow by classical Runge-Kutta in log(sigma / alpha), of no sampler's kind."""
    times = torch.tensor([first, last], dtype=torch.float64)
    alpha, sigma = process.alpha(times), process.sigma(times)
    logs = torch.linspace(*(sigma / alpha).log().tolist(), steps + 1, dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)

    def slope(log_ratio: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y - MIXTURE.denoised(y, one, log_ratio.exp())

    y = x / alpha[0]
    for log, after in zip(logs, logs[1:], strict=False):
        h = after - log
        k1 = slope(log, y)
        k2 = slope(log + h / 2, y + h / 2 * k1)
        k3 = slope(log + h / 2, y + h / 2 * k2)
        k4 = slope(after, y + h * k3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y


def exact_end() -> torch.Tensor:
    """Where the starts of the measured process end."""
    return exact(starts(PROCESS), PROCESS, PROCESS.sigma_max, PROCESS.sigma_min)


def errors(sampler: str, options: dict, end: torch.Tensor, steps: tuple[int, ...]) -> list[float]:
    """RMS distance from the exact end, which is at sigma_min."""
    result = []
    for count in steps:
        options = {"schedule": "karras", "final": "sigma_min", **options}
        table = solver_table(sampler, PROCESS, "edm", count, **options)
        with fastdiff.use_reference():
            sample = run_table(table, MIXTURE.denoiser(PROCESS, "edm"), starts(PROCESS), prediction="edm")
        result.append((sample - end).square().mean().sqrt().item())
    return result


def slope(coarse: float, fine: float, ratio: float = 2.0) -> float:
    return math.log(coarse / fine) / math.log(ratio)
