"""What is read from a scheduler's configuration: the timesteps and noise levels that diffusers lays out."""

from __future__ import annotations

import inspect
import math
import warnings
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from fastdiff.diffusion import DiscreteVP, FlowMatching, dynamic_shift  # noqa: E402
from fastdiff.pipelines.scheduler_config import ImageTokens, SchedulerConfig  # noqa: E402
from fastdiff.pipelines.scheduler_keys import DEFAULTS  # noqa: E402

TOKENS = ImageTokens(1024)
FLOW = "FlowMatchEulerDiscreteScheduler"
BETAS: list[dict[str, Any]] = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
]
SPACINGS = ("leading", "linspace", "trailing")
LEVELS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


def both(kind: str, steps: int, **config: Any) -> tuple[Any, SchedulerConfig]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = getattr(diffusers, kind)(**config)
    theirs.set_timesteps(steps)
    return theirs, SchedulerConfig({"_class_name": kind, **config})


def configurations(kind: str) -> list[dict[str, Any]]:
    defaults = DEFAULTS[kind]
    found = [{"timestep_spacing": spacing, "steps_offset": offset} for spacing in SPACINGS for offset in (0, 1)]
    found += [{key: True, "timestep_spacing": "leading"} for key in LEVELS if key in defaults]
    found += [{key: True, **betas} for key in LEVELS[:2] if key in defaults for betas in BETAS]
    found += BETAS
    if "rescale_betas_zero_snr" in defaults:
        found.append({"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"})
    if "final_sigmas_type" in defaults:
        found.append({"final_sigmas_type": "sigma_min"})
    if kind.startswith(("Euler", "UniPC")) and "final_sigmas_type" in defaults:
        found.append({"final_sigmas_type": "sigma_min", "use_karras_sigmas": True})
        found.append({"sigma_min": 0.1, "sigma_max": 5.0, "use_karras_sigmas": True})
    return found


@pytest.mark.parametrize("kind", DEFAULTS)
def test_keys_and_defaults_are_those_of_diffusers(kind) -> None:
    """But for those that nothing comes of: flow sigmas are refused, and LCM always ends on clean data."""
    theirs = {
        name: parameter.default
        for name, parameter in inspect.signature(getattr(diffusers, kind).__init__).parameters.items()
        if name not in ("self", "flow_shift", "use_dynamic_shifting", "time_shift_type", "shift_terminal")
    }
    if kind == FLOW:
        keys = ("use_dynamic_shifting", "time_shift_type", "shift_terminal")
        theirs |= {name: DEFAULTS[kind][name] for name in keys}
    if kind == "LCMScheduler":
        del theirs["set_alpha_to_one"]
    assert theirs == DEFAULTS[kind]


@pytest.mark.parametrize("kind", sorted(set(DEFAULTS) - {FLOW}))
def test_levels_are_those_of_diffusers(kind) -> None:
    more = {"skip_prk_steps": True} if kind == "PNDMScheduler" else {}
    for config in configurations(kind):
        for steps in (4, 30):
            theirs, ours = both(kind, steps, **config, **more)
            laid_out = ours.lay_out(steps, TOKENS)
            assert len(laid_out.timesteps) == len(theirs.timesteps), config
            difference = (laid_out.timesteps - theirs.timesteps.double()).abs()
            # diffusers looks levels up in float32, where those of the cosine schedule, up to 2e4, have few digits; and
            # what it then cuts off to a whole number may be cut below the one that it should be.
            whole, looked_up = theirs.timesteps.dtype == torch.int64, any(key in LEVELS for key in config)
            assert difference.max() <= (1 if whole and looked_up else 0 if whole else 0.1), config
            assert not whole or (difference > 0).double().mean() <= (0.3 if looked_up else 0), config
            if laid_out.sigmas is not None:
                torch.testing.assert_close(laid_out.sigmas, theirs.sigmas.double(), rtol=1e-3, atol=1e-5)
            start = float(theirs.init_noise_sigma) / (
                math.hypot(1, theirs.sigmas[0]) if "sigmas" in vars(theirs) else 1
            )
            if kind.startswith(("Euler", "LMS", "Heun")):
                assert ours.plan(steps, TOKENS).start_scale == pytest.approx(start, rel=1e-5)
            else:
                assert ours.plan(steps, TOKENS).start_scale == 1


