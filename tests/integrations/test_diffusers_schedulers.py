"""Every diffusers scheduler beside its solver table: the same model outputs, the same noise, step for step.

Both run in float32 on their own states, and may differ by 1e-5 of the sample's scale. What a network would return does
not matter to a linear method, so the outputs are noise.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import logging
import math
import pickle
import sys
import types
import warnings
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from fastdiff import ops  # noqa: E402
from fastdiff.diffusion import EDM  # noqa: E402
from fastdiff.integrations.diffusers import scheduler_for  # noqa: E402
from fastdiff.sampling import Level, NoiseSchedule, run_table, solvers  # noqa: E402

TOLERANCE = 1e-5
SHAPE = (2, 3, 8, 8)


@dataclass(frozen=True)
class Case:
    kind: str
    """The scheduler's class, without its suffix."""
    config: dict[str, Any] = field(default_factory=dict)
    steps: int = 20
    step: dict[str, Any] = field(default_factory=dict)
    """Keywords of step()."""
    set_timesteps: dict[str, Any] = field(default_factory=dict)
    float64_sigmas: bool = False
    """diffusers loses digits in its own float32 formulas: it is given its sigmas in float64."""

    def __str__(self) -> str:
        parts = {**self.config, **self.step, **self.set_timesteps}
        return "-".join([self.kind, *(f"{name}={value}" for name, value in parts.items()), f"{self.steps}"])

    def schedulers(self) -> tuple[Any, Any]:
        theirs = getattr(diffusers, f"{self.kind}Scheduler")(**self.config)
        ours = scheduler_for(copy.deepcopy(theirs))
        for scheduler in (theirs, ours):
            scheduler.set_timesteps(self.steps, **self.set_timesteps)
        if self.float64_sigmas:
            theirs.sigmas = theirs.sigmas.double()
        return theirs, ours


def each(kind: str, *configs: dict[str, Any], **shared: Any) -> list[Case]:
    return [Case(kind, config, **shared) for config in configs]


V, SAMPLE, KARRAS = {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}, {"use_karras_sigmas": True}
SIGMAS = [{}, KARRAS, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}]
SPACINGS = [{"timestep_spacing": spacing} for spacing in ("leading", "linspace", "trailing")]
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
THRESHOLD = {"thresholding": True, "sample_max_value": 2.0, "dynamic_thresholding_ratio": 0.9}
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
VARIANTS = ("midpoint", "heun")

