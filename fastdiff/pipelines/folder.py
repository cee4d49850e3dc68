"""A pipeline as a folder in diffusers' format: an index, one subfolder for each part, and the scheduler's settings."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from fastdiff._files import atomic_write
from fastdiff.models import AutoencoderKL, AutoencoderTiny
from fastdiff.models.hub import find_folder
from fastdiff.models.pretrained import CONFIG_NAME, PretrainedModel
from fastdiff.models.weights import read_json
from fastdiff.pipelines.families import AUTOENCODERS, TOKENIZERS, Family, class_of_part, family_of, get_family

INDEX_NAME = "model_index.json"
SCHEDULER_NAME = "scheduler/scheduler_config.json"
# Of text encoders, in safetensors alone and not in a variant of another dtype; of tokenizers, everything but weights.
_ENCODER_PATTERNS = ["config.json", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"]
_TOKENIZER_PATTERNS = ["*.json", "*.txt", "*.model"]


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
class _Source:
    """Where a pipeline is read from, and how."""

    folder_or_id: str | os.PathLike[str]
    revision: str | None
    dtype: torch.dtype | None
    device: torch.device | str | None

    def find(self, patterns: list[str], subfolder: str | None = None) -> Path:
        return find_folder(self.folder_or_id, patterns, subfolder, self.revision)

    def model(self, model_class: type[PretrainedModel], subfolder: str, dtype: torch.dtype | None) -> Any:
        return model_class.from_pretrained(
            self.folder_or_id, subfolder=subfolder, revision=self.revision, dtype=dtype, device=self.device
        )

    def vae(self, name: Any) -> AutoencoderKL | AutoencoderTiny:
        if name not in AUTOENCODERS:
            raise ValueError(f"the pipeline's vae must be one of {list(AUTOENCODERS)}, got {name!r}")
        dtype = self.dtype
        if dtype == torch.float16:
            config = read_json(self.find([f"{CONFIG_NAME}"], "vae") / CONFIG_NAME)
            # Its activations leave the range of float16.
            dtype = torch.float32 if config.get("force_upcast", name == "AutoencoderKL") else dtype
        return self.model(AUTOENCODERS[name], "vae", dtype)

    def text_encoder(self, part: str, name: Any, wanted: str) -> Any:
        if name != wanted:
            raise ValueError(f"the pipeline's {part} must be a {wanted}, got {name!r}")
        folder = self.find(_ENCODER_PATTERNS, part)
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
        model_class = getattr(_transformers(), name)
        # "auto" is as stored, as it is for the other models.
        dtype = "auto" if self.dtype is None else self.dtype
        return model_class.from_pretrained(folder, dtype=dtype, use_safetensors=True).to(self.device).eval()

    def tokenizer(self, part: str, name: Any) -> Any:
        if name not in TOKENIZERS:
            raise ValueError(f"the pipeline's {part} must be one of {list(TOKENIZERS)}, got {name!r}")
        folder = self.find(_TOKENIZER_PATTERNS, part)
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
        return getattr(_transformers(), name).from_pretrained(folder)


def read(
    folder_or_id: str | os.PathLike[str],
    revision: str | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Stored:
    """The parts of a pipeline. Raises as :meth:`LatentDiffusionPipeline.from_pretrained` does."""
    source = _Source(folder_or_id, revision, dtype, device)
    folder = source.find([INDEX_NAME, SCHEDULER_NAME])
    index = read_json(folder / INDEX_NAME)
    family = get_family(index.get("_class_name"))
    names = {key: value[1] for key, value in index.items() if isinstance(value, list) and len(value) == 2}
    network_class, part = family.backbone.network_class, family.backbone.part
    if names.get(part) not in (network_class.__name__, *network_class.former_class_names):
        raise ValueError(f"the pipeline's {part} must be a {network_class.__name__}, got {names.get(part)!r}")
    network = source.model(network_class, part, dtype)
    if family_of(network) is not family:
        raise ValueError(f"a {family.name} has another U-Net than this one of a {family_of(network).name}")
    text_parts = {}
    for name, wanted in family.text_encoders.items():
        tokenizer = name.replace("text_encoder", "tokenizer")
        if names.get(name) is not None:
            text_parts[name] = source.text_encoder(name, names[name], wanted)
        if names.get(tokenizer) is not None:
            text_parts[tokenizer] = source.tokenizer(tokenizer, names[tokenizer])
    return Stored(
        family,
        vae=source.vae(names.get("vae")),
        network=network,
        text_parts=text_parts,
        scheduler=read_json(folder / SCHEDULER_NAME),
        settings={key: value for key, value in index.items() if key not in names and not key.startswith("_")},
    )


def write(folder: Path, stored: Stored) -> None:
    """The parts, and the index last: a folder without one opens nowhere."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX_NAME).unlink(missing_ok=True)
    family, part = stored.family, stored.family.backbone.part
    stored.vae.save_pretrained(folder / "vae")
    stored.network.save_pretrained(folder / part)
    for name, text_part in stored.text_parts.items():
        _save_text_part(text_part, folder / name)
    (folder / SCHEDULER_NAME).parent.mkdir(exist_ok=True)
    _write_json(folder / SCHEDULER_NAME, stored.scheduler)
    entries: dict[str, list[str | None]] = {name: [None, None] for name in family.image_parts}
    for name in family.text_encoders:
        for entry in (name, name.replace("text_encoder", "tokenizer")):
            text_part = stored.text_parts.get(entry)
            entries[entry] = (
                [None, None] if text_part is None else ["transformers", class_of_part(family, entry, text_part)]
            )
    entries |= {"vae": ["diffusers", type(stored.vae).__name__], part: ["diffusers", type(stored.network).__name__]}
    entries |= {"scheduler": ["diffusers", stored.scheduler["_class_name"]]}
    _write_json(folder / INDEX_NAME, {"_class_name": family.name, **stored.settings, **entries})


def _save_text_part(part: Any, folder: Path) -> None:
    """As transformers writes it, but each file in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        part.save_pretrained(temporary)
        for path in sorted(Path(temporary).iterdir()):
            os.replace(path, folder / path.name)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    atomic_write(path, (json.dumps(values, indent=2) + "\n").encode())


def _transformers() -> ModuleType:
    try:
        import transformers  # optional: only text encoders and tokenizers need it
    except ImportError as error:
        raise ImportError(
            "text encoders and tokenizers need transformers: pip install 'fastdiff[pipelines]'"
        ) from error
    return transformers
