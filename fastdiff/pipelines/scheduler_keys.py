"""The keys of diffusers' scheduler_config.json: what they are where a file is silent, and what is understood."""

from __future__ import annotations

import math
from typing import Any

from fastdiff.sampling.scheduler_translation import PREDICTIONS

BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_DISCRETE = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
}
_ZERO_SNR = {"rescale_betas_zero_snr": False}
_THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_BOUNDED = {**_THRESHOLD, "clip_sample": True, "clip_sample_range": 1.0}
_NOISE_LEVELS = {
    "timestep_spacing": "linspace",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
_SIGMAS = {"sigma_min": None, "sigma_max": None}
_FINAL = {"final_sigmas_type": "zero"}
_MULTISTEP = {
    **_DISCRETE,
    **_NOISE_LEVELS,
    **_THRESHOLD,
    "solver_order": 2,
    "lower_order_final": True,
    "use_flow_sigmas": False,
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {**_DISCRETE, **_BOUNDED, **_ZERO_SNR, "set_alpha_to_one": True},
    "DDPMScheduler": {**_DISCRETE, **_BOUNDED, **_ZERO_SNR, "variance_type": "fixed_small"},
    "PNDMScheduler": {**_DISCRETE, "skip_prk_steps": False, "set_alpha_to_one": False},
    "EulerDiscreteScheduler": {
        **_DISCRETE,
        **_NOISE_LEVELS,
        **_SIGMAS,
        **_FINAL,
        **_ZERO_SNR,
        "interpolation_type": "linear",
        "timestep_type": "discrete",
    },
    "EulerAncestralDiscreteScheduler": {**_DISCRETE, **_ZERO_SNR, "timestep_spacing": "linspace"},
    "LMSDiscreteScheduler": {**_DISCRETE, **_NOISE_LEVELS},
    "HeunDiscreteScheduler": {
        **_DISCRETE,
        **_NOISE_LEVELS,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "clip_sample": False,
        "clip_sample_range": 1.0,
    },
    "DPMSolverMultistepScheduler": {
        **_MULTISTEP,
        **_FINAL,
        **_ZERO_SNR,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "euler_at_final": False,
        "use_lu_lambdas": False,
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
    },
    "UniPCMultistepScheduler": {
        **_MULTISTEP,
        **_SIGMAS,
        **_FINAL,
        **_ZERO_SNR,
        "solver_type": "bh2",
        "predict_x0": True,
        "disable_corrector": [],
        "solver_p": None,
    },
    "DEISMultistepScheduler": {**_MULTISTEP, "algorithm_type": "deis", "solver_type": "logrho"},
    "LCMScheduler": {
        **_DISCRETE,
        **_BOUNDED,
        **_ZERO_SNR,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "original_inference_steps": 50,
        "timestep_scaling": 10.0,
    },
    "FlowMatchEulerDiscreteScheduler": {
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_dynamic_shifting": False,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "invert_sigmas": False,
        "shift_terminal": None,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "time_shift_type": "exponential",
        "stochastic_sampling": False,
    },
}
"""The schedulers that are understood, and what diffusers takes where their file is silent."""

ALLOWED: dict[str, tuple[Any, ...]] = {
    "trained_betas": (None,),
    "beta_schedule": tuple(BETA_SCHEDULES),
    "prediction_type": tuple(PREDICTIONS),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "use_flow_sigmas": (False, None),
    "lambda_min_clipped": (-math.inf,),
    "invert_sigmas": (False, None),
    "time_shift_type": ("exponential", "linear"),
}
"""The values that are understood, of keys that have others, too."""

ALLOWED_OF_KIND: dict[str, dict[str, tuple[Any, ...]]] = {
    "FlowMatchEulerDiscreteScheduler": {
        key: (False, None) for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
    },
    "DPMSolverMultistepScheduler": {
        "algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"),
        "solver_type": ("midpoint", "heun"),
    },
    "UniPCMultistepScheduler": {"solver_type": ("bh1", "bh2")},
    "DEISMultistepScheduler": {"algorithm_type": ("deis",), "solver_type": ("logrho",)},
}

RENAMED: dict[str, dict[str, dict[str, str]]] = {
    "DPMSolverMultistepScheduler": {"solver_type": dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint")},
    "UniPCMultistepScheduler": {"solver_type": dict.fromkeys(("midpoint", "heun", "logrho"), "bh2")},
    "DEISMultistepScheduler": {
        "algorithm_type": dict.fromkeys(("dpmsolver", "dpmsolver++"), "deis"),
        "solver_type": dict.fromkeys(("midpoint", "heun", "bh1", "bh2"), "logrho"),
    },
}
"""What diffusers takes for the values of other schedulers, which hand their configurations on."""
