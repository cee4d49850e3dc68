from __future__ import annotations

import pytest
import torch

from fastdiff.diffusion import DiscreteVP, FlowMatching
from fastdiff.sampling import Guidance, SamplingSettings, ddim, sample, seeded_noise


def toward(value: float):
    """A flow denoiser whose data is the single point `value`: one Euler step from any noise lands on it."""
    return lambda x, timestep: (x - value) / (timestep / 1000)[:, None]


def test_seeds_fix_each_sample_whatever_the_batch():
    together = seeded_noise((3, 2, 4), [7, 8, 9])
    for index, seed in enumerate((7, 8, 9)):
        assert torch.equal(seeded_noise((1, 2, 4), [seed])[0], together[index])
    assert torch.equal(seeded_noise((2, 2, 4), [9, 7]), together[[2, 0]])
    assert not torch.equal(together[0], together[1])


def test_samples_follow_their_seeds():
    def denoiser(x, timestep):
        return torch.sin(x) * timestep[:, None] / 1000

    together = sample(denoiser, (4, 5), seeds=[3, 1, 4, 1], steps=6)
    assert torch.equal(together[1], together[3])
    for index, seed in enumerate((3, 1, 4)):
        assert torch.equal(sample(denoiser, (1, 5), seeds=[seed], steps=6)[0], together[index])
    assert torch.equal(sample(denoiser, (4, 5), steps=6)[3], together[0])  # seeds default to 0 ... N - 1
    noise = seeded_noise((4, 5), [3, 1, 4, 1])
    assert torch.equal(sample(denoiser, noise, steps=6), together)


def test_large_and_negative_seeds():
    noise = seeded_noise((3, 1000), [2**63 - 1, -1, 2**40])
    assert noise.isfinite().all() and noise.std(dim=1).sub(1).abs().max() < 0.1


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
    assert seen == ddim(process, "epsilon", 5, spacing="leading", steps_offset=1).times.tolist()


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
    with pytest.raises(ValueError, match=r"sampler must be one of \['ddim', 'flow_euler'\], got 'heun'"):
        sample(toward(1.0), (1, 3), sampler="heun")
    with pytest.raises(ValueError, match="seeds must have one entry for each of the 2 samples, got 3"):
        sample(toward(1.0), (2, 3), seeds=[1, 2, 3])
    with pytest.raises(ValueError, match="seeds must be None"):
        sample(toward(1.0), torch.randn(2, 3), seeds=[1, 2])
    with pytest.raises(ValueError, match="prediction must be one of"):
        sample(toward(1.0), (1, 3), prediction="score")
    with pytest.raises(ValueError, match="sampler 'flow_euler' has no option 'eta'.*'shift'"):
        sample(toward(1.0), (1, 3), sampler="flow_euler", sampler_options={"eta": 1.0})


def test_settings_round_trip(tmp_path):
    settings = SamplingSettings(DiscreteVP("cosine"), "v", "ddim", 12, {"spacing": "leading"})
    settings.save(tmp_path)
    assert SamplingSettings.load(tmp_path) == settings
    assert settings.arguments(steps=3) == {
        "process": DiscreteVP("cosine"),
        "prediction": "v",
        "sampler": "ddim",
        "steps": 3,
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