CASES = [
    *each("DDPM", {}, V, SAMPLE, {"clip_sample": False}, {"variance_type": "fixed_large"}, THRESHOLD, *SPACINGS[:2]),
    *each("DDIM", {}, V, SAMPLE, {"clip_sample": False}, THRESHOLD, {"set_alpha_to_one": False, "steps_offset": 1}),
    *each("DDIM", {"clip_sample": False}, {}, THRESHOLD, V, step={"eta": 0.5}),
    *each("DDIM", SPACINGS[2], {"rescale_betas_zero_snr": True, **V, **SPACINGS[2]}),
    *each("DDIMInverse", {"clip_sample": False}, {}, {"clip_sample": False, **V}),
    *each("PNDM", {"skip_prk_steps": True}, {"skip_prk_steps": True, **V}, {"skip_prk_steps": True, "steps_offset": 1}),
    *each("LMSDiscrete", *SIGMAS, V, SAMPLE, *SPACINGS),
    *each("EulerDiscrete", *SIGMAS, V, SAMPLE, *SPACINGS, {"interpolation_type": "log_linear"}, SIGMA_MIN),
    Case(  # Stable Video Diffusion's
        "EulerDiscrete",
        {"timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 700.0, "steps_offset": 1, **V, **KARRAS},
    ),
    *each("EulerAncestralDiscrete", {}, V, *SPACINGS),
    *each("HeunDiscrete", *SIGMAS, V, SAMPLE, {"clip_sample": True}, *SPACINGS),
    *each("KDPM2Discrete", *SIGMAS, V, *SPACINGS),
    *each("KDPM2AncestralDiscrete", *SIGMAS, V, *SPACINGS),
    *each("DPMSolverMultistep", *SIGMAS, {"use_lu_lambdas": True}, V, SAMPLE, THRESHOLD, *SPACINGS),
    *each("DPMSolverMultistep", FLOW, {"solver_order": 3, **FLOW}),  # Sana's
    *each("DPMSolverMultistep", {"euler_at_final": True}, {"lower_order_final": False, **SIGMA_MIN}, steps=10),
    *[
        Case("DPMSolverMultistep", {"solver_order": order, "solver_type": variant, **algorithm}, steps)
        for order in (1, 2, 3)
        for variant in VARIANTS
        for steps in (10, 20)
        for algorithm in (
            {},
            {"algorithm_type": "dpmsolver", **SIGMA_MIN},
            {"algorithm_type": "sde-dpmsolver++"},
            *([{"algorithm_type": "sde-dpmsolver", **SIGMA_MIN}] if order < 3 else []),
        )
    ],
    *[
        Case("DPMSolverSinglestep", {"solver_order": order, "solver_type": variant, **algorithm}, steps)
        for order in (1, 2, 3)
        for variant in VARIANTS
        for steps in (10, 20, 21)
        for algorithm in (
            {},
            {"algorithm_type": "dpmsolver", **SIGMA_MIN},
            {"algorithm_type": "sde-dpmsolver++"},
        )
    ],
    *each("DPMSolverSinglestep", KARRAS, V, THRESHOLD),
    *each("DEISMultistep", *({"solver_order": order} for order in (1, 2, 3)), *SIGMAS[1:3], V, *SPACINGS),
    *each("DEISMultistep", SIGMAS[3], float64_sigmas=True),
    *each("DEISMultistep", {"solver_order": 3}, steps=10),
    *[
        Case("UniPCMultistep", {"solver_order": order, "solver_type": variant, **more}, steps)
        for order in (1, 2, 3)
        for variant, more in (
            ("bh2", {}),
            ("bh2", {"predict_x0": False, **SIGMA_MIN}),
            ("bh1", SIGMA_MIN),
            ("bh1", {"predict_x0": False, **SIGMA_MIN}),
        )
        for steps in (10, 20)
    ],
    *each("UniPCMultistep", *SIGMAS[1:], V, SAMPLE, THRESHOLD, *SPACINGS, {"lower_order_final": False, **SIGMA_MIN}),
    *each("UniPCMultistep", FLOW, {"solver_order": 3, **FLOW}),  # Wan's
    *each("SASolver", FLOW, float64_sigmas=True),
    *each("DPMSolverSinglestep", FLOW),
    *[
        Case("SASolver", {"predictor_order": p, "corrector_order": c}, float64_sigmas=p > 2 or c > 2)
        for p in (1, 2, 3)
        for c in (1, 2, 3, 4)
    ],
    *each("SASolver", KARRAS, V, SAMPLE, THRESHOLD),
    *each("EDMEuler", {}, {"sigma_schedule": "exponential"}, SIGMA_MIN),
    *[
        Case("EDMDPMSolverMultistep", {"solver_order": order, "algorithm_type": algorithm}, steps)
        for order, algorithm in ((1, "dpmsolver++"), (2, "dpmsolver++"), (3, "dpmsolver++"), (2, "sde-dpmsolver++"))
        for steps in (10, 20)
    ],
    *each("EDMDPMSolverMultistep", {"solver_type": "heun"}, THRESHOLD),
    *each(
        "FlowMatchEulerDiscrete",
        {},
        {"shift": 3.0},
        {"stochastic_sampling": True},
        {"shift_terminal": 0.1},
        *SIGMAS[1:],
    ),
    Case("FlowMatchEulerDiscrete", {"use_dynamic_shifting": True}, set_timesteps={"mu": 0.9}),
    *each("FlowMatchHeunDiscrete", {}, {"shift": 3.0}),
    *each("LCM", {}, {"clip_sample": True}, V, THRESHOLD, steps=4),
    *each("LCM", {}, steps=1),
    *each("TCD", {}, V, SAMPLE, steps=4),
    *each("TCD", {}, steps=4, step={"eta": 0.0}),
    *each("TCD", {}, steps=4, step={"eta": 1.0}),
    *each("CMStochasticIterative", {}, {"clip_denoised": False}, steps=4),
    *each("CMStochasticIterative", {}, steps=1),
]


@pytest.fixture(autouse=True)
def quiet() -> Any:
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
    logging.disable(logging.NOTSET)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def keywords(scheduler: Any, case: Case) -> dict[str, Any]:
    takes_noise = "generator" in inspect.signature(scheduler.step).parameters
    return {**case.step, **({"generator": torch.Generator().manual_seed(5)} if takes_noise else {})}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_step_for_step(case: Case) -> None:
    theirs, ours = case.schedulers()
    random = torch.Generator().manual_seed(1)
    x = torch.randn(SHAPE, generator=random) * float(getattr(theirs, "init_noise_sigma", 1.0))
    y = x.clone()
    if case.float64_sigmas:
        x = x.double()
    for_theirs, for_ours = keywords(theirs, case), keywords(ours, case)
    assert for_theirs.keys() == for_ours.keys()  # the signature is the original's
    for t in theirs.timesteps:
        if hasattr(theirs, "scale_model_input"):
            assert difference(ours.scale_model_input(y, t), theirs.scale_model_input(x, t)) < TOLERANCE
        output = torch.randn(SHAPE, generator=random)
        x = theirs.step(output, t, x, **for_theirs, return_dict=False)[0]
        y = ours.step(output, t, y, **for_ours, return_dict=False)[0]
        assert difference(y, x) < TOLERANCE, f"timestep {t}"


def loop(scheduler: Any, steps: int, network: Any, x: torch.Tensor, **step: Any) -> torch.Tensor:
    """What a pipeline does."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t)
        x = scheduler.step(network(given, t), t, x, **step).prev_sample
    return x


def fused(kind: str, **config: Any) -> Any:
    return scheduler_for(getattr(diffusers, f"{kind}Scheduler")(**config))


@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 10), ("trailing", 7)])
def test_ddim_lands_on_the_next_timestep_where_diffusers_steps_beside_it(spacing: str, steps: int) -> None:
    """diffusers steps to t - T // N, which these spacings do not call the network at."""
    config = {"timestep_spacing": spacing, "clip_sample": False}
    theirs, ours = diffusers.DDIMScheduler(**config), fused("DDIM", **config)
    x0, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    for scheduler, on_the_path in ((theirs, False), (ours, True)):
        scheduler.set_timesteps(steps)
        t, after = scheduler.timesteps[:2]
        start, end = (scheduler.add_noise(x0, noise, at).float() for at in (t, after))
        landed = scheduler.step(noise.float(), t, start, return_dict=False)[0]
        assert (difference(landed, end) < TOLERANCE) is on_the_path


def test_ipndm_keeps_what_the_first_call_says() -> None:
    """At pure noise v is -x0; diffusers divides the noise it made of it by max(alpha, 1e-8) and is left with none."""
    theirs, ours = diffusers.IPNDMScheduler(), fused("IPNDM")
    noise, x0 = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    for scheduler, exact in ((theirs, False), (ours, True)):
        scheduler.set_timesteps(20)
        alpha, sigma = scheduler.alphas[1], scheduler.betas[1]
        landed = scheduler.step(-x0, scheduler.timesteps[0], noise, return_dict=False)[0]
        assert (difference(landed, alpha * x0 + sigma * noise) < TOLERANCE) is exact

    # That x0 given back, the two agree from there on.
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(20)
    random = torch.Generator().manual_seed(1)
    x = theirs_x = torch.randn(SHAPE, generator=random)
    for i, t in enumerate(theirs.timesteps):
        output = torch.randn(SHAPE, generator=random)
        theirs_x = theirs.step(output, t, theirs_x).prev_sample
        x = ours.step(output, t, x).prev_sample
        if i == 0:
            theirs_x = theirs_x - theirs.alphas[1] * output
        assert difference(x, theirs_x) < TOLERANCE


def test_unipc_bh1_reaches_clean_data() -> None:
    """B(h) = h is infinite there, and diffusers returns NaN; but a step of first order has no use for B."""
    config = {"solver_type": "bh1"}
    network = lambda x, t: torch.sin(x)  # noqa: E731
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    assert loop(diffusers.UniPCMultistepScheduler(**config), 10, network, noise).isnan().all()
    assert loop(fused("UniPCMultistep", **config), 10, network, noise).isfinite().all()


def test_ddpm_with_large_variance_ends_without_noise() -> None:
    """diffusers leaves out the noise at t = 0 only, but with these spacings the last call is at a later time."""
    config = {"variance_type": "fixed_large", "timestep_spacing": "trailing", "clip_sample": False}
    theirs, ours = diffusers.DDPMScheduler(**config), fused("DDPM", **config)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    for scheduler, noisy in ((theirs, True), (ours, False)):
        scheduler.set_timesteps(20)
        t = scheduler.timesteps[-1]
        runs = [
            scheduler.step(x, t, x, generator=torch.Generator().manual_seed(seed), return_dict=False)[0]
            for seed in (0, 1)
        ]
        assert (difference(*runs) > TOLERANCE) is noisy


def test_dpm_solver_sde(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its noise is that of torchsde's Brownian tree; here it is given the path that the table's own noise is of."""
    if importlib.util.find_spec("torchsde") is None:
        monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))  # imported, and not called here
    module = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
    scheduler = module.DPMSolverSDEScheduler()
    scheduler.set_timesteps(10)
    levels = [level_of(sigma) for sigma in (*scheduler.sigmas[:1].tolist(), *scheduler.sigmas[1::2].tolist())]
    schedule = NoiseSchedule(EDM(sigma_data=1.0), tuple(levels), 1.0)
    table = solvers.dpmpp_sde(schedule, "epsilon")
    table = table.in_units(torch.tensor([1 / level.alpha for level in table.levels], dtype=torch.float64))
    calls, seeds, drawn = [row for row, called in enumerate(table.calls) if called], torch.arange(2), []

    def brownian(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        """The path's increment over an interval, of deviation 1: the second of a step contains the first."""
        noise = ops.philox_normal(SHAPE, seeds, offset=calls[len(drawn)] + 1)
        drawn.append((noise, sigma - sigma_next))
        if len(drawn) % 2:
            return noise
        (first, part), whole = drawn[-2], sigma - sigma_next
        return (part / whole).sqrt() * first + (1 - part / whole).sqrt() * noise

    scheduler.noise_sampler = brownian
    x = y = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * float(scheduler.init_noise_sigma)
    outputs = torch.randn(len(calls), *SHAPE, generator=torch.Generator().manual_seed(1))
    for t, output in zip(scheduler.timesteps, outputs, strict=True):
        scheduler.scale_model_input(x, t)
        x = scheduler.step(output, t, x).prev_sample
    remaining = iter(outputs)
    y = run_table(table, lambda x, t: next(remaining), y, prediction="epsilon", seeds=seeds)
    assert len(drawn) == 18 and difference(y, x) < TOLERANCE


def level_of(ratio: float) -> Level:
    return Level(1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio), math.nan)


@pytest.mark.parametrize("kind", ["DDIM", "EulerDiscrete", "HeunDiscrete", "DPMSolverMultistep", "UniPCMultistep"])
def test_a_loop_may_begin_later_and_run_again(kind: str) -> None:
    """Image to image: the first of the steps are left out."""
    theirs = getattr(diffusers, f"{kind}Scheduler")()
    ours = fused(kind)
    image, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        results = []
        for scheduler in (theirs, ours):
            scheduler.set_timesteps(20)
            begin = 8 * scheduler.order
            if hasattr(theirs, "set_begin_index"):
                scheduler.set_begin_index(begin)
            timesteps = scheduler.timesteps[begin:]
            x = scheduler.add_noise(image, noise, timesteps[:1])
            for t in timesteps:
                x = scheduler.step(torch.sin(3 * scheduler.scale_model_input(x, t)), t, x).prev_sample
            results.append(x)
        assert difference(*results) < 10 * TOLERANCE  # the network feeds the differences back


@pytest.mark.parametrize(("pipeline", "kind"), [("DDPMPipeline", "DDPM"), ("DDIMPipeline", "DDIM")])
def test_a_pipeline_draws_the_same_images(pipeline: str, kind: str) -> None:
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        layers_per_block=1,
    )
    scheduler = getattr(diffusers, f"{kind}Scheduler")()
    images = []
    for chosen in (scheduler, scheduler_for(copy.deepcopy(scheduler))):
        pipe = getattr(diffusers, pipeline)(network, scheduler)
        pipe.scheduler = chosen
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(3)
        images.append(pipe(2, num_inference_steps=5, generator=generator, output_type="pt").images)
    assert (torch.as_tensor(images[0]) - torch.as_tensor(images[1])).abs().max() < 1e-4


