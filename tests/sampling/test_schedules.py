"""Spacings and noise schedules, against diffusers' where it has them."""

from __future__ import annotations

import math

import pytest
import torch

from fastdiff.diffusion import EDM, VE, VP, DiscreteVP, FlowMatching
from fastdiff.sampling import SCHEDULES, NoiseSchedule, schedule_of_ratios, solver_table

diffusers = pytest.importorskip("diffusers")

PROCESS = DiscreteVP()


def ratios(schedule: NoiseSchedule) -> torch.Tensor:
    return torch.tensor([level.ratio for level in schedule.levels], dtype=torch.float64)


def told(schedule: NoiseSchedule) -> list[float]:
    return [level.timestep for level in schedule.levels[:-1]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"spacing": "trailing"}, [999, 749, 499, 249]),
        ({"spacing": "leading"}, [750, 500, 250, 0]),
        ({"spacing": "leading", "steps_offset": 1}, [751, 501, 251, 1]),
        ({"spacing": "linspace"}, [999, 666, 333, 0]),
        ({"spacing": "leading", "extra_point": True}, [800, 600, 400, 200]),
        ({"spacing": "linspace", "extra_point": True}, [999, 749, 500, 250]),
        ({"spacing": "trailing", "extra_point": True}, [999, 749, 499, 249]),
    ],
)
def test_spacings(options: dict, expected: list[int]) -> None:
    schedule = SCHEDULES["timesteps"](PROCESS, 4, **options)
    assert told(schedule) == expected and schedule.levels[-1].ratio == 0
    last = SCHEDULES["timesteps"](PROCESS, 4, final="sigma_min", **options).levels[-1]
    assert (last.timestep, last.alpha) == (0, PROCESS.alpha(torch.zeros(1, dtype=torch.float64)).item())


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [4, 7, 30])
@pytest.mark.parametrize("kind", ["DDIM", "EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep"])
def test_defaults_are_those_of_diffusers(kind: str, steps: int, spacing: str) -> None:
    scheduler = getattr(diffusers, f"{kind}Scheduler")(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    sampler = {"DDIM": "ddim", "EulerDiscrete": "euler", "DPMSolverMultistep": "dpmpp_2m", "UniPCMultistep": "unipc"}
    table = solver_table(sampler[kind], PROCESS, "epsilon", steps, spacing=spacing)
    torch.testing.assert_close(table.timesteps.float(), scheduler.timesteps.float(), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("karras", {"use_karras_sigmas": True}),
        ("exponential", {"use_exponential_sigmas": True}),
        ("lu", {"use_lu_lambdas": True}),
        ("beta", {"use_beta_sigmas": True}),
    ],
)
def test_noise_levels_are_those_of_diffusers(name: str, config: dict) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(**config)
    scheduler.set_timesteps(12)
    schedule = SCHEDULES[name](PROCESS, 12)
    torch.testing.assert_close(ratios(schedule), scheduler.sigmas.double(), rtol=2e-4, atol=1e-4)
    # What the network is told is not rounded here; diffusers rounds or truncates it.
    assert (torch.tensor(told(schedule)) - scheduler.timesteps).abs().max() < 1.01


def test_karras_is_that_of_edm() -> None:
    """arXiv:2206.00364, equation 5, with t_N = 0 appended."""
    schedule = SCHEDULES["karras"](EDM(), 18)
    i = torch.arange(18, dtype=torch.float64)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(ratios(schedule), torch.cat((expected, torch.zeros(1, dtype=torch.float64))))
    assert schedule.start_scale == pytest.approx(80 / math.hypot(80, 0.5))
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(18)
    torch.testing.assert_close(torch.tensor(told(schedule)), scheduler.timesteps, rtol=1e-5, atol=1e-5)


def test_polyexponential_bends_the_exponential() -> None:
    straight, bent = (ratios(SCHEDULES["polyexponential"](EDM(), 9, rho=rho)) for rho in (1.0, 2.0))
    torch.testing.assert_close(straight, ratios(SCHEDULES["exponential"](EDM(), 9)))
    u = torch.linspace(1, 0, 9, dtype=torch.float64)
    torch.testing.assert_close(bent[:-1].log(), u**2 * math.log(40000) + math.log(0.002))


@pytest.mark.parametrize("model", ["sd", "sdxl", "svd"])
def test_ays(model: str) -> None:
    from diffusers.schedulers.scheduling_utils import AysSchedules

    name = {"sd": "StableDiffusionSigmas", "sdxl": "StableDiffusionXLSigmas", "svd": "StableDiffusionVideoSigmas"}
    theirs = torch.tensor(AysSchedules[name[model]], dtype=torch.float64)
    process = EDM() if model == "svd" else DiscreteVP("scaled_linear", 0.00085, 0.012)
    ours = ratios(SCHEDULES["ays"](process, 10, model=model))
    torch.testing.assert_close(ours[:-1], theirs[:10], rtol=2e-3, atol=1e-3)
    assert ours[-1] == 0
    twice = ratios(SCHEDULES["ays"](process, 20, model=model))
    torch.testing.assert_close(twice[:-1:2], ours[:-1], rtol=1e-9, atol=0)
    with pytest.raises(ValueError, match="model must be one of.*got 'flux'"):
        SCHEDULES["ays"](process, 10, model="flux")


