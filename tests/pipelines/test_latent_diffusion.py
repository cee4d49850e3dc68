"""The folders of diffusers' pipelines, opened here: the same pictures as diffusers draws from the same latents."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers", reason="text encoders are those of transformers")

import diffusers  # noqa: E402
import tiny_pipelines  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from fastdiff.models import UNet2DModel, hub  # noqa: E402
from fastdiff.pipelines import LatentDiffusionPipeline  # noqa: E402
from fastdiff.sampling import Guidance, ProjectedGuidance, run_table  # noqa: E402

# Of pixels from 0 to 1, where a byte is 4e-3. Seen: at most 3e-6; 3.4e-5 for Euler with zero terminal SNR, where
# diffusers' state begins at 4096 deviations of the data and loses digits.
TOLERANCE = 5e-5
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


def saved(pipeline: Any, folder: Path) -> Any:
    """Ours, from the folder that theirs has written."""
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return LatentDiffusionPipeline.from_pretrained(folder)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def theirs(pipeline: Any, latents: Tensor, steps: int, **arguments: Any) -> Tensor:
    return pipeline(latents=latents, num_inference_steps=steps, output_type="pt", **arguments).images


def ours(pipeline: LatentDiffusionPipeline, **arguments: Any) -> Tensor:
    images = pipeline(**arguments, output="tensor", progress=False).images
    assert isinstance(images, Tensor)
    return images


def assert_same(images: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.01  # a picture, and not the middle of the range
    torch.testing.assert_close(images, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("DDIM", {"clip_sample": False, "set_alpha_to_one": False}),
        ("DDIM", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
        ("PNDM", {"skip_prk_steps": True}),
        ("EulerDiscrete", {}),
        ("EulerDiscrete", {"timestep_spacing": "leading", "use_karras_sigmas": True}),
        ("EulerDiscrete", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
        ("LMSDiscrete", {}),
        ("HeunDiscrete", {"timestep_spacing": "trailing"}),
        ("DPMSolverMultistep", {"use_karras_sigmas": True}),
        ("DPMSolverMultistep", {"solver_order": 3, "timestep_spacing": "leading"}),
        ("UniPCMultistep", {}),
        ("DEISMultistep", {"solver_order": 3}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_stable_diffusion(kind, config, tmp_path) -> None:
    scheduler = getattr(diffusers, f"{kind}Scheduler")(**SD | config)
    pipeline = tiny_pipelines.stable_diffusion(scheduler)
    opened = saved(pipeline, tmp_path)
    latents, texts = noise(2, 4, 16, 16), {"prompt": ["a cat", "an owl"], "negative_prompt": ["", "dull"]}
    expected = theirs(pipeline, latents, 5, **texts)
    assert_same(ours(opened, latents=latents, steps=5, **texts), expected)


def test_what_diffusers_pipeline_changes_in_old_settings(tmp_path) -> None:
    """Stable Diffusion's clips nothing, and counts from 1, whatever the scheduler's file says; that stays as it is."""
    saved(tiny_pipelines.stable_diffusion(), tmp_path)
    file = "scheduler/scheduler_config.json"
    edit(tmp_path / file, steps_offset=0, clip_sample=True)
    with pytest.warns(FutureWarning, match="is outdated"):
        pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    opened, latents = LatentDiffusionPipeline.from_pretrained(tmp_path), noise(1, 4, 16, 16)
    assert_same(ours(opened, prompt="a cat", latents=latents, steps=4), theirs(pipeline, latents, 4, prompt="a cat"))
    opened.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / file).read_text()) == json.loads((tmp_path / file).read_text())


def test_tiny_autoencoder(tmp_path) -> None:
    blocks = {f"{part}_block_out_channels": (8, 8) for part in ("encoder", "decoder")}
    config = {**blocks, "num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    parts = tiny_pipelines.stable_diffusion().components
    parts["vae"] = tiny_pipelines.network("AutoencoderTiny", config)
    pipeline = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    opened, latents = saved(pipeline, tmp_path), noise(1, 4, 16, 16)
    assert_same(ours(opened, prompt="a cat", latents=latents, steps=4), theirs(pipeline, latents, 4, prompt="a cat"))


def test_guidance_scale_that_the_unet_is_told(tmp_path) -> None:
    """That of a latent consistency model, in one call a step."""
    pipeline = tiny_pipelines.stable_diffusion()
    config = tiny_pipelines.UNET | {"time_cond_proj_dim": 16}
    pipeline.register_modules(unet=tiny_pipelines.network("UNet2DConditionModel", config))
    opened, call = saved(pipeline, tmp_path), {"prompt": "a cat", "guidance_scale": 5.0}
    expected = theirs(pipeline, noise(1, 4, 16, 16), 4, **call)
    assert_same(ours(opened, latents=noise(1, 4, 16, 16), steps=4, **call), expected)
    other = ours(opened, latents=noise(1, 4, 16, 16), steps=4, prompt="a cat", guidance_scale=8.0)
    assert (other - expected).abs().max() > 10 * TOLERANCE


def test_negative_embeddings_rescaled_guidance_and_another_size(tmp_path) -> None:
    pipeline = tiny_pipelines.stable_diffusion()
    opened, latents = saved(pipeline, tmp_path), noise(1, 4, 12, 20)
    texts = {"prompt_embeds": noise(1, 9, 48), "negative_prompt_embeds": -noise(1, 9, 48)}
    guided = {"guidance_scale": 3.0, "guidance_rescale": 0.7, "height": 24, "width": 40}
    expected = theirs(pipeline, latents, 4, **texts, **guided)
    assert_same(ours(opened, latents=latents, steps=4, **texts, **guided), expected)
    unguided = theirs(pipeline, noise(1, 4, 16, 16), 4, prompt_embeds=noise(1, 9, 48), guidance_scale=1.0)
    same = ours(opened, latents=noise(1, 4, 16, 16), steps=4, prompt_embeds=noise(1, 9, 48), guidance_scale=1.0)
    assert_same(same, unguided)


@pytest.mark.parametrize("scale", (0.0, 0.5))
def test_scales_below_one_are_no_guidance(scale, stable_theirs, stable, flux) -> None:
    latents, call = noise(1, 4, 16, 16), {"prompt": "a cat", "guidance_scale": scale}
    assert_same(ours(stable, latents=latents, steps=3, **call), theirs(stable_theirs, latents, 3, **call))
    call = {"prompt": "a cat", "steps": 2, "height": 32, "width": 32, "max_sequence_length": 8}
    assert torch.equal(ours(flux, true_cfg_scale=scale, **call), ours(flux, **call))


@pytest.mark.parametrize("zeros", (True, False))
def test_stable_diffusion_xl(zeros, tmp_path) -> None:
    pipeline = tiny_pipelines.stable_diffusion_xl(force_zeros_for_empty_prompt=zeros)
    opened, latents = saved(pipeline, tmp_path), noise(2, 4, 16, 16)
    sizes = {"original_size": (64, 48), "crops_coords_top_left": (3, 5), "target_size": (32, 40)}
    texts = {"prompt": ["a cat", "an owl"], **({} if zeros else {"negative_prompt": ["dull", ""], **sizes})}
    expected = theirs(pipeline, latents, 4, **texts)
    assert_same(ours(opened, latents=latents, steps=4, **texts), expected)


@pytest.mark.parametrize("with_t5", (True, False))
def test_stable_diffusion_3(with_t5, tmp_path) -> None:
    pipeline = tiny_pipelines.stable_diffusion_3(with_t5=with_t5)
    opened, latents = saved(pipeline, tmp_path), noise(2, 4, 16, 16)
    texts = {"prompt": ["a cat", "an owl"], "negative_prompt": ["dull", ""], "max_sequence_length": 12}
    expected = theirs(pipeline, latents, 4, height=32, width=32, **texts)
    assert_same(ours(opened, latents=latents, steps=4, **texts), expected)


def test_embeddings_of_stable_diffusion_3_and_a_shift_by_size(tmp_path) -> None:
    pipeline = tiny_pipelines.stable_diffusion_3(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    opened, latents = saved(pipeline, tmp_path), noise(1, 4, 12, 16)
    texts = {
        "prompt_embeds": noise(1, 5, 24),
        "negative_prompt_embeds": -noise(1, 5, 24),
        "pooled_prompt_embeds": noise(1, 12),
        "negative_pooled_prompt_embeds": -noise(1, 12),
    }
    arguments = {**texts, "height": 24, "width": 32}
    assert_same(ours(opened, latents=latents, steps=4, **arguments), theirs(pipeline, latents, 4, **arguments))


def packed(latents: Tensor) -> Tensor:
    """As diffusers' pipeline wants those of FLUX."""
    return diffusers.FluxPipeline._pack_latents(latents, *latents.shape)