def test_noise_may_be_given() -> None:
    config = {"algorithm_type": "sde-dpmsolver++"}
    theirs, ours = diffusers.DPMSolverMultistepScheduler(**config), fused("DPMSolverMultistep", **config)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    network = lambda x, t: torch.sin(x)  # noqa: E731
    ours_x, theirs_x = (loop(s, 20, network, noise, variance_noise=noise) for s in (ours, theirs))
    assert difference(ours_x, theirs_x) < 10 * TOLERANCE


def test_lcm_returns_the_denoised_sample() -> None:
    theirs, ours = diffusers.LCMScheduler(), fused("LCM")
    x, output = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    denoised = []
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(4)
        step = scheduler.step(output, scheduler.timesteps[0], x, torch.Generator().manual_seed(1), return_dict=False)
        denoised.append(step[1])
    assert difference(*denoised) < TOLERANCE


def test_everything_else_is_the_scheduler_s_own() -> None:
    scheduler = diffusers.EulerDiscreteScheduler()
    ours = scheduler_for(scheduler)
    ours.set_timesteps(10)
    assert ours.config is scheduler.config and ours.order == 1 and len(ours) == len(scheduler)
    assert torch.equal(ours.timesteps, scheduler.timesteps) and ours.init_noise_sigma == scheduler.init_noise_sigma


