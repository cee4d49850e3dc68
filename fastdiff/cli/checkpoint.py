"""A checkpoint folder, checked through before anything is drawn with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastdiff.cli.errors import CommandError, as_command_error
from fastdiff.models import UNet2DModel
from fastdiff.sampling import SamplingSettings, solver_table


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    model: UNet2DModel
    settings: SamplingSettings
    image_shape: tuple[int, int, int]
    """(channels, height, width)"""
    device: torch.device

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())


def load_checkpoint(folder: Path, device: torch.device) -> Checkpoint:
    """The network in float32 and channels_last on `device`, with its settings. CommandError if anything is amiss."""
    # TypeError: a value of the wrong type in one of the JSON files, such as a string for a number.
    with as_command_error(OSError, ValueError, TypeError, doing=f"cannot use the checkpoint {folder}"):
        settings = SamplingSettings.load(folder)
        solver_table(**_table_arguments(settings))
        model = UNet2DModel.from_pretrained(folder, dtype=torch.float32)
        image_shape = _image_shape(model)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Checkpoint(folder, model, settings, image_shape, device)


def require_finite(images: Tensor, checkpoint: Checkpoint) -> None:
    """A CommandError for weights that are NaN or infinite, which no reading of the file finds."""
    if not images.isfinite().all():
        raise CommandError(
            f"cannot use the checkpoint {checkpoint.folder}: what it draws is not finite, its weights are damaged"
        )


def _table_arguments(settings: SamplingSettings) -> dict:
    arguments = settings.arguments()
    return arguments | arguments.pop("sampler_options")


def _image_shape(model: UNet2DModel) -> tuple[int, int, int]:
    config = model.config
    if config.sample_size is None:
        raise ValueError("config.json must have the image size as sample_size, got null")
    if config.in_channels != config.out_channels or config.in_channels not in (1, 3):
        raise ValueError(
            "in_channels and out_channels must both be 1 (grey) or 3 (colour), "
            f"got {config.in_channels} and {config.out_channels}"
        )
    if config.class_embed_type is not None or config.num_class_embeds is not None:
        raise ValueError("the network must be unconditional, got one that is conditioned on classes")
    size = config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return config.in_channels, height, width
