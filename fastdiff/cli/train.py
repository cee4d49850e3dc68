from __future__ import annotations

import argparse
import dataclasses
import typing
from pathlib import Path
from typing import Any

import torch

import fastdiff
from fastdiff.cli.device import available_device, require_extension
from fastdiff.cli.errors import as_command_error
from fastdiff.training import TrainConfig, train
from fastdiff.training.checkpoint import CHECKPOINT_NAME, read_metadata

HELP = "train a U-Net on images and write a checkpoint that `fastdiff demo --checkpoint` draws with"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag a field of TrainConfig, so that the two cannot drift."""
    types = typing.get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            default=field.default,
            help=f"{field.metadata['help']} (default: {_shown(field.default)})",
            **_value(types[field.name]),
        )


def run(arguments: argparse.Namespace) -> int:
    require_extension()
    if fastdiff.tune_allocator():
        print("allocator tuned: freed activations are kept for reuse")
    fields = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(TrainConfig)}
    # A configuration may also be refused later, by the network (groups that do not divide the channels).
    with as_command_error(ValueError, FloatingPointError, ImportError, torch.OutOfMemoryError):
        config = TrainConfig(**fields)
        available_device(config.device)
        try:
            # A full disk's own message names no file.
            with as_command_error(OSError, doing=f"cannot train into {config.output}"):
                result = train(config)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_what_remains(Path(config.output))) from None
    print(f"trained {result.step} steps, loss {result.loss:.4f}; look at what it draws:")
    print(f"fastdiff demo --checkpoint {result.folder}")
    return 0


def _value(kind: Any) -> dict[str, Any]:
    """argparse's arguments for a flag whose value is of type `kind`."""
    if kind is bool:
        return {"action": "store_true"}
    if typing.get_origin(kind) is tuple:
        return {"type": typing.get_args(kind)[0], "nargs": "*", "metavar": "N"}
    return {"type": kind, "metavar": {int: "N", float: "X", str: "NAME"}[kind]}


def _shown(default: Any) -> str:
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return "off" if default is False else shown


def _what_remains(folder: Path) -> str:
    checkpoint = folder / CHECKPOINT_NAME
    if not checkpoint.exists():
        return "no checkpoint had been written yet"
    return f"the checkpoint of step {read_metadata(checkpoint)['step']} in {folder} is intact, go on with --resume"