@pytest.mark.parametrize("guidance_embeds", (True, False))
def test_flux(guidance_embeds, tmp_path) -> None:
    scheduler = None if guidance_embeds else diffusers.FlowMatchEulerDiscreteScheduler()
    pipeline = tiny_pipelines.flux(scheduler, guidance_embeds)
    opened, latents = saved(pipeline, tmp_path), noise(2, 4, 12, 16)
    texts = {"prompt": ["a cat", "an owl"], "max_sequence_length": 12, "height": 24, "width": 32}
    if not guidance_embeds:
        texts |= {"negative_prompt": ["dull", "dim"], "true_cfg_scale": 3.0}
    expected = theirs(pipeline, packed(latents), 4, **texts)
    assert_same(ours(opened, latents=latents, steps=4, **texts), expected)


def test_dit(tmp_path, monkeypatch) -> None:
    """diffusers' pipeline takes no latents, and has 1000 for no class whatever the network says."""
    pipeline, latents = tiny_pipelines.dit(), noise(2, 4, 16, 16)
    opened = saved(pipeline, tmp_path)
    monkeypatch.setattr(diffusers.pipelines.dit.pipeline_dit, "randn_tensor", lambda *_, **__: latents)
    for scale in (1.0, 4.0):
        expected = pipeline([3, 999], num_inference_steps=4, guidance_scale=scale, output_type="pt").images
        assert_same(ours(opened, class_labels=[3, 999], latents=latents, steps=4, guidance_scale=scale), expected)


