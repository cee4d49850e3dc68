from __future__ import annotations

import pytest
import torch

from fastdiff import ops
from fastdiff.diffusion import EDM, DiscreteVP, FlowMatching, GaussianMixture
from fastdiff.sampling import (
    SAMPLERS,
    ClassifierGuidance,
    Guidance,
    PairedDenoiser,
    ProjectedGuidance,
    SamplingSettings,
    run_table,
    sample,
    solver_table,
)


def toward(value: float):
    """A flow denoiser whose data is the single point `value`: one Euler step from any noise lands on it."""
    return lambda x, timestep: (x - value) / (timestep / 1000)[:, None]


def test_samples_follow_their_seeds():
    def denoiser(x, timestep):
        return torch.sin(x) * timestep[:, None] / 1000

    together = sample(denoiser, (4, 5), seeds=[3, 1, 4, 1], steps=6)
    assert torch.equal(together[1], together[3])
    for index, seed in enumerate((3, 1, 4)):
        assert torch.equal(sample(denoiser, (1, 5), seeds=[seed], steps=6)[0], together[index])
    assert torch.equal(sample(denoiser, (4, 5), steps=6)[3], together[0])  # seeds default to 0 ... N - 1
    noise = ops.philox_normal((4, 5), [3, 1, 4, 1])
    assert torch.equal(sample(denoiser, noise, steps=6), together)


@pytest.mark.parametrize("sampler", ["ddpm", "euler_ancestral", "dpmpp_2m_sde", "sa_solver"])
def test_noise_on_the_way_follows_the_seeds(sampler):
    def denoiser(x, timestep):
        return torch.sin(x) * (1 + timestep[:, None] / 1000)

    def draw(shape, **more):
        options = {"process": DiscreteVP(), "prediction": "epsilon", "sampler": sampler, "steps": 6}
        return sample(denoiser, shape, **options, **more)

    together = draw((3, 8), seeds=[5, -7, 5])
    assert torch.equal(together[0], together[2]) and not torch.equal(together[0], together[1])
    assert torch.equal(draw((1, 8), seeds=[-7])[0], together[1])
    # Noise that is given fixes the start alone.
    start = torch.zeros(2, 8)
    assert not torch.equal(draw(start, seeds=[1, 2])[0], draw(start, seeds=[3, 2])[0])
    assert torch.equal(draw(start, seeds=[1, 2])[1], draw(start, seeds=[3, 2])[1])


def test_one_step_to_a_point():
    torch.testing.assert_close(sample(toward(2.0), (5, 3), steps=1), torch.full((5, 3), 2.0))


def test_network_sees_float32_timesteps_of_the_process():
    seen = []

    def denoiser(x, timestep):
        seen.append(timestep)
        return torch.zeros_like(x)

    noise = torch.randn(2, 3).bfloat16()
    result = sample(denoiser, noise, steps=4, sampler="flow_euler")
    assert torch.stack(seen).tolist() == [[t, t] for t in (1000.0, 750.0, 500.0, 250.0)]
    assert seen[0].dtype == torch.float32 and result.dtype == torch.bfloat16
    seen.clear()
    sample(denoiser, noise, steps=4, sampler="ddim", process=DiscreteVP(), prediction="epsilon")
    assert torch.stack(seen)[:, 0].tolist() == [999.0, 749.0, 499.0, 249.0]


def test_output_may_be_a_tuple():
    expected = sample(toward(1.0), (2, 3), steps=3)
    assert torch.equal(sample(lambda x, t: (toward(1.0)(x, t), None), (2, 3), steps=3), expected)


def test_guidance_extrapolates():
    # Both velocities are constant, so the result is the noise minus the guided velocity.
    noise = torch.zeros(2, 3)
    conditional, unconditional = (lambda x, t, v=v: torch.full_like(x, v) for v in (2.0, 1.0))
    for scale, expected in ((0.0, -1.0), (1.0, -2.0), (3.0, -4.0)):
        result = sample(conditional, noise, steps=5, guidance=Guidance(unconditional, scale))
        torch.testing.assert_close(result, torch.full((2, 3), expected))


