from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdiff._files import atomic_write
from fastdiff.diffusion import FlowMatching, Process, get_prediction, process_from_dict, process_to_dict
from fastdiff.sampling.samplers import get_sampler

SETTINGS_NAME = "pipeline.json"


@dataclass(frozen=True)
class SamplingSettings:
    """How to sample from a checkpoint: what its network was trained on and returns, and a good sampler for it.

    Kept as pipeline.json beside the network's own two files:

    >>> model = UNet2DModel.from_pretrained(folder, dtype=torch.float32)
    >>> settings = SamplingSettings.load(folder)
    >>> images = sample(model, (4, 3, 16, 16), **settings.arguments(steps=8))
    """

    process: Process = field(default_factory=FlowMatching)
    prediction: str = "flow"
    sampler: str = "flow_euler"
    steps: int = 32
    schedule: str | None = None
    sampler_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        get_prediction(self.prediction)
        get_sampler(self.sampler)

    def arguments(self, **overrides: Any) -> dict[str, Any]:
        """Keyword arguments for :func:`sample`; `overrides` replace single ones."""
        return {**vars(self), **overrides}

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> SamplingSettings:
        """The settings in `folder`. FileNotFoundError if there are none, ValueError if they are damaged."""
        path = Path(folder) / SETTINGS_NAME
        if not path.is_file():
            raise FileNotFoundError(f"there is no {SETTINGS_NAME} in {path.parent}")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**values, "process": process_from_dict(values["process"])})
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write pipeline.json to `folder`, which must exist."""
        values = {**vars(self), "process": process_to_dict(self.process)}
        atomic_write(Path(folder) / SETTINGS_NAME, (json.dumps(values, indent=2) + "\n").encode())