@pytest.mark.parametrize("kind", ("stable_diffusion", "stable_diffusion_xl", "dit", "stable_diffusion_3", "flux"))
def test_what_is_saved_opens_in_diffusers_and_here(kind, tmp_path, monkeypatch) -> None:
    pipeline = getattr(tiny_pipelines, kind)()
    saved(pipeline, tmp_path / "theirs")
    if kind == "dit":
        edit(tmp_path / "theirs/model_index.json", id2label={"1": "cat, tabby"})  # DiT's on the hub has it
    opened = LatentDiffusionPipeline.from_pretrained(tmp_path / "theirs")
    opened.save_pretrained(tmp_path / "ours")
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours")
    assert type(again) is type(pipeline)
    again.set_progress_bar_config(disable=True)
    file = "scheduler/scheduler_config.json"
    assert json.loads((tmp_path / "ours" / file).read_text()) == json.loads((tmp_path / "theirs" / file).read_text())
    latents = noise(1, 4, 16, 16)
    arguments = {"class_labels": [3]} if kind == "dit" else {"prompt": "a cat", "height": 32, "width": 32}
    if kind == "dit":
        assert again.labels == {"cat": 1, "tabby": 1}
        monkeypatch.setattr(diffusers.pipelines.dit.pipeline_dit, "randn_tensor", lambda *_, **__: latents)
        expected = again(**arguments, num_inference_steps=3, output_type="pt").images
    else:
        expected = theirs(again, packed(latents) if kind == "flux" else latents, 3, **arguments)
    reopened = LatentDiffusionPipeline.from_pretrained(tmp_path / "ours")
    for ours_now in (opened, reopened):
        assert_same(ours(ours_now, latents=latents, steps=3, **arguments), expected)
    assert json.loads((tmp_path / "ours/model_index.json").read_text())["_class_name"] == type(pipeline).__name__


@pytest.fixture(scope="module")
def stable_theirs() -> Any:
    return tiny_pipelines.stable_diffusion()


@pytest.fixture(scope="module")
def stable(stable_theirs, tmp_path_factory) -> LatentDiffusionPipeline:
    return saved(stable_theirs, tmp_path_factory.mktemp("stable"))


@pytest.fixture(scope="module")
def dit(tmp_path_factory) -> LatentDiffusionPipeline:
    return saved(tiny_pipelines.dit(), tmp_path_factory.mktemp("dit"))


@pytest.fixture(scope="module")
def flux(tmp_path_factory) -> LatentDiffusionPipeline:
    return saved(tiny_pipelines.flux(), tmp_path_factory.mktemp("flux"))


@pytest.fixture
def folder(stable, tmp_path) -> Path:
    stable.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ("EulerAncestralDiscrete", "DDPM", "LCM"))
def test_an_image_depends_on_its_seed_alone(kind, tmp_path) -> None:
    opened = saved(tiny_pipelines.stable_diffusion(getattr(diffusers, f"{kind}Scheduler")()), tmp_path)
    together = ours(opened, prompt=["a cat", "an owl"], seeds=[5, 6], steps=4)
    assert together.shape == (2, 3, 32, 32) and together.std() > 0.01
    alone = ours(opened, prompt="an owl", seeds=[6], steps=4)
    # Not to the bit: PyTorch's convolutions and products round by the size of the batch.
    torch.testing.assert_close(alone, together[1:], rtol=0, atol=TOLERANCE)
    assert torch.equal(alone, ours(opened, prompt="an owl", seeds=[6], steps=4))
    assert (ours(opened, prompt="an owl", seeds=[5], steps=4) - alone).abs().max() > 0.01