def test_sampler_options_reach_the_solver():
    process = DiscreteVP()
    seen = []
    sample(
        lambda x, t: seen.append(t[0].item()) or x,
        (1, 1),
        process=process,
        prediction="epsilon",
        steps=5,
        sampler_options={"spacing": "leading", "steps_offset": 1},
    )
    assert seen == [801.0, 601.0, 401.0, 201.0, 1.0]


def test_no_gradient_and_input_untouched():
    noise = torch.randn(2, 3, requires_grad=True)
    before = noise.detach().clone()
    assert not sample(toward(1.0), noise, steps=2).requires_grad
    assert torch.equal(noise, before)


def test_empty_batch():
    assert sample(toward(1.0), (0, 3), steps=2).shape == (0, 3)


def test_progress_bar(capsys):
    sample(toward(1.0), (1, 3), steps=2, progress=True)
    assert "2/2" in capsys.readouterr().err
    sample(toward(1.0), (1, 3), steps=2)
    assert capsys.readouterr().err == ""


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"sampler 'sprint' is unknown, it must be one of \['consistency', 'ddim'"):
        sample(toward(1.0), (1, 3), sampler="sprint")
    with pytest.raises(ValueError, match="seeds must have"):
        sample(toward(1.0), (2, 3), seeds=[1, 2, 3])
    with pytest.raises(ValueError, match="seeds must have one entry for each of the 2 samples, got 3"):
        sample(toward(1.0), torch.randn(2, 3), seeds=[1, 2, 3])
    with pytest.raises(ValueError, match="prediction must be one of"):
        sample(toward(1.0), (1, 3), prediction="noise")
    with pytest.raises(ValueError, match="sampler 'flow_euler' has no option 'eta'.*'shift'"):
        sample(toward(1.0), (1, 3), sampler="flow_euler", sampler_options={"eta": 1.0})
    with pytest.raises(ValueError, match="sampler 'flow_euler' needs a FlowMatching process, got DiscreteVP"):
        sample(toward(1.0), (1, 3), sampler="flow_euler", process=DiscreteVP())
    with pytest.raises(ValueError, match="schedule must be one of.*got 'linear'"):
        sample(toward(1.0), (1, 3), schedule="linear")
    with pytest.raises(ValueError, match=r"schedule must have steps \+ 1 = 6 levels, got 4"):
        levels = solver_table("ddim", DiscreteVP(), "epsilon", 3).levels
        from fastdiff.sampling import NoiseSchedule

        sample(toward(1.0), (1, 3), steps=5, schedule=NoiseSchedule(DiscreteVP(), levels, 1.0))
    with pytest.raises(ValueError, match="infinite where a process starts from pure noise"):
        sample(toward(1.0), (1, 3), sampler="euler_maruyama")
    for sampler in ("heun", "lms", "dpm2", "pndm"):
        with pytest.raises(ValueError, match="infinite where a process starts from pure noise|does not determine x0"):
            sample(toward(1.0), (1, 3), sampler=sampler)


# The others are for networks that jump to clean data in one call, in test_stochastic.py, or lead away from data.
@pytest.mark.parametrize("sampler", sorted(SAMPLERS.keys() - {"lcm", "consistency", "ddim_inverse"}))
def test_every_sampler_draws_from_a_mixture(sampler):
    """Smoke test of every name with its own defaults: samples lie near the components."""
    mixture, kinds = GaussianMixture.ring(radius=2.0, deviation=0.1), SAMPLERS[sampler].processes
    process, prediction = (EDM(), "edm") if not kinds or EDM in kinds else (kinds[0](), "epsilon")
    prediction = "flow" if isinstance(process, FlowMatching) else prediction
    options = {"final": "sigma_min"} if sampler.startswith("dpm_solver") else {}
    network = mixture.denoiser(process, prediction)
    x = sample(
        network,
        (64, 2),
        sampler=sampler,
        steps=60,
        process=process,
        prediction=prediction,
        sampler_options={**options, **({"original_steps": 100} if sampler == "tcd" else {})},
    )
    distance = (x[:, None] - mixture.means).norm(dim=2).min(1).values
    assert distance.quantile(0.9) < 0.45, distance.quantile(0.9)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_sampler_starts_from_pure_noise_or_says_that_it_cannot(sampler):
    """At t = 1 of the straight path alpha is 0 and lambda infinite."""
    if SAMPLERS[sampler].processes and FlowMatching not in SAMPLERS[sampler].processes:
        pytest.skip("not a sampler for this process")
    mixture, process = GaussianMixture.ring(radius=2.0, deviation=0.1), FlowMatching()
    try:
        table = solver_table(sampler, process, "flow", 40)
    except ValueError as error:
        assert "pure noise" in str(error) or "does not determine x0" in str(error)
        assert sampler in (
            "deis",
            "dpm2",
            "dpm2_ancestral",
            "dpmpp_2s_ancestral",
            "dpmpp_sde",
            "edm",
            "heun",
            "lms",
        ) or (sampler.startswith("dpm_solver") or sampler in ("pndm", "euler_maruyama"))
        return
    if sampler in ("consistency", "ddim_inverse"):
        return
    noise = ops.philox_normal((64, 2), range(64)) * table.start_scale
    x = run_table(table, mixture.denoiser(process, "flow"), noise, prediction="flow", seeds=torch.arange(64))
    assert (x[:, None] - mixture.means).norm(dim=2).min(1).values.quantile(0.9) < 0.45


