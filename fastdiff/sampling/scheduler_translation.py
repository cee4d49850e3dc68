"""Which solver, options and noise levels a scheduler of diffusers stands for, by its class and configuration."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastdiff.diffusion import EDM, FlowMatching
from fastdiff.sampling import solvers
from fastdiff.sampling.schedule import Level, NoiseSchedule
from fastdiff.sampling.table import SolverTable

PREDICTIONS = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v", "flow_prediction": "flow"}


@dataclass(frozen=True)
class Translation:
    """A scheduler after set_timesteps, as a solver on noise levels."""

    solver: Callable[..., SolverTable]
    levels: tuple[Level, ...]
    prediction: str
    options: dict[str, Any] = field(default_factory=dict)
    process: Any = None
    calls_per_level: int = 1
    """2 for the two-stage methods, whose timesteps come in pairs."""
    unscaled: bool = False
    """The scheduler's state is x / alpha; its model input is scaled in a pass of its own."""
    always_draws: bool = False
    """Noise is drawn at every step, needed or not."""
    denoised: Callable[[Any, Tensor, Tensor], Tensor] | None = None
    """(timestep, sample, kept model) -> the second result of step(), where pipelines rely on it."""
    only_from_start: bool = False
    """A loop cannot begin at a later timestep."""

    def table(self, first: int) -> SolverTable:
        """The table from the place `first` of the scheduler's timesteps on."""
        if first and self.only_from_start:
            raise ValueError(f"the scheduler can only begin at its first timestep, got the one at {first}")
        levels = self.levels[first // self.calls_per_level :]
        options = tuple(sorted(self.options.items()))
        return _table(self.solver, self.process, levels, self.prediction, options, self.unscaled)

    @property
    def input_scales(self) -> list[float] | None:
        """What scale_model_input multiplies by at each timestep."""
        if not self.unscaled:
            return None
        table = self.table(0)
        return [level.alpha for level, called in zip(table.levels, table.calls, strict=False) if called]


@functools.lru_cache(maxsize=32)  # a pipeline runs again and again with the same settings
def _table(
    solver: Callable[..., SolverTable],
    process: Any,
    levels: tuple[Level, ...],
    prediction: str,
    options: tuple[tuple[str, Any], ...],
    unscaled: bool,
) -> SolverTable:
    table = solver(NoiseSchedule(process, levels, 1.0), prediction, **dict(options))
    if not unscaled:
        return table
    return table.in_units(torch.tensor([1 / level.alpha for level in table.levels], dtype=torch.float64))


def check_kind(scheduler: Any) -> None:
    """ValueError for a scheduler of a class that there is no table for."""
    if type(scheduler).__name__ not in _TRANSLATIONS:
        raise ValueError(f"scheduler must be one of {sorted(_TRANSLATIONS)}, got {type(scheduler).__name__}")


def translate(scheduler: Any, eta: float | None = None, *, kind: str | None = None) -> Translation:
    """The translation of a diffusers scheduler after its set_timesteps.

    Args:
        scheduler: the scheduler, or a stand-in with its config, timesteps, sigmas and alphas_cumprod.
        eta: of step(): DDIM's, and TCD's gamma.
        kind: the class that a stand-in stands for.

    Raises:
        ValueError: a configuration that there is no table for.
    """
    return _TRANSLATIONS[kind or type(scheduler).__name__](scheduler, eta)


@dataclass(frozen=True, eq=False)
class _Trained:
    """The discrete process of a scheduler, from its own alphas_cumprod."""

    alphas_cumprod: Tensor

    def alpha(self, t: Tensor) -> Tensor:
        return self.alphas_cumprod.double()[t.long()].sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self.alphas_cumprod.double()[t.long()]).sqrt()

    def timestep(self, t: Tensor) -> Tensor:
        return t


def _discrete_levels(scheduler: Any, times: Sequence[int], told: Sequence[int], final: float) -> tuple[Level, ...]:
    """Levels at whole times, of which those below 0 have the squared alpha `final`."""
    squares = [scheduler.alphas_cumprod[t].double().item() if t >= 0 else final for t in times]
    return tuple(
        Level(math.sqrt(square), math.sqrt(1 - square), timestep, time)
        for square, timestep, time in zip(squares, (*told, -1), times, strict=True)
    )