def test_several_images_of_a_prompt(stable) -> None:
    result = stable(["a cat", "an owl"], seeds=[1, 2, 3, 4], steps=2, output="tensor", progress=False)
    assert result.seeds == (1, 2, 3, 4)
    second = ours(stable, prompt=["an owl"], seeds=[3, 4], steps=2)
    torch.testing.assert_close(result.images[2:], second, rtol=0, atol=TOLERANCE)


def test_outputs(stable, flux) -> None:
    call = {"prompt": "a cat", "steps": 2, "progress": False}
    tensor = stable(**call, output="tensor").images
    (image,) = stable(**call).images
    assert isinstance(image, Image.Image) and image.size == (32, 32)
    assert image.getpixel((5, 9)) == tuple((tensor[0, :, 9, 5] * 255).round().int().tolist())
    latents = flux(**call, output="latent", height=32, width=48, max_sequence_length=8).images
    assert latents.shape == (1, 4, 16, 24)


def test_another_sampler(stable, flux) -> None:
    call = {"latents": noise(1, 4, 16, 16), "steps": 4}
    configured = ours(stable, prompt="a cat", **call)
    same = {"sampler": "ddim", "sampler_options": {"spacing": "leading", "steps_offset": 1}}
    torch.testing.assert_close(ours(stable, prompt="a cat", **same, **call), configured, rtol=0, atol=TOLERANCE)
    assert (ours(stable, prompt="a cat", sampler="unipc", **call) - configured).abs().max() > 0.01
    noisy = ours(stable, prompt="a cat", sampler_options={"eta": 1.0}, **call)
    assert (noisy - configured).abs().max() > 0.01

    # The shift that goes by the size of the image holds for other samplers, too.
    call |= {"prompt": "a cat", "height": 32, "width": 32, "max_sequence_length": 8}
    euler = ours(flux, sampler="flow_euler", **call)
    torch.testing.assert_close(euler, ours(flux, **call), rtol=0, atol=TOLERANCE)


def test_any_guidance(stable) -> None:
    call = {"prompt": "a cat", "negative_prompt": "dull", "latents": noise(1, 4, 16, 16), "steps": 4}
    scaled = ours(stable, guidance_scale=3.0, **call)
    made = ours(stable, guidance=lambda negative: Guidance(negative, 3.0), **call)
    assert torch.equal(made, scaled)
    # Without a bound, momentum or projection it is classifier-free guidance.
    projected = ours(stable, guidance=lambda negative: ProjectedGuidance(negative, 3.0, eta=1.0), **call)
    torch.testing.assert_close(projected, scaled, rtol=0, atol=TOLERANCE)
    del call["negative_prompt"]
    calls = []

    def weaker(x: Tensor, timestep: Tensor) -> Tensor:
        calls.append(timestep)
        return 0.5 * x

    assert (ours(stable, guidance=Guidance(weaker, 3.0), **call) - scaled).abs().max() > 0.01
    assert len(calls) == 4


def test_one_batch_for_both_conditions(folder) -> None:
    """And a single one where an interval has no guidance; timesteps stay in float32."""
    stable = LatentDiffusionPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    network, calls = stable.backbone.network, []
    hook = network.register_forward_pre_hook(lambda _, inputs: calls.append((len(inputs[0]), inputs[1].dtype)))
    try:
        ours(stable, prompt=["a cat", "an owl"], steps=4)
        ours(stable, prompt="a", steps=4, guidance=lambda negative: Guidance(negative, 2.0, interval=(0, 5)))
    finally:
        hook.remove()
    assert calls[:4] == [(4, torch.float32)] * 4
    assert {size for size, _ in calls[4:]} == {1, 2}


def test_reduced_precision(stable, tmp_path) -> None:
    stable.save_pretrained(tmp_path)
    half = LatentDiffusionPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.backbone.network.dtype == half.vae.dtype == half.text_parts["text_encoder"].dtype == torch.bfloat16
    call = {"prompt": "a cat", "latents": noise(1, 4, 16, 16), "steps": 3}
    assert (ours(half, **call) - ours(stable, **call)).abs().mean() < 0.05
    # The autoencoder's activations leave the range of float16.
    assert LatentDiffusionPipeline.from_pretrained(tmp_path, dtype=torch.float16).vae.dtype == torch.float32


