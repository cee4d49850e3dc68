from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch

from fastdiff.diffusion import PREDICTIONS, PROCESSES, TIME_SAMPLERS, get_prediction

LR_SCHEDULES = ("constant", "cosine")
DTYPES = ("float32", "bfloat16", "float16")


def _field(default: Any, help: str, *, resumable: bool = False) -> Any:
    """A field with its one-line explanation, and whether a resumed run may change it."""
    return field(default=default, metadata={"help": help, "resumable": resumable})


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a training run. Equal configurations give bit-identical weights on one machine.

    Raises:
        ValueError: a value out of its range, with the field's name and what is allowed.
    """

    output: str = _field("runs/train", "folder for the checkpoint and the finished model", resumable=True)
    data: str = _field("icons", "'icons' (fugue-icons), 'digits' (scikit-learn) or a folder of images")
    image_size: int = _field(16, "height and width of the images; 16 for icons, 8 for digits")

    channels: tuple[int, ...] = _field((32, 64, 128), "channels of the U-Net at each resolution")
    layers: int = _field(1, "residual blocks at each resolution on the way down")
    attention_resolutions: tuple[int, ...] = _field((8, 4), "image sizes at which the U-Net has attention")
    head_dim: int = _field(32, "channels of one attention head")
    norm_groups: int = _field(8, "groups of the group norms")
    dropout: float = _field(0.0, "dropout in the residual blocks")

    process: str = _field("flow_matching", f"forward process: {', '.join(sorted(PROCESSES))}")
    prediction: str = _field("flow", f"what the network predicts: {', '.join(sorted(PREDICTIONS))}")
    time_distribution: str = _field("logit_normal", f"training times: {', '.join(sorted(TIME_SAMPLERS))}")

    steps: int = _field(6000, "training steps")
    batch_size: int = _field(32, "images in a step")
    learning_rate: float = _field(1e-3, "peak learning rate of AdamW")
    lr_schedule: str = _field("cosine", f"after the warm-up: {', '.join(LR_SCHEDULES)} (cosine ends at 0)")
    warmup_steps: int = _field(200, "steps of linear learning-rate warm-up")
    weight_decay: float = _field(0.01, "weight decay of AdamW")
    grad_clip: float = _field(1.0, "largest norm of the gradient")
    ema_decay: float = _field(0.999, "decay of the moving average of the weights")
    seed: int = _field(0, "seed of the weights, the order of the data, the times and the noise")

    checkpoint_every: int = _field(500, "steps between checkpoints", resumable=True)
    resume: bool = _field(False, "go on from the checkpoint in the output folder", resumable=True)
    export_dtype: str = _field("float16", f"dtype of the finished model: {', '.join(DTYPES)}", resumable=True)
    device: str = _field("cpu", "torch device to train on", resumable=True)

    def __post_init__(self) -> None:
        for name in ("channels", "attention_resolutions"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists
        for name, allowed in (
            ("process", sorted(PROCESSES)),
            ("prediction", sorted(PREDICTIONS)),
            ("time_distribution", sorted(TIME_SAMPLERS)),
            ("lr_schedule", LR_SCHEDULES),
            ("export_dtype", DTYPES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {list(allowed)}, got {getattr(self, name)!r}")
        for name in ("image_size", "layers", "head_dim", "norm_groups", "steps", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "grad_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("dropout", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed must fit 64 bits, got {self.seed}")
        if not self.channels:
            raise ValueError("channels must have at least one entry, got ()")
        multiple = 2 ** (len(self.channels) - 1)
        if self.image_size % multiple:
            raise ValueError(
                f"image_size must be a multiple of {multiple} for the {len(self.channels)} resolutions of channels, "
                f"got {self.image_size}"
            )

        self._check_that_sampling_can_start()

    def _check_that_sampling_can_start(self) -> None:
        """Before the training, not after: a sampler's first step needs x0 and eps from the prediction at pure noise."""
        process = PROCESSES[self.process]()
        first = torch.tensor(process.first_time, dtype=torch.float64)
        get_prediction(self.prediction).solve(process.alpha(first), process.sigma(first))

    def unet_config(self, image_channels: int) -> dict[str, Any]:
        """The configuration of the :class:`fastdiff.models.UNet2DModel` that is trained."""
        attention = [self.image_size // 2**level in self.attention_resolutions for level in range(len(self.channels))]
        return {
            "sample_size": self.image_size,
            "in_channels": image_channels,
            "out_channels": image_channels,
            "block_out_channels": self.channels,
            "layers_per_block": self.layers,
            "down_block_types": tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            "up_block_types": tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            "attention_head_dim": self.head_dim,
            "norm_num_groups": self.norm_groups,
            "dropout": self.dropout,
        }

    def fixed_fields(self) -> dict[str, Any]:
        """The fields that a resumed run must share with the run it goes on from."""
        return {
            entry.name: getattr(self, entry.name)
            for entry in dataclasses.fields(self)
            # With a constant learning rate a run has no planned end, so it may be made longer.
            if not entry.metadata["resumable"] and not (entry.name == "steps" and self.lr_schedule == "constant")
        }
