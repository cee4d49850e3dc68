"""diffusers' scheduler_config.json: what a network was trained on and returns, and the solver chosen for it."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.diffusion import DiscreteVP, FlowMatching, dynamic_shift, shifted_time
from fastdiff.pipelines.scheduler_keys import ALLOWED, ALLOWED_OF_KIND, BETA_SCHEDULES, DEFAULTS, RENAMED
from fastdiff.sampling import SCHEDULES, NoiseSchedule, SolverTable, schedule_of_times
from fastdiff.sampling.scheduler_translation import PREDICTIONS, translate

_FLOW = "FlowMatchEulerDiscreteScheduler"
_K_STATE = {
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "HeunDiscreteScheduler",
}
"""Those that start from noise of k-diffusion's scale."""
_MULTISTEPS = {"DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"}
_NEVER_ZERO = {*_MULTISTEPS, "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"}
"""With zero terminal SNR these have 2^-24 in place of alpha^2 = 0."""


@dataclass(frozen=True)
class ImageTokens:
    """What a shift that depends on the size of the image goes by, and how the pipeline lays out its times."""

    count: int
    spacing: str = "linspace"
    """"trailing" or "linspace", as :data:`fastdiff.sampling.SCHEDULES` "flow" takes it."""


@dataclass(frozen=True)
class Plan:
    """How to sample: what :func:`fastdiff.sampling.run_table` takes, and the deviation of the noise to start from."""

    table: SolverTable
    prediction: str
    start_scale: float


@dataclass(frozen=True)
class LaidOut:
    """The timesteps of a scheduler for a number of steps: what a translation reads of it."""

    config: SimpleNamespace
    timesteps: Tensor
    sigmas: Tensor | None
    """(steps + 1,) sigma / alpha, or sigma on a straight path; two-stage methods have each but the ends twice."""
    alphas_cumprod: Tensor | None
    final_alpha_cumprod: Tensor | None