def test_from_parts(stable) -> None:
    parts = {"vae": stable.vae, "backbone": stable.backbone.network}
    text = {"text_encoders": [stable.text_parts["text_encoder"]], "tokenizers": [stable.text_parts["tokenizer"]]}
    scheduler = stable.scheduler.values
    call = {"prompt": "a cat", "steps": 2}
    assert torch.equal(
        ours(LatentDiffusionPipeline(**parts, **text, scheduler_config=scheduler), **call), ours(stable, **call)
    )
    without = LatentDiffusionPipeline(**parts, scheduler_config=scheduler)
    with pytest.raises(ValueError, match="tokenizer, which is absent: give prompt_embeds"):
        ours(without, **call)
    with pytest.raises(ValueError, match=r"text_encoders must have one entry for each of \['text_encoder'\]"):
        LatentDiffusionPipeline(**parts, text_encoders=[None, None], scheduler_config=scheduler)
    with pytest.raises(ValueError, match="backbone must be one of .* got fastdiff.models.unet_2d.UNet2DModel"):
        unet = UNet2DModel(block_out_channels=(32, 32, 32, 32), norm_num_groups=8)
        LatentDiffusionPipeline(vae=stable.vae, backbone=unet, scheduler_config=scheduler)


@pytest.mark.parametrize(
    ("argument", "make", "message"),
    [
        (
            "vae",
            lambda: tiny_pipelines.network("AutoencoderKL", tiny_pipelines.AUTOENCODER),
            "vae must be one of .* of fastdiff.models, got diffusers.*AutoencoderKL$",
        ),
        (
            "text_encoders",
            lambda: [tiny_pipelines.clip(48, 16)],
            r"text_encoder must be one of \['CLIPTextModel'\] .* got transformers.*WithProjection$",
        ),
        ("tokenizers", lambda: [str.split], "tokenizer must be one of .* got builtins.method_descriptor"),
    ],
)
def test_parts_that_are_not_supported(argument, make, message, stable) -> None:
    parts = {"vae": stable.vae, "backbone": stable.backbone.network, "scheduler_config": stable.scheduler.values}
    with pytest.raises(ValueError, match=message):
        LatentDiffusionPipeline(**parts | {argument: make()})


class MyTextModel(transformers.CLIPTextModel):
    pass


def test_subclass_is_saved_as_what_opens_again(stable, tmp_path) -> None:
    encoder = stable.text_parts["text_encoder"]
    mine = MyTextModel(encoder.config)
    mine.load_state_dict(encoder.state_dict())
    pipeline = LatentDiffusionPipeline(
        vae=stable.vae,
        backbone=stable.backbone.network,
        text_encoders=[mine],
        tokenizers=[stable.text_parts["tokenizer"]],
        scheduler_config=stable.scheduler.values,
    )
    pipeline.save_pretrained(tmp_path)
    again = LatentDiffusionPipeline.from_pretrained(tmp_path)
    assert torch.equal(ours(again, prompt="a cat", steps=1), ours(stable, prompt="a cat", steps=1))


def test_parts_are_put_in_evaluation_mode(stable, dit) -> None:
    for pipeline in (stable, dit):
        encoders = [part for name, part in pipeline.text_parts.items() if "encoder" in name]
        models = [pipeline.vae, pipeline.backbone.network, *encoders]
        for model in models:
            model.train()
        LatentDiffusionPipeline(
            vae=pipeline.vae,
            backbone=pipeline.backbone.network,
            text_encoders=encoders,
            scheduler_config=pipeline.scheduler.values,
        )
        assert not any(model.training for model in models)


def test_moving_all_parts(folder) -> None:
    pipeline = LatentDiffusionPipeline.from_pretrained(folder)
    assert pipeline.to("meta") is pipeline
    for moved in (pipeline, LatentDiffusionPipeline.from_pretrained(folder, device="meta")):
        devices = (moved.device, moved.vae.device, moved.text_parts["text_encoder"].device)
        assert all(device.type == "meta" for device in devices)


def test_decoding_on_another_device(folder, monkeypatch) -> None:
    pipeline = LatentDiffusionPipeline.from_pretrained(folder)
    # A layer in place of all: attention asks for autocast, which there is none of on "meta".
    first = pipeline.vae.to("meta").decoder.conv_in
    monkeypatch.setattr(pipeline.vae, "decode", lambda latents: SimpleNamespace(sample=first(latents)))
    assert ours(pipeline, prompt="a cat", steps=1).device.type == "meta"


def test_callback_sees_each_step(stable) -> None:
    seen: list[tuple[int, tuple[int, ...]]] = []
    ours(stable, prompt="a cat", steps=3, callback=lambda row, x: seen.append((row, tuple(x.shape))))
    assert seen == [(row, (1, 4, 16, 16)) for row in (1, 2, 3)]


