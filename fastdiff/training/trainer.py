from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastdiff.diffusion import (
    PROCESSES,
    TIME_SAMPLERS,
    FlowMatching,
    Prediction,
    Process,
    get_prediction,
    mse_loss,
)
from fastdiff.models import UNet2DModel
from fastdiff.ops import add_noise
from fastdiff.sampling import SamplingSettings
from fastdiff.training.checkpoint import CHECKPOINT_NAME, load_checkpoint, read_metadata, save_checkpoint
from fastdiff.training.config import TrainConfig
from fastdiff.training.counters import batch_indices, derived_seed, generator
from fastdiff.training.data import load_images, to_model_range
from fastdiff.training.ema import EMA

LOSS_SMOOTHING = 0.99


@dataclass(frozen=True)
class TrainResult:
    folder: Path
    """Holds the finished model in diffusers' format and pipeline.json."""
    step: int
    loss: float
    """Smoothed over the last hundred or so steps."""


@dataclass(frozen=True)
class TrainingBatch:
    """What the network sees at one step, and what it should say."""

    noisy: Tensor
    """(N, C, H, W) float32"""
    timestep: Tensor
    """(N,) float32"""
    target: Tensor
    """(N, C, H, W) float32"""


def train(
    config: TrainConfig, *, progress: bool = True, on_step: Callable[[int, float], None] | None = None
) -> TrainResult:
    """Train a :class:`fastdiff.models.UNet2DModel` on images and save it.

    The output folder receives checkpoint.safetensors every ``checkpoint_every`` steps (written atomically), and at
    the end the averaged weights as config.json, diffusion_pytorch_model.safetensors and pipeline.json. Everything
    random follows from (seed, step), so a run that was killed and resumed ends with the bits of one that was not.

    Args:
        config: the run.
        progress: show a progress bar.
        on_step: called with the number of steps done and the smoothed loss after each.

    Raises:
        FileExistsError: the output folder has a checkpoint and ``config.resume`` is off.
        FileNotFoundError: ``config.resume`` is on and there is no checkpoint, or the data is missing.
        ValueError: the checkpoint is damaged or of another configuration.
    """
    folder = Path(config.output)
    checkpoint = folder / CHECKPOINT_NAME
    metadata = _metadata_to_resume(config, checkpoint)
    images = load_images(config.data, config.image_size)
    folder.mkdir(parents=True, exist_ok=True)
    process, prediction = PROCESSES[config.process](), get_prediction(config.prediction)

    with torch.random.fork_rng():  # initial weights and dropout draw from torch's global generator
        torch.manual_seed(derived_seed(config.seed, "weights"))
        model = UNet2DModel(**config.unet_config(image_channels=images.shape[1]))
        model.to(config.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        ema = EMA(model, config.ema_decay)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        if config.resume:
            load_checkpoint(checkpoint, model, ema, optimizer)

        first_step, loss = metadata["step"], metadata["loss"]
        with tqdm(total=config.steps, initial=first_step, desc="training", unit="step", disable=not progress) as bar:
            for step in range(first_step, config.steps):
                torch.manual_seed(derived_seed(config.seed, "dropout", step))
                batch = make_batch(config, images, process, prediction, step)
                batch_loss = optimize_step(model, optimizer, batch, config, step)
                ema.update(model, step)
                if not math.isfinite(batch_loss):
                    raise FloatingPointError(f"the loss is {batch_loss} at step {step}; try a lower learning_rate")
                loss = batch_loss if loss is None else LOSS_SMOOTHING * loss + (1 - LOSS_SMOOTHING) * batch_loss
                done = step + 1
                if done % config.checkpoint_every == 0 or done == config.steps:
                    metadata = {"step": done, "loss": loss, "config": config.fixed_fields()}
                    save_checkpoint(checkpoint, model, ema, optimizer, metadata)
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                bar.update()
                if on_step is not None:
                    on_step(done, loss)

    _export(config, model, ema, process)
    return TrainResult(folder, config.steps, loss)


def make_batch(
    config: TrainConfig, images: Tensor, process: Process, prediction: Prediction, step: int
) -> TrainingBatch:
    """The images of step `step`, each noised to a time of its own. Times and coefficients are float64 on the host."""
    indices = batch_indices(config.seed, step, config.batch_size, len(images))
    x0 = to_model_range(images[indices])
    random = generator(config.seed, "noise", step)
    t = process.time_from_unit(TIME_SAMPLERS[config.time_distribution](config.batch_size, random))
    eps = torch.randn(x0.shape, generator=random)

    alpha, sigma = process.alpha(t), process.sigma(t)
    noisy, target = add_noise(
        x0.to(config.device, memory_format=torch.channels_last),
        eps.to(config.device, memory_format=torch.channels_last),
        *(factor.to(config.device) for factor in (alpha, sigma, *prediction.weights(alpha, sigma))),
    )
    return TrainingBatch(noisy, process.timestep(t).float().to(config.device), target)


def optimize_step(
    model: UNet2DModel, optimizer: torch.optim.AdamW, batch: TrainingBatch, config: TrainConfig, step: int
) -> float:
    """One update of the weights; returns the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    loss = mse_loss(model(batch.noisy, batch.timestep).sample, batch.target).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    optimizer.step()
    return loss.item()


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then constant or half a cosine down to zero at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _metadata_to_resume(config: TrainConfig, checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's metadata, or that of a fresh run; refuses to mix two runs."""
    if not config.resume:
        if checkpoint.exists():
            raise FileExistsError(f"output {checkpoint.parent} has a checkpoint already: resume it, or name another")
        return {"step": 0, "loss": None}
    metadata = read_metadata(checkpoint)
    for name, value in config.fixed_fields().items():
        stored = metadata["config"].get(name)
        stored = tuple(stored) if isinstance(stored, list) else stored
        if stored != value:
            raise ValueError(f"{name} must be {stored!r} to resume {checkpoint}, got {value!r}")
    if metadata["step"] > config.steps:
        raise ValueError(f"steps must be at least the {metadata['step']} of {checkpoint}, got {config.steps}")
    return metadata


def _export(config: TrainConfig, model: UNet2DModel, ema: EMA, process: Process) -> None:
    """The averaged weights as a model folder, with how to sample from it. The model's own weights are given up."""
    model.load_state_dict(ema.weights)
    model.save_pretrained(config.output, dtype=getattr(torch, config.export_dtype))
    sampler = "flow_euler" if isinstance(process, FlowMatching) else "ddim"
    SamplingSettings(process, config.prediction, sampler).save(config.output)
