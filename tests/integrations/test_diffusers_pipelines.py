"""fastdiff's models in diffusers' own pipelines, in the place of diffusers' models with the same weights."""

from __future__ import annotations

import diffusers
import pytest
import torch
from tiny_pipelines import AUTOENCODER, DIT, FLUX, SD3, SHIFTED, UNET
from torch import Tensor, nn

from fastdiff import models


def twins(name: str, config: dict) -> tuple[nn.Module, nn.Module]:
    """diffusers' model and ours."""
    torch.manual_seed(0)
    theirs = getattr(diffusers, name)(**config).eval()
    ours = getattr(models, name)(**config).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def draw(pipeline: diffusers.DiffusionPipeline, **arguments) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    return torch.as_tensor(pipeline(**arguments, generator=generator, num_inference_steps=3, output_type="np").images)


def text(batch: int = 1, tokens: int = 7, channels: int = 24) -> Tensor:
    return torch.randn(batch, tokens, channels, generator=torch.Generator().manual_seed(2))


def stable_diffusion(unet: nn.Module, vae: nn.Module) -> Tensor:
    pipeline = diffusers.StableDiffusionPipeline(
        vae, None, None, unet, diffusers.DDIMScheduler(), None, None, requires_safety_checker=False
    )
    return draw(pipeline, prompt_embeds=text(channels=48), negative_prompt_embeds=-text(channels=48))


def dit(transformer: nn.Module, vae: nn.Module) -> Tensor:
    return draw(diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler()), class_labels=[1, 2])


def stable_diffusion_3(transformer: nn.Module, vae: nn.Module) -> Tensor:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipeline = diffusers.StableDiffusion3Pipeline(transformer, scheduler, vae, *[None] * 6)
    pooled = text()[:, 0, :12]
    embeds = {"prompt_embeds": text(), "negative_prompt_embeds": -text()}
    pooled_embeds = {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": -pooled}
    return draw(pipeline, **embeds, **pooled_embeds, height=32, width=32)


def flux(transformer: nn.Module, vae: nn.Module) -> Tensor:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipeline = diffusers.FluxPipeline(scheduler, vae, None, None, None, None, transformer)
    return draw(pipeline, prompt_embeds=text(), pooled_prompt_embeds=text()[:, 0, :12], height=32, width=32)


@pytest.mark.parametrize(
    ("run", "network", "autoencoder"),
    [
        (stable_diffusion, ("UNet2DConditionModel", UNET), AUTOENCODER),
        (dit, ("DiTTransformer2DModel", DIT), AUTOENCODER),
        (stable_diffusion_3, ("SD3Transformer2DModel", SD3), SHIFTED),
        (flux, ("FluxTransformer2DModel", FLUX), SHIFTED),
    ],
    ids=["stable_diffusion", "dit", "stable_diffusion_3", "flux"],
)
def test_same_picture(run, network, autoencoder) -> None:
    pytest.importorskip("transformers", reason="diffusers' pipelines need transformers")
    pairs = zip(twins(*network), twins("AutoencoderKL", autoencoder), strict=True)
    theirs, ours = (run(*pair) for pair in pairs)
    assert theirs.std() > 0.01  # a picture, and not the middle of the range
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