def test_a_text_is_encoded_once(stable) -> None:
    sizes: list[int] = []
    hook = stable.text_parts["text_encoder"].register_forward_hook(lambda _, __, output: sizes.append(len(output[0])))
    try:
        images = ours(stable, prompt=["a cat", "an owl", "a cat"], seeds=[1, 2, 1], steps=1)
    finally:
        hook.remove()
    assert sizes == [2, 1]  # the prompts, and what guidance leads away from
    torch.testing.assert_close(images[0], images[2], rtol=0, atol=TOLERANCE)
    assert (images[0] - images[1]).abs().max() > 0.01


def test_flux_is_told_a_guidance_scale_that_is_on_the_device(flux) -> None:
    told: list[Any] = []
    network = flux.backbone.network
    hook = network.register_forward_pre_hook(
        lambda _, __, arguments: told.append(arguments["guidance"]), with_kwargs=True
    )
    try:
        ours(flux, prompt="a cat", steps=2, height=32, width=32, max_sequence_length=8, guidance_scale=2.5)
    finally:
        hook.remove()
    assert torch.equal(told[0], torch.tensor([2.5])) and told[1] is told[0]


def test_long_prompts_are_cut_with_a_warning(stable, monkeypatch) -> None:
    for length in (77, 10**30):  # a tokenizer that says none has a number of this size
        monkeypatch.setattr(stable.text_parts["tokenizer"], "model_max_length", length)
        with pytest.warns(UserWarning, match="a prompt of 92 tokens is cut: the text encoder takes 77") as caught:
            ours(stable, prompt="a " * 90, steps=1)
        assert [warning.filename for warning in caught] == [__file__]