def _vp_levels(scheduler: Any) -> tuple[Level, ...]:
    """Of the schedulers with ``sigmas`` whose state is variance-preserving, or on a straight path."""
    told = [*scheduler.timesteps.tolist(), math.nan]
    sigmas = scheduler.sigmas.double().tolist()
    if getattr(scheduler.config, "use_flow_sigmas", False):
        return tuple(Level(1 - sigma, sigma, t) for sigma, t in zip(sigmas, told, strict=True))
    return tuple(_ratio_level(sigma, t, 1.0) for sigma, t in zip(sigmas, told, strict=True))


def _ratio_level(sigma: float, timestep: float, sigma_data: float) -> Level:
    scale = math.hypot(sigma, sigma_data)
    return Level(1 / scale, sigma / scale, timestep)


def _k_levels(scheduler: Any, calls_per_level: int = 1) -> tuple[Level, ...]:
    """Of the schedulers that have k-diffusion's state, x / alpha: without the repetitions of the two-stage methods."""
    told, sigmas = scheduler.timesteps.tolist(), scheduler.sigmas.double().tolist()
    if calls_per_level == 2:
        told = told[::2]
        sigmas = [sigmas[0], *sigmas[1 : 2 * len(told) - 1 : 2], 0.0]
    # "log_linear" lays out one level too many, so that sampling ends above zero.
    sigmas, told = sigmas[: len(told) + 1], [*told, math.nan]
    return tuple(_ratio_level(sigma, t, 1.0) for sigma, t in zip(sigmas, told, strict=True))


def _data_levels(scheduler: Any) -> tuple[Level, ...]:
    """Of EDM and consistency models, in the network's own scaling."""
    told, sigmas = [*scheduler.timesteps.tolist(), math.nan], scheduler.sigmas.double().tolist()
    sigma_data = scheduler.config.sigma_data
    return tuple(_ratio_level(sigma, t, sigma_data) for sigma, t in zip(sigmas, told, strict=True))


def _prediction(scheduler: Any) -> str:
    kind = scheduler.config.prediction_type
    if kind not in PREDICTIONS:
        raise ValueError(f"the scheduler's prediction_type must be one of {sorted(PREDICTIONS)}, got {kind!r}")
    if str(getattr(scheduler.config, "variance_type", None)).startswith("learned"):
        raise ValueError(f"the scheduler's variance_type must not be learned, got {scheduler.config.variance_type!r}")
    return PREDICTIONS[kind]


def _bound(scheduler: Any) -> dict[str, Any]:
    config = scheduler.config
    if getattr(config, "thresholding", False):
        return {"threshold": (config.dynamic_thresholding_ratio, config.sample_max_value)}
    return {"clip": config.clip_sample_range} if getattr(config, "clip_sample", False) else {}


def _few_steps(scheduler: Any) -> int:
    """The rule of diffusers, of the whole schedule, even if a loop begins further on."""
    few = scheduler.config.lower_order_final and len(scheduler.timesteps) < 15
    return len(scheduler.timesteps) + 1 if few else 0


def _ddpm(scheduler: Any, eta: float | None) -> Translation:
    kind = scheduler.config.variance_type
    variances = {"fixed_small": "fixed_small", "fixed_small_log": "fixed_small", "fixed_large": "fixed_large"}
    if kind not in variances:
        raise ValueError(f"the scheduler's variance_type must be one of {sorted(variances)}, got {kind!r}")
    told = scheduler.timesteps.tolist()
    levels = _discrete_levels(scheduler, [*told, -1], told, 1.0)
    return Translation(solvers.ddpm, levels, _prediction(scheduler), {"variance": variances[kind], **_bound(scheduler)})


def _ddim(scheduler: Any, eta: float | None) -> Translation:
    told = scheduler.timesteps.tolist()
    levels = _discrete_levels(scheduler, [*told, -1], told, scheduler.final_alpha_cumprod.double().item())
    options = {"eta": eta or 0.0, **_bound(scheduler)}
    return Translation(solvers.ddim, levels, _prediction(scheduler), options, always_draws=bool(eta))


def _ddim_inverse(scheduler: Any, eta: float | None) -> Translation:
    told = scheduler.timesteps.tolist()
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    levels = _discrete_levels(
        scheduler, [told[0] - stride, *told], told, scheduler.initial_alpha_cumprod.double().item()
    )
    return Translation(solvers.ddim, levels, _prediction(scheduler), _bound(scheduler))