def test_a_copy_is_a_scheduler_of_its_own() -> None:
    ours = fused("DDIM")
    ours.set_timesteps(10)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        copied.set_timesteps(5)
        x = torch.zeros(SHAPE)
        copied.step(x, copied.timesteps[0], x)
        assert copied.scheduler is not ours.scheduler and len(ours.timesteps) == 10
        assert (copied.step_index, ours.step_index) == (1, None)


def test_a_loop_that_begins_where_it_cannot_is_refused() -> None:
    ours = fused("DPMSolverSinglestep")
    ours.set_timesteps(10)
    x = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match="can only begin at its first timestep, got the one at 4"):
        ours.step(x, ours.timesteps[4], x)
    with pytest.raises(ValueError, match=r"set_timesteps\(\) must be called before step"):
        fused("DDIM").step(x, 0, x)


def test_signatures_are_the_scheduler_s_own() -> None:
    """Pipelines pass sigmas, mu, timesteps, eta or a generator only if they find them there."""
    for kind in ("FlowMatchEulerDiscrete", "EulerDiscrete", "DDIM", "TCD", "UniPCMultistep"):
        scheduler = getattr(diffusers, f"{kind}Scheduler")()
        ours = scheduler_for(scheduler)
        assert inspect.signature(ours.set_timesteps) == inspect.signature(scheduler.set_timesteps)
        assert inspect.signature(ours.step) == inspect.signature(scheduler.step)
    flow = fused("FlowMatchEulerDiscrete", use_dynamic_shifting=True)
    flow.set_timesteps(sigmas=[1.0, 0.6, 0.2], mu=0.7)
    x, output = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    landed = flow.step(output, flow.timesteps[0], x).prev_sample
    torch.testing.assert_close(landed, x + (flow.sigmas[1] - flow.sigmas[0]) * output)


