"""Training checkpoints: one safetensors file with the weights, their average, the optimizer and the step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fastdiff._files import replacing
from fastdiff.models.weights import write_tensors
from fastdiff.training.ema import EMA

CHECKPOINT_NAME = "checkpoint.safetensors"
OPTIMIZER_TENSORS = ("step", "exp_avg", "exp_avg_sq")  # of torch's AdamW


def save_checkpoint(
    path: Path, model: nn.Module, ema: EMA, optimizer: torch.optim.AdamW, metadata: dict[str, Any]
) -> None:
    """Write everything that changes during training; the old file stays whole until the new one is on the disk.

    Args:
        metadata: JSON-able values.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in ema.weights.items()}
    for name, parameter in model.named_parameters():
        for key in OPTIMIZER_TENSORS:
            if parameter in optimizer.state:
                tensors[f"optimizer.{key}.{name}"] = optimizer.state[parameter][key]
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as (file,):
        write_tensors(file, tensors, {"training": json.dumps(metadata)})


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a checkpoint. FileNotFoundError if it is missing, ValueError if it is damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path.name} in {path.parent}")
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["training"])
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged or not a training checkpoint: {error}") from error


@torch.no_grad()
def load_checkpoint(path: Path, model: nn.Module, ema: EMA, optimizer: torch.optim.AdamW) -> None:
    """Restore what :func:`save_checkpoint` wrote, bit for bit. ValueError if the file does not fit the model."""
    try:
        tensors = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a training checkpoint: {error}") from error
    state = _section(tensors, "model")
    try:
        model.load_state_dict(state)
        for name, average in ema.weights.items():
            average.copy_(tensors[f"ema.{name}"])
        for name, parameter in model.named_parameters():
            if f"optimizer.step.{name}" not in tensors:
                continue
            # In the parameter's memory format, as the optimizer itself would have made them.
            moments = {
                key: torch.empty_like(parameter).copy_(tensors[f"optimizer.{key}.{name}"])
                for key in ("exp_avg", "exp_avg_sq")
            }
            optimizer.state[parameter] = {"step": tensors[f"optimizer.step.{name}"].to(parameter.device), **moments}
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit the model: {error}") from error


def _section(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = prefix + "."
    return {name[len(start) :]: tensor for name, tensor in tensors.items() if name.startswith(start)}