def _pndm(scheduler: Any, eta: float | None) -> Translation:
    if not scheduler.config.skip_prk_steps:
        raise ValueError("the scheduler's skip_prk_steps must be True: there is no table for Runge-Kutta steps")
    told = scheduler.timesteps.tolist()
    told = told[:1] + told[2:]  # the second call is the first's correction
    levels = _discrete_levels(scheduler, [*told, -1], told, scheduler.final_alpha_cumprod.double().item())
    return Translation(solvers.pndm, levels, _prediction(scheduler), {"average": "prediction"}, only_from_start=True)


def _euler(scheduler: Any, eta: float | None) -> Translation:
    return Translation(solvers.ddim, _k_levels(scheduler), _prediction(scheduler), unscaled=True)


def _euler_ancestral(scheduler: Any, eta: float | None) -> Translation:
    levels = _k_levels(scheduler)
    return Translation(solvers.euler_ancestral, levels, _prediction(scheduler), unscaled=True, always_draws=True)


def _lms(scheduler: Any, eta: float | None) -> Translation:
    return Translation(solvers.lms, _k_levels(scheduler), _prediction(scheduler), unscaled=True)


def _two_stage(solver: Callable[..., SolverTable]) -> Callable[[Any, float | None], Translation]:
    def translation(scheduler: Any, eta: float | None) -> Translation:
        return Translation(
            solver,
            _k_levels(scheduler, 2),
            _prediction(scheduler),
            _bound(scheduler),
            process=EDM(sigma_data=1.0),
            calls_per_level=2,
            unscaled=True,
        )

    return translation


def _dpm_options(scheduler: Any) -> dict[str, Any]:
    config = scheduler.config
    return {
        "algorithm": config.algorithm_type.removeprefix("sde-"),
        "stochastic": config.algorithm_type.startswith("sde-"),
        "order": config.solver_order,
        "variant": config.solver_type,
        "uncorrected": True,
        **_bound(scheduler),
    }


def _dpm_multistep(scheduler: Any, eta: float | None, edm: bool = False) -> Translation:
    if edm and scheduler.config.prediction_type != "epsilon":
        raise ValueError(f"the scheduler's prediction_type must be 'epsilon', got {scheduler.config.prediction_type!r}")
    options = _dpm_options(scheduler) | {
        "few_steps": _few_steps(scheduler),
        "euler_at_final": scheduler.config.euler_at_final,
    }
    return Translation(
        solvers.dpm_multistep,
        _data_levels(scheduler) if edm else _vp_levels(scheduler),
        "edm" if edm else _prediction(scheduler),
        options,
        unscaled=edm,
        always_draws=options["stochastic"],
    )


def _dpm_singlestep(scheduler: Any, eta: float | None) -> Translation:
    options = _dpm_options(scheduler) | {"lower_order_final": scheduler.config.lower_order_final}
    return Translation(
        solvers.dpm_singlestep,
        _vp_levels(scheduler),
        _prediction(scheduler),
        options,
        always_draws=options["stochastic"],
        only_from_start=True,
    )


def _deis(scheduler: Any, eta: float | None) -> Translation:
    if _bound(scheduler):
        raise ValueError("the scheduler must have no thresholding: its noise would have to be kept after the threshold")
    options = {"order": scheduler.config.solver_order, "few_steps": _few_steps(scheduler)}
    return Translation(solvers.deis, _vp_levels(scheduler), _prediction(scheduler), options)


def _unipc(scheduler: Any, eta: float | None) -> Translation:
    config = scheduler.config
    if config.disable_corrector or config.solver_p is not None:
        raise ValueError("the scheduler must have no disable_corrector and no solver_p")
    options = {
        "order": config.solver_order,
        "variant": config.solver_type,
        "predict": "sample" if config.predict_x0 else "epsilon",
        "lower_order_final": config.lower_order_final,
        **_bound(scheduler),
    }
    return Translation(solvers.unipc, _vp_levels(scheduler), _prediction(scheduler), options)


def _sa(scheduler: Any, eta: float | None) -> Translation:
    config = scheduler.config
    if config.tau_func is not None or config.algorithm_type != "data_prediction":
        raise ValueError("the scheduler must have algorithm_type 'data_prediction' and no tau_func of its own")
    options = {
        "predictor_order": config.predictor_order,
        "corrector_order": config.corrector_order,
        "lower_order_final": config.lower_order_final,
        **_bound(scheduler),
    }
    return Translation(solvers.sa_solver, _vp_levels(scheduler), _prediction(scheduler), options, always_draws=True)


def _edm_euler(scheduler: Any, eta: float | None) -> Translation:
    if scheduler.config.prediction_type != "epsilon":
        raise ValueError(f"the scheduler's prediction_type must be 'epsilon', got {scheduler.config.prediction_type!r}")
    return Translation(solvers.ddim, _data_levels(scheduler), "edm", unscaled=True)


