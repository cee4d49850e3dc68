from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastdiff.data import ICONS
from fastdiff.diffusion import FlowMatching, GaussianMixture
from fastdiff.models import UNet2DModel
from fastdiff.sampling import SamplingSettings, sample

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "distil_icons.py"))


def test_a_flow_network_is_a_denoiser_at_every_noise_level() -> None:
    """E[x0 | x] of a mixture, through the straight path and back; and x itself where there is no noise."""
    mixture = GaussianMixture.ring(components=3)
    flow = mixture.denoiser(FlowMatching(), "flow")
    network = lambda x, timestep: SimpleNamespace(sample=flow(x.flatten(1), timestep).view_as(x))  # noqa: E731
    x = torch.randn(6, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([1e-9, 0.02, 0.3, 1.0, 7.0, 80.0], dtype=torch.float64)
    found = EXAMPLE["consistency_function"](network)(x, sigma).flatten(1)
    torch.testing.assert_close(found, mixture.denoised(x.flatten(1), torch.ones_like(sigma), sigma))
    torch.testing.assert_close(found[0], x[0].flatten())


@pytest.mark.skipif(importlib.util.find_spec("fugue_icons") is None, reason="needs fugue-icons")
def test_a_distilled_network_draws_in_four_steps(tmp_path: Path) -> None:
    EXAMPLE["main"](tmp_path, steps=3, batch_size=4)
    settings = SamplingSettings.load(tmp_path)
    student, teacher = (UNet2DModel.from_pretrained(path, dtype=torch.float32) for path in (tmp_path, ICONS))
    moved = [(a - b).abs().max() for a, b in zip(student.parameters(), teacher.parameters(), strict=True)]
    assert 0 < max(moved) < 0.01
    calls = []
    denoiser = lambda x, t: calls.append(t) or student(x, t).sample  # noqa: E731
    assert sample(denoiser, (1, 3, 16, 16), **settings.arguments()).isfinite().all() and len(calls) == 4
