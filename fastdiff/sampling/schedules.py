"""Where a solver's steps lie, by name; here those that are laid out by the noise level sigma / alpha."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastdiff.diffusion import Process
from fastdiff.sampling.schedule import NoiseSchedule, schedule_of_ratios
from fastdiff.sampling.spacings import check_steps, ends_clean, flow, lcm, sgm_uniform, timesteps, uniform

# Align Your Steps (arXiv:2404.14507), sigma / alpha for 10 steps.
AYS = {
    "sd": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def karras(
    process: Process,
    steps: int,
    *,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    final: str = "zero",
) -> NoiseSchedule:
    """``sigma^(1/rho)`` equally spaced (arXiv:2206.00364, equation 5), sigma being sigma / alpha.

    Args:
        rho: 7 in EDM.
        sigma_min, sigma_max: the lowest and highest level of a model call; default the process's.
        final: "zero" takes `steps` calls from sigma_max to sigma_min and ends on clean data; "sigma_min" ends there.
    """
    low, high = (bound ** (1 / rho) for bound in _bounds(process, sigma_min, sigma_max))
    ratios = (high + _ramp(steps, final) * (low - high)) ** rho
    return schedule_of_ratios(process, ratios, clean_end=ends_clean(final))


def exponential(
    process: Process,
    steps: int,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    final: str = "zero",
) -> NoiseSchedule:
    """log(sigma / alpha) equally spaced: DPM-Solver's uniform lambda. Arguments as for :func:`karras`."""
    return polyexponential(process, steps, rho=1.0, sigma_min=sigma_min, sigma_max=sigma_max, final=final)


def polyexponential(
    process: Process,
    steps: int,
    *,
    rho: float = 1.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    final: str = "zero",
) -> NoiseSchedule:
    """log(sigma / alpha) a polynomial ``u^rho`` of the step (k-diffusion). Arguments as for :func:`karras`."""
    low, high = (math.log(bound) for bound in _bounds(process, sigma_min, sigma_max))
    ratios = torch.exp(low + (1 - _ramp(steps, final)) ** rho * (high - low))
    return schedule_of_ratios(process, ratios, clean_end=ends_clean(final))


def beta(
    process: Process,
    steps: int,
    *,
    a: float = 0.6,
    b: float = 0.6,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    final: str = "zero",
) -> NoiseSchedule:
    """sigma / alpha at quantiles of a beta distribution (arXiv:2407.12173): most steps at both ends. Needs SciPy.

    Args:
        a, b: of the distribution.
        sigma_min, sigma_max, final: as for :func:`karras`.
    """
    from scipy.stats import beta as distribution  # optional: nothing else in the package needs SciPy's statistics

    low, high = _bounds(process, sigma_min, sigma_max)
    quantiles = distribution.ppf(1 - _ramp(steps, final).numpy(), a, b)
    return schedule_of_ratios(process, torch.as_tensor(low + (high - low) * quantiles), clean_end=ends_clean(final))


def ays(process: Process, steps: int, *, model: str = "sd") -> NoiseSchedule:
    """Align Your Steps (arXiv:2404.14507): levels optimised for a family of models, log-linear between its 10 steps.

    Args:
        model: "sd", "sdxl" or "svd".
    """
    if model not in AYS:
        raise ValueError(f"model must be one of {sorted(AYS)}, got {model!r}")
    check_steps(steps)
    known = np.log(AYS[model])
    ratios = np.exp(np.interp(np.linspace(0, 1, steps + 1), np.linspace(0, 1, len(known)), known))
    return schedule_of_ratios(process, torch.as_tensor(ratios[:-1]))


SCHEDULES: dict[str, Callable[..., NoiseSchedule]] = {
    "timesteps": timesteps,
    "uniform": uniform,
    "sgm_uniform": sgm_uniform,
    "flow": flow,
    "karras": karras,
    "exponential": exponential,
    "lu": exponential,  # as diffusers calls it
    "polyexponential": polyexponential,
    "beta": beta,
    "ays": ays,
    "lcm": lcm,
}


def _ramp(steps: int, final: str) -> Tensor:
    """0 to 1 over the levels: as many as there are calls, or one more if it ends on one."""
    check_steps(steps)
    return torch.linspace(0, 1, steps if ends_clean(final) else steps + 1, dtype=torch.float64)


def _bounds(process: Process, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    times = torch.tensor([process.last_time, process.first_time], dtype=torch.float64)
    low, high = (process.sigma(times) / process.alpha(times)).tolist()
    low, high = (low if sigma_min is None else sigma_min), (high if sigma_max is None else sigma_max)
    if not 0 < low <= high < math.inf:
        raise ValueError(
            f"sigma_min and sigma_max must satisfy 0 < sigma_min <= sigma_max < inf, got {low} and {high} "
            "(sigma_max must be given for a process that starts from pure noise)"
        )
    return low, high