class SchedulerConfig:
    """A scheduler of diffusers, by its configuration alone.

    Keys that its class does not have are passed over, as diffusers does: its schedulers hand configurations on to each
    other.

    Args:
        values: what scheduler_config.json holds, with ``_class_name``.
        overrides: keys that a pipeline has a value of its own for.

    Raises:
        ValueError: a scheduler that is not understood, or a value that there is no table for.
    """

    def __init__(self, values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> None:
        self.values = dict(values)
        self.kind = str(self.values.get("_class_name"))
        if self.kind not in DEFAULTS:
            raise ValueError(
                f"the scheduler's _class_name must be one of {sorted(DEFAULTS)}, got {self.values.get('_class_name')!r}"
            )
        known = DEFAULTS[self.kind]
        given = {key: value for key, value in {**values, **(overrides or {})}.items() if key in known}
        self.config = SimpleNamespace(**{**known, **given})
        for key, names in RENAMED.get(self.kind, {}).items():
            setattr(self.config, key, names.get(getattr(self.config, key), getattr(self.config, key)))
        self._check()
        self.process = self._process()

    @property
    def prediction(self) -> str:
        """What the network returns, a name in :data:`fastdiff.diffusion.PREDICTIONS`."""
        return "flow" if self.kind == _FLOW else PREDICTIONS[self.config.prediction_type]

    def _check(self) -> None:
        for key, choices in {**ALLOWED, **ALLOWED_OF_KIND.get(self.kind, {})}.items():
            value = getattr(self.config, key, choices[0])
            if value not in choices:
                raise ValueError(f"the {self.kind}'s {key} must be one of {list(choices)}, got {value!r}")
        # A highest level without an end, and a last step that leads nowhere.
        excluded: dict[str, Any] = {"rescale_betas_zero_snr": True}
        if self.kind.startswith("DPM"):
            excluded |= {"final_sigmas_type": "sigma_min"}
        for key, value in excluded.items():
            if self._sigma_schedule is not None and getattr(self.config, key, None) == value:
                raise ValueError(
                    f"the {self.kind}'s {key} must not be {value!r} with {self._sigma_schedule} noise levels"
                )

    def _process(self) -> DiscreteVP | FlowMatching:
        config = self.config
        if self.kind == _FLOW:
            return FlowMatching(timestep_scale=config.num_train_timesteps)
        return DiscreteVP(
            BETA_SCHEDULES[config.beta_schedule],
            config.beta_start,
            config.beta_end,
            config.num_train_timesteps,
            self._zero_terminal_snr,
        )

    @property
    def _zero_terminal_snr(self) -> bool:
        return getattr(self.config, "rescale_betas_zero_snr", False)

    @property
    def _sigma_schedule(self) -> str | None:
        """The schedule of noise levels, of :data:`fastdiff.sampling.SCHEDULES`, in place of one of timesteps."""
        chosen = [name for name in ("karras", "exponential", "beta") if getattr(self.config, f"use_{name}_sigmas", 0)]
        chosen += ["lu"] if getattr(self.config, "use_lu_lambdas", False) else []
        if len(chosen) > 1:
            raise ValueError(f"the {self.kind} must have one kind of noise levels, got {chosen}")
        return chosen[0] if chosen else None

    def shift(self, tokens: ImageTokens) -> float:
        """The shift of the times of a flow, for an image of so many tokens."""
        config = self.config
        if not config.use_dynamic_shifting:
            return config.shift
        shift = dynamic_shift(
            tokens.count,
            base_tokens=config.base_image_seq_len,
            max_tokens=config.max_image_seq_len,
            base_mu=config.base_shift,
            max_mu=config.max_shift,
        )
        return shift if config.time_shift_type == "exponential" else math.log(shift)

    def plan(self, steps: int, tokens: ImageTokens, options: Mapping[str, Any] | None = None) -> Plan:
        """The solver's table for `steps` steps.

        Args:
            tokens: of the image, for a flow.
            options: of the solver, such as {"eta": 1.0} for DDIM, in place of what the configuration says.

        Raises:
            ValueError: an option that the solver does not have, or a configuration that there is no table for.
        """
        laid_out = self.lay_out(steps, tokens)
        translation = dataclasses.replace(translate(laid_out, kind=self.kind), unscaled=False)
        parameters = inspect.signature(translation.solver).parameters.values()
        known = sorted(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)
        for name in options or {}:
            if name not in known:
                raise ValueError(f"the {self.kind}'s solver has no option {name!r}; it has {known}")
        translation = dataclasses.replace(translation, options={**translation.options, **(options or {})})
        return Plan(translation.table(0), translation.prediction, self._start_scale(laid_out))

    def _start_scale(self, laid_out: LaidOut) -> float:
        if self.kind not in _K_STATE or self.config.timestep_spacing == "leading":
            return 1.0
        # From sigma_max * noise, without the data's share: diffusers' init_noise_sigma, in the network's scaling.
        assert laid_out.sigmas is not None
        highest = laid_out.sigmas.max().item()
        return highest / math.hypot(highest, 1)

    def lay_out(self, steps: int, tokens: ImageTokens) -> LaidOut:
        """The timesteps and noise levels that diffusers' set_timesteps lays out, in float64."""
        if self.kind == _FLOW:
            schedule = self._flow(steps, tokens)
            sigmas = torch.tensor([level.sigma for level in schedule.levels], dtype=torch.float64)
            return LaidOut(self.config, _told(schedule), sigmas, None, None)
        times = torch.arange(self.config.num_train_timesteps, dtype=torch.float64)
        alphas_cumprod = self.process.alpha(times) ** 2
        if self._zero_terminal_snr and self.kind in _NEVER_ZERO:
            alphas_cumprod[-1] = 2**-24
        final = torch.ones(()) if getattr(self.config, "set_alpha_to_one", True) else alphas_cumprod[0]
        if self.kind in _MULTISTEPS or self.kind in _K_STATE:
            told, sigmas = self._noise_levels(steps, alphas_cumprod)
            if self.kind == "HeunDiscreteScheduler":
                told = torch.cat((told[:1], told[1:].repeat_interleave(2)))
                sigmas = torch.cat((sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]))
            return LaidOut(self.config, told, sigmas, alphas_cumprod, final)
        told = self._timesteps(steps)
        if self.kind == "PNDMScheduler" and steps > 1:
            told = torch.cat((told[:2], told[1:]))  # the first step's correction is a call of its own
        return LaidOut(self.config, told.long(), None, alphas_cumprod, final)

    def _flow(self, steps: int, tokens: ImageTokens) -> NoiseSchedule:
        shift, terminal = self.shift(tokens), self.config.shift_terminal
        if tokens.spacing == "linspace" and self.config.use_dynamic_shifting:
            if terminal is not None:
                raise ValueError(f"the {self.kind}'s shift_terminal must be None for this pipeline, got {terminal}")
            # Only a fixed shift is applied to the ends first.
            times = torch.linspace(1, 1 / self.config.num_train_timesteps, steps, dtype=torch.float64)
            return schedule_of_times(self.process, shifted_time(times, shift))
        return SCHEDULES["flow"](self.process, steps, shift=shift, spacing=tokens.spacing, terminal=terminal)

    def _timesteps(self, steps: int) -> Tensor:
        if self.kind == "LCMScheduler":
            return _told(SCHEDULES["lcm"](self.process, steps, original_steps=self.config.original_inference_steps))
        schedule = SCHEDULES["timesteps"](
            self.process,
            steps,
            spacing=self.config.timestep_spacing,
            steps_offset=self.config.steps_offset,
            extra_point=self.kind in _MULTISTEPS,
            rounded=self.kind not in _K_STATE,
        )
        return _told(schedule)

    def _noise_levels(self, steps: int, alphas_cumprod: Tensor) -> tuple[Tensor, Tensor]:
        """(timesteps, (steps + 1,) sigma / alpha)"""
        trained = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()
        told, name = self._timesteps(steps), self._sigma_schedule
        sigmas = torch.as_tensor(np.interp(told, np.arange(len(trained)), trained))
        if name is not None:
            # The single-step methods go by the levels of their timesteps, the others by all that were trained on.
            ends = trained.flip(0) if self.kind in _MULTISTEPS else sigmas
            low, high = (getattr(self.config, key, None) for key in ("sigma_min", "sigma_max"))
            schedule = SCHEDULES[name](
                self.process,
                steps,
                sigma_min=ends[-1].item() if low is None else low,
                sigma_max=ends[0].item() if high is None else high,
            )
            told = self._rounded(_told(schedule), name)
            sigmas = torch.tensor([level.ratio for level in schedule.levels[:-1]], dtype=torch.float64)
        deis = self.kind == "DEISMultistepScheduler"
        last = torch.zeros(1, dtype=torch.float64)
        if deis or getattr(self.config, "final_sigmas_type", "zero") == "sigma_min":
            last = sigmas[-1:] if deis and name is not None else trained[:1]
        return told, torch.cat((sigmas, last))

    def _rounded(self, told: Tensor, name: str) -> Tensor:
        """Multistep methods have whole timesteps, some of them rounded and some cut off."""
        if self.kind not in _MULTISTEPS:
            return told
        cosine_dpm = self.kind.startswith("DPM") and self.config.beta_schedule == "squaredcos_cap_v2"
        rounds = name in ("karras", "lu") and not cosine_dpm
        # 1e-6: the table of noise levels is in float64 here, and a whole number must not be cut off below itself.
        return told.round() if rounds else (told + 1e-6).floor()


def _told(schedule: NoiseSchedule) -> Tensor:
    """(steps,) float64: what the network is told at each call."""
    return torch.tensor([level.timestep for level in schedule.levels[:-1]], dtype=torch.float64)