@pytest.mark.parametrize("steps", [1, 4, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_linspace_is_that_of_diffusers(steps: int, shift: float) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    schedule = SCHEDULES["flow"](FlowMatching(), steps, shift=shift, spacing="linspace")
    sigmas = torch.tensor([level.sigma for level in schedule.levels])
    torch.testing.assert_close(sigmas, scheduler.sigmas, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.tensor(told(schedule)), scheduler.timesteps, rtol=1e-5, atol=1e-3)


def test_flow_linspace_is_shifted_twice() -> None:
    """As in the reference of Stable Diffusion 3: its last time is shifted before the times are laid out."""
    schedule = SCHEDULES["flow"](FlowMatching(), 4, shift=3.0, spacing="linspace")
    assert [round(level.sigma, 4) for level in schedule.levels] == [1.0, 0.8577, 0.6022, 0.0089, 0.0]


def test_flow_trailing_is_that_of_explicit_sigmas() -> None:
    for config in ({"shift": 3.0}, {"shift": 3.0, "shift_terminal": 0.1}):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**config)
        scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
        schedule = SCHEDULES["flow"](FlowMatching(), 4, shift=3.0, terminal=config.get("shift_terminal"))
        torch.testing.assert_close(torch.tensor([level.sigma for level in schedule.levels]), scheduler.sigmas)


def test_flow_of_one_step_has_nothing_to_stretch() -> None:
    assert told(SCHEDULES["flow"](FlowMatching(), 1)) == [1000]
    with pytest.raises(ValueError, match="terminal needs at least 2 steps.*got 0.1 and 1 step"):
        SCHEDULES["flow"](FlowMatching(), 1, terminal=0.1)


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_lcm_times_are_those_of_diffusers(steps: int) -> None:
    scheduler = diffusers.LCMScheduler()
    scheduler.set_timesteps(steps)
    assert told(SCHEDULES["lcm"](PROCESS, steps)) == scheduler.timesteps.tolist()


def test_uniform_times() -> None:
    schedule = SCHEDULES["uniform"](VP(epsilon=0.1), 3)
    assert [level.time for level in schedule.levels] == pytest.approx([1.0, 0.7, 0.4, 0.1])
    schedule = SCHEDULES["uniform"](VP(epsilon=0.1), 3, final="zero")
    assert [level.time for level in schedule.levels[:-1]] == pytest.approx([1.0, 0.55, 0.1])
    assert schedule.levels[-1].sigma == 0
    sgm = SCHEDULES["sgm_uniform"](VE(), 4)
    assert [level.time for level in sgm.levels[:-1]] == pytest.approx([1.0, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("process", [DiscreteVP("cosine"), VP(), EDM(), FlowMatching()], ids=lambda p: type(p).__name__)
def test_levels_are_the_process_s_own(process) -> None:
    schedule = schedule_of_ratios(process, torch.tensor([20.0, 3.0, 0.5], dtype=torch.float64))
    torch.testing.assert_close(ratios(schedule)[:3], torch.tensor([20.0, 3.0, 0.5], dtype=torch.float64))
    for level in schedule.levels[:-1]:
        time = torch.tensor([level.time], dtype=torch.float64)
        assert process.alpha(time).item() == level.alpha and process.timestep(time).item() == level.timestep
    assert schedule.at_ratio(3.0).alpha == pytest.approx(schedule.levels[1].alpha)


def test_wrong_arguments() -> None:
    for name, process, options, message in (
        ("timesteps", PROCESS, {"steps": 1001}, "steps must be from 1 to the process's 1000"),
        ("timesteps", PROCESS, {"spacing": "karras"}, "spacing must be.*'karras'"),
        ("timesteps", PROCESS, {"final": "one"}, "final must be one of.*'one'"),
        ("timesteps", PROCESS, {"spacing": "leading", "steps_offset": 500}, "t must be -1 or from 0 to 999"),
        ("timesteps", VP(), {}, "needs a DiscreteVP process, got VP"),
        ("flow", PROCESS, {}, "needs a FlowMatching process, got DiscreteVP"),
        ("flow", FlowMatching(), {"steps": 0}, "steps must be at least 1, got 0"),
        ("flow", FlowMatching(), {"spacing": "leading"}, "spacing must be.*'leading'"),
        ("flow", FlowMatching(), {"shift": 0.0}, "shift must be positive"),
        ("karras", FlowMatching(), {}, "sigma_max must be given for a process that starts from pure noise"),
        ("karras", EDM(), {"sigma_min": -1.0}, "0 < sigma_min"),
        ("lcm", PROCESS, {"steps": 51}, "steps must be from 1 to original_steps"),
    ):
        arguments = {"steps": 10, **options}
        with pytest.raises(ValueError, match=message):
            SCHEDULES[name](process, **arguments)


def test_levels_outside_a_discrete_process_are_refused() -> None:
    """They would all become its last time."""
    process = DiscreteVP()
    with pytest.raises(ValueError, match="sigma / alpha must be within the process's"):
        SCHEDULES["karras"](process, 4, sigma_max=2000.0)
    with pytest.raises(ValueError, match="sigma / alpha must be within the process's"):
        SCHEDULES["ays"](process, 4, model="svd")
    with pytest.raises(ValueError, match="with an extra point"):
        SCHEDULES["timesteps"](process, 1000, spacing="leading", extra_point=True)