def test_what_has_no_table_is_refused() -> None:
    with pytest.raises(ValueError, match="scheduler must be one of.*got RePaintScheduler"):
        scheduler_for(diffusers.RePaintScheduler())
    for kind, config, message in (
        ("PNDM", {}, "skip_prk_steps must be True"),
        ("DDPM", {"variance_type": "learned_range"}, "variance_type must be one of"),
        ("SASolver", {"tau_func": lambda t: 1}, "no tau_func"),
        ("DEISMultistep", THRESHOLD, "no thresholding"),
        ("UniPCMultistep", {"disable_corrector": [0]}, "disable_corrector"),
        ("EDMEuler", V, "prediction_type must be 'epsilon'"),
    ):
        with pytest.raises(ValueError, match=message):
            fused(kind, **config).set_timesteps(10)
    ours = fused("DDIM")
    ours.set_timesteps(10)
    x = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match="use_clipped_model_output"):
        ours.step(x, ours.timesteps[0], x, use_clipped_model_output=True)
    with pytest.raises(ValueError, match="timestep must be one of the scheduler's"):
        ours.step(x, 17, x)


def test_every_scheduler_that_is_translated_has_a_case() -> None:
    from fastdiff.sampling.scheduler_translation import _TRANSLATIONS

    assert {f"{case.kind}Scheduler" for case in CASES} == set(_TRANSLATIONS) - {"IPNDMScheduler"}
