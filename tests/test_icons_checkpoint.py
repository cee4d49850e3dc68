"""The checkpoint that comes with the package loads, is trained, and is properly credited."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from fastdiff.data import ICONS
from fastdiff.diffusion import mse_loss
from fastdiff.models import UNet2DModel
from fastdiff.sampling import SamplingSettings, sample
from fastdiff.training import TrainConfig
from fastdiff.training.data import load_icons, to_model_range

pytestmark = pytest.mark.usefixtures("reference_without_extension")


def test_drawn_images_look_like_icons():
    model, settings = UNet2DModel.from_pretrained(ICONS, dtype=torch.float32), SamplingSettings.load(ICONS)
    images = sample(model, (24, 3, 16, 16), **settings.arguments(steps=12))
    corners = images[:, :, [0, 0, 15, 15], [0, 15, 0, 15]].mean(dim=1)
    assert (corners > 0.9).float().mean() > 0.7  # icons stand on white
    assert (images.mean(dim=(1, 2, 3)) < 0.95).float().mean() > 0.7  # and are not blank
    assert images.flatten(1).std(dim=0).mean() > 0.3  # and are not one and the same
    assert (images.abs() < 1.25).float().mean() > 0.95  # in the range of the data but for a few pixels


@pytest.mark.skipif(importlib.util.find_spec("fugue_icons") is None, reason="needs fugue-icons")
@torch.no_grad()
def test_loss_on_the_icons():
    model = UNet2DModel.from_pretrained(ICONS, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    x0 = to_model_range(load_icons()[torch.randperm(3570, generator=generator)[:128]])
    eps = torch.randn(x0.shape, generator=generator)
    t = torch.linspace(0.1, 0.9, len(x0))
    noisy = (1 - t[:, None, None, None]) * x0 + t[:, None, None, None] * eps
    loss = mse_loss(model(noisy, 1000 * t).sample, eps - x0).mean()
    assert loss < 0.27  # an untrained network: 1.5; predicting the mean of the data: about 0.5


def test_it_loads_in_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.UNet2DModel.from_pretrained(ICONS, torch_dtype=torch.float32)
    ours = UNet2DModel.from_pretrained(ICONS, dtype=torch.float32)
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([100.0, 900.0])
    torch.testing.assert_close(ours(x, t).sample, theirs(x, t).sample, rtol=1e-4, atol=1e-4)


def test_configuration_is_what_training_makes_by_default():
    model = UNet2DModel.from_pretrained(ICONS)
    assert model.config == UNet2DModel(**TrainConfig().unet_config(image_channels=3)).config
    assert SamplingSettings.load(ICONS) == SamplingSettings()


def test_size_and_credit():
    assert sum(file.stat().st_size for file in ICONS.iterdir()) < 8_000_000
    readme = (ICONS / "README.md").read_text(encoding="utf-8")
    for words in ("Yusuke Kamiyamane", "creativecommons.org/licenses/by/3.0", "fastdiff train"):
        assert words in readme