def test_callback_sees_every_step():
    seen = []
    result = sample(toward(2.0), (2, 3), steps=4, callback=lambda done, x: seen.append((done, x.clone())))
    assert [done for done, _ in seen] == [1, 2, 3, 4]
    assert torch.equal(seen[-1][1], result) and not torch.equal(seen[0][1], result)


def test_guidance_by_level_and_interval():
    """Both velocities are constant, so the result tells how much of the way was guided."""
    noise = torch.zeros(2, 3)
    calls = []
    conditional = lambda x, t: torch.full_like(x, 2.0)  # noqa: E731

    def unconditional(x, t):
        calls.append(t[0].item())
        return torch.full_like(x, 1.0)

    run = lambda guidance: sample(conditional, noise, steps=4, guidance=guidance)  # noqa: E731
    # Levels t = 1, 3/4, 1/2, 1/4: sigma / alpha infinite, 3, 1, 1/3.
    result = run(Guidance(unconditional, 3.0, interval=(0.5, 2.0)))
    torch.testing.assert_close(result, torch.full((2, 3), -2.5))
    assert calls == [500.0]
    result = run(Guidance(unconditional, lambda level: 1 + 4 * level.sigma))
    torch.testing.assert_close(result, torch.full((2, 3), -2.0 - 4 * (1 + 0.75 + 0.5 + 0.25) / 4))


@pytest.mark.parametrize("guided", (Guidance, ProjectedGuidance))
def test_both_predictions_from_one_call(guided):
    calls = []

    def denoiser(x, t):
        calls.append("alone")
        return x - 2.0

    def weaker(x, t):
        return torch.sin(x)

    def both(x, t):
        calls.append("both")
        return x - 2.0, torch.sin(x)

    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    expected = sample(denoiser, noise, steps=4, guidance=guided(weaker, 3.0))
    calls.clear()
    assert torch.equal(sample(denoiser, noise, steps=4, guidance=guided(PairedDenoiser(weaker, both), 3.0)), expected)
    assert calls == ["both"] * 4
    if guided is Guidance:
        calls.clear()
        sample(denoiser, noise, steps=4, guidance=Guidance(PairedDenoiser(weaker, both), 3.0, interval=(0.5, 2.0)))
        assert calls == ["alone", "alone", "both", "alone"]


def test_guidance_rescale_keeps_the_deviation():
    p, u = torch.randn(2, 2, 500, generator=torch.Generator().manual_seed(0))
    results = [
        sample(lambda x, t: p, torch.zeros(2, 500), steps=1, guidance=Guidance(lambda x, t: u, 4.0, rescale=phi))
        for phi in (0.0, 1.0)
    ]
    guided = u + 4 * (p - u)
    torch.testing.assert_close(results[0], -guided)
    torch.testing.assert_close(results[1], -guided * p.std(1, keepdim=True) / guided.std(1, keepdim=True))