@pytest.mark.parametrize("spacing", ("linspace", "trailing"))
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"shift": 3.0},
        {"use_dynamic_shifting": True},
        {"use_dynamic_shifting": True, "time_shift_type": "linear"},
        {"shift": 3.0, "shift_terminal": 0.02},
        {"num_train_timesteps": 1000, "use_dynamic_shifting": True, "base_shift": 0.3, "max_shift": 1.0},
    ],
)
def test_times_of_a_flow(config, spacing) -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    ours = SchedulerConfig({"_class_name": FLOW, **config})
    assert ours.process == FlowMatching() and ours.prediction == "flow"
    mu = None
    if config.get("use_dynamic_shifting"):
        low, high = theirs.config.base_shift, theirs.config.max_shift
        mu = math.log(dynamic_shift(TOKENS.count, base_mu=low, max_mu=high))
    sigmas = torch.linspace(1, 1 / 7, 7).tolist() if spacing == "trailing" else None
    theirs.set_timesteps(7, sigmas=sigmas, mu=mu)
    laid_out = ours.lay_out(7, ImageTokens(TOKENS.count, spacing))
    torch.testing.assert_close(laid_out.timesteps, theirs.timesteps.double(), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(laid_out.sigmas, theirs.sigmas.double(), rtol=1e-5, atol=1e-6)


def test_process_and_prediction() -> None:
    values = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "rescale_betas_zero_snr": True,
    }
    config = SchedulerConfig({"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", **values})
    assert config.process == DiscreteVP("scaled_linear", 0.00085, 0.012, 1000, zero_terminal_snr=True)
    assert config.prediction == "v"
    # What another class has is handed on by diffusers, and means nothing.
    assert vars(SchedulerConfig({"_class_name": "DDIMScheduler", "solver_order": 3}).config).get("solver_order") is None


def test_names_that_mean_others() -> None:
    """Pipelines hand configurations from one multistep scheduler to the next."""
    for kind, config in (
        ("DPMSolverMultistepScheduler", {"solver_type": "logrho"}),
        ("UniPCMultistepScheduler", {"solver_type": "midpoint"}),
        ("DEISMultistepScheduler", {"solver_type": "bh2", "algorithm_type": "dpmsolver++"}),
    ):
        theirs, ours = both(kind, 10, **config)
        for key in config:
            assert getattr(ours.config, key) == theirs.config[key] != config[key]
        assert ours.values == {"_class_name": kind, **config}


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("DDIMScheduler", {"trained_betas": [0.1]}, r"trained_betas must be one of \[None\], got \[0.1\]"),
        ("DDPMScheduler", {"beta_schedule": "sigmoid"}, "beta_schedule must be one of .* got 'sigmoid'"),
        ("DDIMScheduler", {"prediction_type": "score"}, "prediction_type must be one of"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type must be one of"),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "use_flow_sigmas must be one of"),
        ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -5.1}, "lambda_min_clipped must be one of"),
        (FLOW, {"use_karras_sigmas": True}, "use_karras_sigmas must be one of"),
        ("LMSDiscreteScheduler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, "one kind of noise levels"),
        (
            "EulerDiscreteScheduler",
            {"rescale_betas_zero_snr": True, "use_karras_sigmas": True},
            "rescale_betas_zero_snr must not be True with karras noise levels",
        ),
        (
            "DPMSolverMultistepScheduler",
            {"final_sigmas_type": "sigma_min", "use_lu_lambdas": True},
            "final_sigmas_type must not be 'sigma_min' with lu noise levels",
        ),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, "clean data"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "ode"}, "algorithm_type must be one of"),
        ("UniPCMultistepScheduler", {"solver_type": "bh3"}, "solver_type must be one of .* got 'bh3'"),
        ("KDPM2DiscreteScheduler", {}, "_class_name must be one of .* got 'KDPM2DiscreteScheduler'"),
        (None, {}, "_class_name must be one of .* got None"),
        ("PNDMScheduler", {}, "skip_prk_steps must be True"),
        ("DDPMScheduler", {"variance_type": "learned_range"}, "variance_type must be one of"),
        ("UniPCMultistepScheduler", {"disable_corrector": [0]}, "disable_corrector"),
        ("DEISMultistepScheduler", {"thresholding": True}, "thresholding"),
    ],
)
def test_what_is_not_understood(kind, values, message) -> None:
    with pytest.raises(ValueError, match=message):
        SchedulerConfig({"_class_name": kind, **values}).plan(10, TOKENS)
