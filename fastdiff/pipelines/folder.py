"""A pipeline as a folder in diffusers' format: an index, one subfolder for each part, and the scheduler's settings."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from fastdiff._files import atomic_write, replacing
from fastdiff.models import AutoencoderKL, AutoencoderTiny
from fastdiff.models.hub import find_folder
from fastdiff.models.pretrained import CONFIG_NAME, PretrainedModel
from fastdiff.models.weights import INDEX_SUFFIX, WEIGHTS_PATTERNS, read_json, weight_files
from fastdiff.pipelines.families import AUTOENCODERS, Family, class_of_part, family_of, get_family
from fastdiff.pipelines.scheduler_config import SchedulerConfig

INDEX_NAME = "model_index.json"
SCHEDULER_NAME = "scheduler/scheduler_config.json"
# Of text encoders, in safetensors alone and not in a variant of another dtype; of tokenizers, everything but weights.
_ENCODER_WEIGHTS = "model.safetensors"
_ENCODER_PATTERNS = [CONFIG_NAME, _ENCODER_WEIGHTS, f"{_ENCODER_WEIGHTS}{INDEX_SUFFIX}", "model-*-of-*.safetensors"]
_TOKENIZER_PATTERNS = ["*.json", "*.txt", "*.model"]
_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
"""Files of which a tokenizer must have those of one entry: without them it opens, and knows no words."""


@dataclass(frozen=True)
class Stored:
    """What a folder holds."""

    family: Family
    vae: AutoencoderKL | AutoencoderTiny
    network: PretrainedModel
    text_parts: dict[str, Any]
    """Text encoders and tokenizers by name, those that are there."""
    scheduler: dict[str, Any]
    settings: dict[str, Any]
    """Entries of the index that are no parts."""


@dataclass(frozen=True)
class _Names:
    """The classes of a pipeline's parts, of which all are understood."""

    family: Family
    vae: str
    text_parts: dict[str, str]
    """Of text encoders and tokenizers, those that are there."""

    @property
    def patterns(self) -> list[str]:
        """Of the files of all parts."""
        part = self.family.backbone.part
        of_parts = dict.fromkeys(("vae", part), [CONFIG_NAME, *WEIGHTS_PATTERNS])
        for name in self.text_parts:
            of_parts[name] = _ENCODER_PATTERNS if name in self.family.text_encoders else _TOKENIZER_PATTERNS
        return [f"{name}/{pattern}" for name, patterns in of_parts.items() for pattern in patterns]


def _names(index: Mapping[str, Any]) -> _Names:
    """Raises ValueError for what is not understood."""
    family = get_family(index.get("_class_name"))
    names = {key: value[1] for key, value in index.items() if _is_part(value)}
    network_class, part = family.backbone.network_class, family.backbone.part
    if names.get(part) not in (network_class.__name__, *network_class.former_class_names):
        raise ValueError(f"the pipeline's {part} must be a {network_class.__name__}, got {names.get(part)!r}")
    text_parts = {name: names[name] for name in family.text_parts if names.get(name) is not None}
    for name, choices in {"vae": tuple(AUTOENCODERS), **family.text_parts}.items():
        # Tuples, as a name from a file may be what no set takes.
        if (name == "vae" or name in text_parts) and names.get(name) not in choices:
            raise ValueError(f"the pipeline's {name} must be one of {list(choices)}, got {names.get(name)!r}")
    return _Names(family, names["vae"], text_parts)


def _is_part(value: Any) -> bool:
    """Whether an entry of the index is a library and a class."""
    return isinstance(value, list) and len(value) == 2


