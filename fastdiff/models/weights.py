"""Weights from safetensors files: one, or several with an index. Nothing else is read: a pickle can run code."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
INDEX_SUFFIX = ".index.json"  # of weights that lie in several files
WEIGHTS_INDEX_NAME = f"{WEIGHTS_NAME}{INDEX_SUFFIX}"
SHARD_PATTERN = "diffusion_pytorch_model-*-of-*.safetensors"  # these
WEIGHTS_PATTERNS = [WEIGHTS_NAME, WEIGHTS_INDEX_NAME, SHARD_PATTERN]
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")


class StoredTensor(NamedTuple):
    """What the head of a file says of a tensor."""

    shape: tuple[int, ...]
    dtype: str
    """In safetensors' terms, such as "BF16"."""


def read_weights(
    folder: Path,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    *,
    exact: Container[str] = (),
) -> dict[str, Tensor]:
    """The tensors by name; those of floating point in `dtype` (None: as stored), on `device` (None: the CPU).

    The tensors named in `exact` are as stored in any case.

    One tensor at a time, so that no second copy of all of them is ever in memory. What keeps its dtype and stays on the
    CPU is not even read before it is used: the file is mapped.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or the weights are there as a pickle only.
    """
    state = {}
    for path in weight_files(folder):
        for name, stored in read_tensors(path):
            is_cast = stored.is_floating_point() and name not in exact
            state[name] = stored.to(device, dtype if is_cast else None)
    return state


def weight_files(folder: Path, name: str = WEIGHTS_NAME) -> list[Path]:
    """The file of weights of this name or those in its index, which counts if it is there, as it does for diffusers.

    Raises as :func:`read_weights` does.
    """
    index, stem = folder / f"{name}{INDEX_SUFFIX}", name.removesuffix(".safetensors")
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        names = list(weight_map.values()) if isinstance(weight_map, dict) else []
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ValueError(f"{index} must have a weight_map from keys to files of its folder")
        files = [folder / name for name in sorted(set(names))]
    elif (folder / name).is_file():
        files = [folder / name]
    elif (folder / f"{stem}.bin").is_file():
        raise _pickle_error(folder / f"{stem}.bin", name)
    elif variants := sorted(path.name for path in folder.glob(f"{stem}.*.safetensors")):
        raise FileNotFoundError(f"there is no {name} in {folder}, only {', '.join(variants)}")
    else:
        files = [folder / name]
    for path in files:
        _require_file(path)
    return files


def remove_shards(folder: Path) -> None:
    """Weights that lie in several files, and their index first: it counts more than a single file."""
    (folder / WEIGHTS_INDEX_NAME).unlink(missing_ok=True)
    for shard in folder.glob(SHARD_PATTERN):
        shard.unlink()


def read_head(path: Path) -> dict[str, StoredTensor]:
    """What a file holds, by name, without reading any of it. Raises as :func:`read_weights` does."""
    with _open(path) as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        return {name: StoredTensor(tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}


def read_tensors(path: Path, names: Container[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file of these names (None: all), one at a time, on the CPU and as stored. The file is mapped."""
    with _open(path) as file:
        for name in file.keys():  # noqa: SIM118 (it is no dict)
            if names is None or name in names:
                yield name, file.get_tensor(name)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file of tensors that are contiguous and on the CPU. OSError if that fails: a full disk."""
    try:
        safetensors.torch.save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise OSError(f"cannot write weights: {error}") from error


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    _require_file(path)
    if path.suffix in PICKLE_SUFFIXES:
        raise _pickle_error(path, "safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error


def _pickle_error(path: Path, instead: str) -> ValueError:
    return ValueError(f"{path} is a pickle, which can run code when it is loaded; only {instead} is read")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises FileNotFoundError or ValueError."""
    _require_file(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def _require_file(path: Path) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path.name} in {path.parent}")