def test_what_is_cheap_is_checked_before_texts_are_encoded(stable, monkeypatch) -> None:
    monkeypatch.setitem(stable.text_parts, "text_encoder", None)
    for wrong in ({"steps": 0}, {"seeds": []}, {"sampler": "best"}, {"guidance": 7.5}, {"class_labels": 3}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ours(stable, prompt="a cat", **wrong)


TEXT = {"prompt": "a cat"}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("stable", {}, "either prompt or prompt_embeds .* got neither"),
        ("stable", TEXT | {"prompt_embeds": torch.zeros(1, 7, 48)}, "got both"),
        ("stable", TEXT | {"class_labels": 3}, "class_labels must not be given to a StableDiffusionPipeline, got 3"),
        ("stable", TEXT | {"pooled_prompt_embeds": torch.zeros(1, 3)}, "pooled_prompt_embeds must not be given"),
        ("stable", TEXT | {"target_size": (8, 8)}, r"target_size must not be given .* got \(8, 8\)"),
        ("stable", TEXT | {"max_sequence_length": 8}, "max_sequence_length must not be given"),
        ("stable", {"prompt_embeds": torch.zeros(7, 48)}, r"prompt_embeds must be \(7, L, C\), got shape \(7, 48\)"),
        ("stable", TEXT | {"negative_prompt": ["a", "b"]}, "negative_prompt must be one text, .* got 2"),
        ("stable", TEXT | {"negative_prompt_embeds": torch.zeros(1, 3, 48)}, "must make the same shape"),
        ("stable", TEXT | {"negative_prompt": "b", "guidance_scale": 1}, "negative_prompt must not be given without"),
        ("stable", TEXT | {"true_cfg_scale": 2.0}, "true_cfg_scale must be 1 .* got 2.0"),
        ("stable", TEXT | {"guidance": Guidance(run_table, 2), "guidance_scale": 2.0}, "must not be given beside"),
        ("stable", TEXT | {"height": 31}, "height must be a positive multiple of 2, got 31"),
        ("stable", TEXT | {"width": 0}, "width must be a positive multiple of 2, got 0"),
        ("stable", {"prompt": ["a", "b"], "seeds": [1, 2, 3]}, "seeds must be as many as the 2 prompts .* got 3"),
        ("stable", TEXT | {"seeds": []}, "seeds must be as many"),
        ("stable", {"prompt": []}, "at least one prompt or class must be given"),
        (
            "stable",
            TEXT | {"latents": torch.zeros(1, 4, 8, 8)},
            r"latents must be \(N, 4, 16, 16\), got \(1, 4, 8, 8\)",
        ),
        ("stable", TEXT | {"latents": torch.zeros(1, 4, 16, 16), "seeds": [1, 2]}, "seeds must have one entry"),
        ("stable", TEXT | {"output": "numpy"}, "output must be one of .* got 'numpy'"),
        ("stable", TEXT | {"sampler": "best"}, "sampler 'best' is unknown"),
        ("stable", TEXT | {"schedule": "karras"}, "schedule must be None without a sampler"),
        ("stable", TEXT | {"sampler_options": {"order": 2}}, "solver has no option 'order'; it has"),
        ("stable", TEXT | {"steps": 0}, "steps must be from 1 to the process's 1000 timesteps, got 0"),
        ("stable", TEXT | {"steps": 4.0}, "steps must be an integer, got 4.0"),
        ("stable", TEXT | {"height": 32.0}, "height must be an integer, got 32.0"),
        ("stable", TEXT | {"seeds": 7}, "seeds must be a sequence of integers, one for each image, got 7"),
        ("stable", TEXT | {"seeds": [0.5]}, "seeds must be an integer, got 0.5"),
        ("stable", {"prompt": (text for text in ["a"])}, "prompt must be a text or a sequence of texts, got <gen"),
        ("stable", {"prompt": [1]}, r"prompt must be a text or a sequence of texts, got \[1\]"),
        ("stable", TEXT | {"negative_prompt": 3}, "negative_prompt must be a text or a sequence of texts, got 3"),
        ("stable", TEXT | {"sampler_options": {"clip": [1.0]}}, r"sampler_options must fit .* got {'clip': \[1.0\]}"),
        ("stable", TEXT | {"guidance": 7.5}, "guidance must be an object of Guidance, .* got 7.5"),
        ("stable", TEXT | {"guidance": lambda negative: None}, "guidance must return an object of .* got None"),
        ("flux", TEXT | {"max_sequence_length": 0}, "max_sequence_length must be at least 1, got 0"),
        ("flux", TEXT | {"max_sequence_length": 8.0}, "max_sequence_length must be an integer, got 8.0"),
        ("dit", {}, "class_labels must be given to a DiTPipeline"),
        ("dit", {"class_labels": 1000}, "class_labels must be integers from 0 to 999, got 1000"),
        ("dit", {"class_labels": torch.tensor([0.5])}, "class_labels must be integers from 0 to 999, got 0.5"),
        ("dit", {"class_labels": [0, -1]}, "class_labels must be integers from 0 to 999, got -1"),
        ("dit", TEXT | {"class_labels": 3}, "prompt must not be given to a DiTPipeline, got 'a cat'"),
        ("dit", {"class_labels": 3, "height": 34}, "height must be a positive multiple of 4, got 34"),
        ("flux", {"prompt_embeds": torch.zeros(1, 7, 24)}, "prompt_embeds and pooled_prompt_embeds must be given"),
        ("flux", TEXT | {"guidance": Guidance(run_table, 2), "true_cfg_scale": 2.0}, "must not be given beside"),
        ("flux", TEXT | {"guidance_scale": lambda level: 2.0}, "guidance_scale must be a number for a network"),
        ("flux", TEXT | {"negative_prompt": "b"}, "negative_prompt must not be given without guidance"),
        ("flux", TEXT | {"height": 30}, "height must be a positive multiple of 4, got 30"),
    ],
)
def test_wrong_arguments(name, arguments, message, request) -> None:
    with pytest.raises(ValueError, match=message):
        request.getfixturevalue(name)(**arguments, progress=False)


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("model_index.json", {"_class_name": "KandinskyPipeline"}, "must be one of .*FluxPipeline.* got 'Kandinsky"),
        ("model_index.json", {"_class_name": None}, "got None"),
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "has another U-Net"),
        ("model_index.json", {"vae": ["diffusers", "VQModel"]}, "vae must be one of .* got 'VQModel'"),
        ("model_index.json", {"unet": ["mine", "MyUNet"]}, "unet must be a UNet2DConditionModel, got 'MyUNet'"),
        ("model_index.json", {"text_encoder": ["transformers", "BertModel"]}, "text_encoder must be one of .*CLIPText"),
        ("model_index.json", {"text_encoder": ["transformers", ["a"]]}, r"text_encoder must be one of .* got \['a'\]"),
        ("model_index.json", {"vae": ["diffusers", {}]}, "vae must be one of .* got {}"),
        ("model_index.json", {"_class_name": []}, r"must be one of .*FluxPipeline.* got \[\]"),
        ("model_index.json", {"tokenizer": ["mine", "My"]}, "tokenizer must be one of .* got 'My'"),
        ("scheduler/scheduler_config.json", {"_class_name": "KDPM2"}, "_class_name must be one of .* got 'KDPM2'"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1]}, "trained_betas must be one of"),
    ],
)
def test_folders_that_are_not_understood(folder, file, values, message) -> None:
    edit(folder / file, **values)
    if "another U-Net" not in message:  # which only its own configuration tells
        for weights in folder.rglob("*.safetensors"):
            weights.unlink()
    with pytest.raises(ValueError, match=message):
        LatentDiffusionPipeline.from_pretrained(folder)