def read(
    folder_or_id: str | os.PathLike[str],
    revision: str | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Stored:
    """The parts of a pipeline. Raises as :meth:`LatentDiffusionPipeline.from_pretrained` does."""
    folder = find_folder(folder_or_id, [INDEX_NAME, SCHEDULER_NAME], None, revision)
    index, scheduler = read_json(folder / INDEX_NAME), read_json(folder / SCHEDULER_NAME)
    names = _names(index)
    family = names.family
    SchedulerConfig(scheduler, family.scheduler_overrides)  # to find it wrong before anything large is read
    if names.text_parts:
        _transformers()
    if not Path(folder_or_id).is_dir():
        # All of one commit, whatever is pushed meanwhile.
        commit = folder.name if folder.parent.name == "snapshots" else revision
        folder = find_folder(folder_or_id, names.patterns, None, commit)
    network_class, part = family.backbone.network_class, family.backbone.part
    network = network_class.from_pretrained(folder, subfolder=part, dtype=dtype, device=device)
    if family_of(network) is not family:
        raise ValueError(f"a {family.name} has another U-Net than this one of a {family_of(network).name}")
    text_parts = {
        part: _text_encoder(folder / part, name, dtype, device)
        if part in family.text_encoders
        else _tokenizer(folder / part, name)
        for part, name in names.text_parts.items()
    }
    return Stored(
        family,
        vae=_vae(folder, names.vae, dtype, device),
        network=network,
        text_parts=text_parts,
        scheduler=scheduler,
        settings={key: value for key, value in index.items() if not _is_part(value) and not key.startswith("_")},
    )


def _vae(
    folder: Path, name: str, dtype: torch.dtype | None, device: torch.device | str | None
) -> AutoencoderKL | AutoencoderTiny:
    if dtype == torch.float16:
        config = read_json(folder / "vae" / CONFIG_NAME)
        # Its activations leave the range of float16.
        dtype = torch.float32 if config.get("force_upcast", name == "AutoencoderKL") else dtype
    return AUTOENCODERS[name].from_pretrained(folder, subfolder="vae", dtype=dtype, device=device)


def _text_encoder(folder: Path, name: str, dtype: torch.dtype | None, device: torch.device | str | None) -> Any:
    read_json(folder / CONFIG_NAME)
    weight_files(folder, _ENCODER_WEIGHTS)
    model_class = getattr(_transformers(), name)
    with _translated_errors(folder):
        # "auto" is as stored, as it is for the other models.
        model, info = model_class.from_pretrained(
            folder, dtype="auto" if dtype is None else dtype, use_safetensors=True, output_loading_info=True
        )
    if info["missing_keys"]:
        raise ValueError(f"the weights in {folder} lack {', '.join(sorted(info['missing_keys']))} of a {name}")
    return model.to(device)


def _tokenizer(folder: Path, name: str) -> Any:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if not any(all((folder / file).is_file() for file in files) for files in _VOCABULARIES):
        wanted = ", or ".join(" and ".join(files) for files in _VOCABULARIES)
        raise FileNotFoundError(f"there is no vocabulary in {folder}: {wanted}")
    with _translated_errors(folder):
        return getattr(_transformers(), name).from_pretrained(folder)


@contextmanager
def _translated_errors(folder: Path) -> Iterator[None]:
    """ValueError in place of what transformers and its libraries raise for damaged files, which may be anything."""
    try:
        yield
    except (ImportError, MemoryError):  # which say nothing of the files
        raise
    except Exception as error:
        raise ValueError(f"what is in {folder} cannot be opened: {error}") from error


def write(folder: Path, stored: Stored) -> None:
    """The parts, and the index last: a folder without one opens nowhere."""
    index, scheduler = _json(_index(stored)), _json(stored.scheduler)  # may fail, and then nothing is touched
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX_NAME).unlink(missing_ok=True)
    stored.vae.save_pretrained(folder / "vae")
    stored.network.save_pretrained(folder / stored.family.backbone.part)
    for name, text_part in stored.text_parts.items():
        _save_text_part(text_part, folder / name)
    (folder / SCHEDULER_NAME).parent.mkdir(exist_ok=True)
    atomic_write(folder / SCHEDULER_NAME, scheduler)
    atomic_write(folder / INDEX_NAME, index)


def _index(stored: Stored) -> dict[str, Any]:
    family, part = stored.family, stored.family.backbone.part
    entries: dict[str, list[str | None]] = {name: [None, None] for name in family.image_parts}
    for name in family.text_parts:
        part_there = stored.text_parts.get(name)
        known = None if part_there is None else class_of_part(family, name, part_there)
        entries[name] = [known and "transformers", known]
    entries |= {"vae": ["diffusers", type(stored.vae).__name__], part: ["diffusers", type(stored.network).__name__]}
    entries |= {"scheduler": ["diffusers", stored.scheduler["_class_name"]]}
    return {"_class_name": family.name, **stored.settings, **entries}


def _save_text_part(part: Any, folder: Path) -> None:
    """As transformers writes it, but each file in one step, and without what was there of other weights."""
    temporary = folder / ".saving"  # a fixed name: what a killed process left is removed
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        part.save_pretrained(temporary)
        names = sorted(path.name for path in temporary.iterdir())
        with replacing(*(folder / name for name in names)) as files:
            for name, file in zip(names, files, strict=True):
                os.replace(temporary / name, file)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for stale in folder.glob("model*.safetensors*"):
        if stale.name not in names:
            stale.unlink()


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _transformers() -> ModuleType:
    try:
        import transformers  # optional: only text encoders and tokenizers need it
    except ImportError as error:
        raise ImportError(
            "text encoders and tokenizers need transformers: pip install 'fastdiff[pipelines]'"
        ) from error
    return transformers