def test_projected_guidance():
    x, p, u = torch.randn(3, 2, 50, generator=torch.Generator().manual_seed(0))
    level = solver_table("ddim", DiscreteVP(), "epsilon", 4).levels[2]
    plain = ProjectedGuidance(lambda x, t: u, 5.0, eta=1.0)
    torch.testing.assert_close(plain.guided(x, p, u, level, "epsilon", None)[0], u + 5 * (p - u), rtol=1e-4, atol=1e-4)

    def x0(prediction):
        return (x - level.sigma * prediction) / level.alpha

    guided, _ = ProjectedGuidance(lambda x, t: u, 5.0, eta=0.0).guided(x, p, u, level, "epsilon", None)
    change = x0(guided) - x0(p)
    assert (change * x0(p)).sum(1).abs().max() < 1e-3 * change.norm() * x0(p).norm()
    bounded, _ = ProjectedGuidance(lambda x, t: u, 5.0, eta=1.0, norm_bound=0.5).guided(x, p, u, level, "epsilon", None)
    torch.testing.assert_close((x0(bounded) - x0(p)).norm(dim=1), torch.full((2,), 4 * 0.5), rtol=1e-4, atol=1e-4)
    momentum = ProjectedGuidance(lambda x, t: u, 5.0, momentum=-0.5)
    _, average = momentum.guided(x, p, u, level, "epsilon", None)
    _, after = momentum.guided(x, p, u, level, "epsilon", average)
    torch.testing.assert_close(after, 0.5 * average)
    equal, _ = ProjectedGuidance(lambda x, t: p, 5.0, norm_bound=1.0).guided(x, p, p, level, "epsilon", None)
    torch.testing.assert_close(equal, p)


def test_classifier_guidance_draws_from_the_class():
    """A perfect classifier of the components leads every sample to its own one."""
    mixture, process = GaussianMixture.ring(components=4, deviation=0.15), EDM()
    network = mixture.denoiser(process, "edm")

    def log_probability(x, timestep):
        time = process.time_of_timestep(timestep.double())
        joint = mixture._log_joint(x.double(), process.alpha(time), process.sigma(time))
        return joint.log_softmax(1)[:, 2]

    guidance = ClassifierGuidance(log_probability)
    options = {"sampler": "dpmpp_2m", "steps": 40, "process": process, "prediction": "edm"}
    x = sample(network, (400, 2), guidance=guidance, **options)
    assert (x.double().mean(0) - mixture.means[2]).abs().max() < 4.5 * 0.15 / 20
    assert (x.std(0) / 0.15 - 1).abs().max() < 0.16


def test_autoguidance_by_a_blurred_network():
    """arXiv:2406.02507: away from a network that sees less detail, samples gather at the modes."""
    process = EDM()
    sharp, blurred = (GaussianMixture.ring(deviation=d) for d in (0.2, 0.3))
    options = {"sampler": "heun", "steps": 20, "process": process, "prediction": "edm"}
    spread = []
    for scale in (1.0, 2.0):
        guidance = Guidance(blurred.denoiser(process, "edm"), scale)
        x = sample(sharp.denoiser(process, "edm"), (500, 2), guidance=guidance, **options)
        spread.append((x[:, None] - sharp.means).norm(dim=2).min(1).values.mean().item())
    assert spread[1] < 0.8 * spread[0]


def test_settings_round_trip(tmp_path):
    settings = SamplingSettings(DiscreteVP("cosine"), "v", "ddim", 12, "timesteps", {"spacing": "leading"})
    settings.save(tmp_path)
    assert SamplingSettings.load(tmp_path) == settings
    assert settings.arguments(steps=3) == {
        "process": DiscreteVP("cosine"),
        "prediction": "v",
        "sampler": "ddim",
        "steps": 3,
        "schedule": "timesteps",
        "sampler_options": {"spacing": "leading"},
    }
    defaults = SamplingSettings()
    assert defaults.process == FlowMatching()
    assert sample(toward(1.0), (1, 3), **defaults.arguments(steps=2)).shape == (1, 3)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"\xff", b'{"process": {"name": "flow_matching"}, "sampler": "none"}', b'{"process": 3}'],
)
def test_damaged_settings(tmp_path, content):
    with pytest.raises(FileNotFoundError, match="no pipeline.json"):
        SamplingSettings.load(tmp_path)
    (tmp_path / "pipeline.json").write_bytes(content)
    with pytest.raises(ValueError, match="pipeline.json is damaged"):
        SamplingSettings.load(tmp_path)