def test_damaged_weights_of_a_text_encoder(folder) -> None:
    path = folder / "text_encoder/model.safetensors"
    tensors = load_file(path)
    (name,) = (key for key in tensors if key.endswith("final_layer_norm.weight"))
    save_file({key: value for key, value in tensors.items() if key != name}, path, {"format": "pt"})
    # It would be drawn at random.
    with pytest.raises(ValueError, match="lack .*final_layer_norm.weight of a CLIPTextModel"):
        LatentDiffusionPipeline.from_pretrained(folder)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="text_encoder cannot be opened"):
        LatentDiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("file", "content", "error", "message"),
    [
        ("text_encoder/config.json", "{", ValueError, "is not valid JSON"),
        ("text_encoder/config.json", '{"hidden_size": "a"}', ValueError, "text_encoder cannot be opened"),
        ("text_encoder/config.json", None, FileNotFoundError, "there is no config.json in .*text_encoder"),
        ("text_encoder/model.safetensors", None, FileNotFoundError, "there is no model.safetensors in .*text_encoder"),
        ("tokenizer/tokenizer.json", "{}", ValueError, "tokenizer cannot be opened"),
        ("tokenizer/tokenizer.json", None, FileNotFoundError, "there is no vocabulary in .*tokenizer: tokenizer.json,"),
    ],
)
def test_text_parts_that_do_not_open(file, content, error, message, folder) -> None:
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(error, match=message):
        LatentDiffusionPipeline.from_pretrained(folder)


def test_files_that_are_missing(folder) -> None:
    (folder / "model_index.json").unlink()
    with pytest.raises(FileNotFoundError, match="there is no model_index.json"):
        LatentDiffusionPipeline.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        LatentDiffusionPipeline.from_pretrained(folder / "nowhere")


def test_saving_replaces_all_weights_of_a_text_encoder(stable, folder) -> None:
    encoder = folder / "text_encoder"
    names = sorted(path.name for path in encoder.iterdir())
    (encoder / "model.safetensors").rename(encoder / "model-00001-of-00001.safetensors")
    (encoder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    (encoder / ".saving").mkdir()  # as a killed process leaves it
    stable.save_pretrained(folder)
    assert sorted(path.name for path in encoder.iterdir()) == names


def test_what_cannot_be_saved_leaves_the_pipeline_that_was_there(stable, folder, monkeypatch) -> None:
    monkeypatch.setitem(stable.settings, "requires_safety_checker", object())
    with pytest.raises(TypeError, match="not JSON serializable"):
        stable.save_pretrained(folder)
    LatentDiffusionPipeline.from_pretrained(folder)


def test_saving_that_is_cut_short_leaves_no_pipeline(stable, folder, monkeypatch) -> None:
    monkeypatch.setattr(stable.text_parts["tokenizer"], "save_pretrained", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stable.save_pretrained(folder)
    with pytest.raises(FileNotFoundError, match=r"model_index.json"):
        LatentDiffusionPipeline.from_pretrained(folder)


def test_without_diffusers_and_transformers(folder, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'fastdiff\[pipelines\]'"):
        LatentDiffusionPipeline.from_pretrained(folder)
    edit(folder / "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
    without = LatentDiffusionPipeline.from_pretrained(folder)
    assert ours(without, prompt_embeds=noise(1, 7, 48), negative_prompt_embeds=noise(1, 7, 48), steps=1).std() > 0.01


def test_from_the_hub(folder, stable, monkeypatch) -> None:
    asked = []

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        wanted.extend(allow_patterns)
        return str(folder)

    wanted: list[str] = []
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    opened = LatentDiffusionPipeline.from_pretrained("someone/something", revision="v2")
    assert asked == [("someone/something", "v2")] * 2
    present = [path.relative_to(folder) for path in folder.rglob("*.*") if path.is_file()]
    assert all(any(path.match(pattern) for pattern in wanted) for path in present)
    assert not any(Path("safety_checker/model.safetensors").match(pattern) for pattern in wanted)
    assert not any(Path("text_encoder/model.fp16.safetensors").match(pattern) for pattern in wanted)
    assert torch.equal(ours(opened, prompt="a cat", steps=1), ours(stable, prompt="a cat", steps=1))


def test_all_parts_are_of_the_commit_of_the_index(folder, tmp_path_factory, monkeypatch) -> None:
    snapshot = tmp_path_factory.mktemp("hub") / "snapshots" / ("a1" * 20)
    snapshot.parent.mkdir()
    snapshot.symlink_to(folder)
    asked: list[str | None] = []
    monkeypatch.setattr(
        hub, "snapshot_download", lambda _, revision, allow_patterns: asked.append(revision) or str(snapshot)
    )
    LatentDiffusionPipeline.from_pretrained("someone/something")
    assert asked == [None, "a1" * 20]