def _flow(scheduler: Any, eta: float | None, heun: bool = False) -> Translation:
    config, told = scheduler.config, [*scheduler.timesteps.tolist(), math.nan]
    if getattr(config, "invert_sigmas", False):
        raise ValueError("the scheduler's invert_sigmas must be False, got True")
    sigmas = scheduler.sigmas.double().tolist()
    if heun:
        sigmas, told = [*sigmas[:1], *sigmas[1:-1:2], 0.0], [*told[:-1:2], math.nan]
    levels = tuple(Level(1 - sigma, sigma, t) for sigma, t in zip(sigmas, told, strict=True))
    if heun:
        return Translation(solvers.flow_heun, levels, "flow", calls_per_level=2)
    stochastic = config.stochastic_sampling
    solver = solvers.consistency if stochastic else solvers.ddim
    return Translation(solver, levels, "flow", process=FlowMatching(), always_draws=stochastic)


def _lcm(scheduler: Any, eta: float | None) -> Translation:
    told = scheduler.timesteps.tolist()
    levels = _discrete_levels(scheduler, [*told, -1], told, 1.0)
    options = {"timestep_scaling": scheduler.config.timestep_scaling, **_bound(scheduler)}

    def denoised(timestep: Any, sample: Tensor, x0: Tensor) -> Tensor:
        skip, out = scheduler.get_scalings_for_boundary_condition_discrete(timestep)
        return out * x0 + skip * sample

    return Translation(solvers.lcm, levels, _prediction(scheduler), options, denoised=denoised)


def _tcd(scheduler: Any, eta: float | None) -> Translation:
    if _bound(scheduler):
        raise ValueError("the scheduler must have no clip_sample and no thresholding: TCD's step has no use for them")
    told = scheduler.timesteps.tolist()
    levels = _discrete_levels(scheduler, [*told, 0], told, 1.0)
    gamma, process = 0.3 if eta is None else eta, _Trained(scheduler.alphas_cumprod)
    return Translation(solvers.tcd, levels, _prediction(scheduler), {"gamma": gamma}, process=process)


def _consistency(scheduler: Any, eta: float | None) -> Translation:
    config = scheduler.config
    process = EDM(config.sigma_data, config.sigma_min, config.sigma_max)
    options = {"noise_scale": config.s_noise, **({"clip": 1.0} if config.clip_denoised else {})}
    draws = len(scheduler.timesteps) > 1
    levels = _data_levels(scheduler)
    return Translation(solvers.consistency, levels, "edm", options, process=process, unscaled=True, always_draws=draws)


def _ipndm(scheduler: Any, eta: float | None) -> Translation:
    told = [*scheduler.timesteps.tolist(), math.nan]
    pairs = zip(scheduler.alphas.double().tolist(), scheduler.betas.double().tolist(), told, strict=True)
    return Translation(solvers.ipndm, tuple(Level(*pair) for pair in pairs), "v")


_TRANSLATIONS: dict[str, Callable[[Any, float | None], Translation]] = {
    "DDPMScheduler": _ddpm,
    "DDIMScheduler": _ddim,
    "DDIMInverseScheduler": _ddim_inverse,
    "PNDMScheduler": _pndm,
    "EulerDiscreteScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _euler_ancestral,
    "LMSDiscreteScheduler": _lms,
    "HeunDiscreteScheduler": _two_stage(solvers.heun),
    "KDPM2DiscreteScheduler": _two_stage(solvers.dpm2),
    "KDPM2AncestralDiscreteScheduler": _two_stage(solvers.dpm2_ancestral),
    "DPMSolverMultistepScheduler": _dpm_multistep,
    "DPMSolverSinglestepScheduler": _dpm_singlestep,
    "DEISMultistepScheduler": _deis,
    "UniPCMultistepScheduler": _unipc,
    "SASolverScheduler": _sa,
    "EDMEulerScheduler": _edm_euler,
    "EDMDPMSolverMultistepScheduler": functools.partial(_dpm_multistep, edm=True),
    "FlowMatchEulerDiscreteScheduler": _flow,
    "FlowMatchHeunDiscreteScheduler": functools.partial(_flow, heun=True),
    "LCMScheduler": _lcm,
    "TCDScheduler": _tcd,
    "CMStochasticIterativeScheduler": _consistency,
    "IPNDMScheduler": _ipndm,
}
