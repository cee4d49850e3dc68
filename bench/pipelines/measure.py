"""One pipeline on both sides: that the pictures agree, what each part takes, and the memory of a call."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.device import Device
from bench.models import DTYPES, MODELS
from bench.models.measure import ALLOWED_ERRORS, peaks, relative_error, twins
from bench.pipelines import AUTOENCODER, PIPELINES, BenchPipeline
from bench.timing import Budget, interleave
from bench.worker import WrongResult
from fastdiff.pipelines import LatentDiffusionPipeline

PARTS = ("network", "decoder", "rest")
SCHEDULER = "DPMSolverMultistepScheduler"
_NOISE_LEVELS = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
}  # of Stable Diffusion


@dataclass(frozen=True)
class PipelineCase:
    pipeline: str
    dtype: str


class Contender:
    """A way to an image, and the time of its parts in each run."""

    def __init__(self, draw: Callable[[], Tensor], network: nn.Module, decoder: nn.Module, device: Device) -> None:
        self.draw = draw
        self.parts: dict[str, list[float]] = {part: [] for part in PARTS}
        self._device = device
        self._marks: list[tuple[str, Any]] = []
        for part, module in (("network", network), ("decoder", decoder)):
            module.register_forward_pre_hook(lambda *_, part=part: self._mark(part))
            module.register_forward_hook(lambda *_: self._mark("rest"))

    def _mark(self, following: str) -> None:
        self._marks.append((following, self._device.mark()))

    def run(self) -> float:
        """Draw, and keep what the parts took. Seconds of all."""
        self._marks = []
        self._mark("rest")
        self.draw()
        self._mark("rest")
        seconds = dict.fromkeys(PARTS, 0.0)
        lasted = self._device.seconds_between([mark for _, mark in self._marks])
        for (part, _), between in zip(self._marks, lasted, strict=False):
            seconds[part] += between
        for part, times in self.parts.items():
            times.append(seconds[part])
        return sum(seconds.values())

    def medians(self) -> dict[str, float]:
        """Milliseconds of each part."""
        return {part: 1e3 * statistics.median(times) for part, times in self.parts.items()}


@torch.no_grad()
def measure_pipeline(case: PipelineCase, device: Device, *, steps: int, budget: Budget) -> dict[str, Any]:
    """The record of one case, ready for JSON. Raises WrongResult, ImportError."""
    contenders = _contenders(PIPELINES[case.pipeline], DTYPES[case.dtype], device, steps)
    pictures = {name: contender.draw() for name, contender in contenders.items()}
    error = relative_error(pictures["fastdiff"], pictures["diffusers"])
    if not error <= ALLOWED_ERRORS[case.dtype]:  # NaN is refused too
        raise WrongResult(f"{case.pipeline} {case.dtype}: the picture differs from diffusers' by {error:.2g} of it")
    memory = peaks({name: contender.draw for name, contender in contenders.items()}, device)
    timings = interleave(contenders, Contender.run, budget, prepare=lambda contender: None)
    return {
        **asdict(case),
        "steps": steps,
        "error": error,
        "peak_bytes": memory,
        "contenders": {name: asdict(timing) for name, timing in timings.items()},
        "parts_ms": {name: contender.medians() for name, contender in contenders.items()},
    }


def _contenders(pipeline: BenchPipeline, dtype: torch.dtype, device: Device, steps: int) -> dict[str, Contender]:
    import diffusers

    our_network, network = twins(MODELS[pipeline.network], dtype, device.name)
    our_vae, vae = twins(MODELS[AUTOENCODER], dtype, device.name)
    config = {"_class_name": SCHEDULER, **_NOISE_LEVELS}
    ours = LatentDiffusionPipeline(vae=our_vae, backbone=our_network, scheduler_config=config)
    scheduler = getattr(diffusers, SCHEDULER)(**_NOISE_LEVELS)
    parts = {"vae": vae, "scheduler": scheduler, ours.backbone.part: network, **pipeline.absent}
    theirs = getattr(diffusers, pipeline.class_name)(**parts)
    theirs.set_progress_bar_config(disable=True)
    asked = {"guidance_scale": pipeline.guidance_scale, **pipeline.condition(network.device, dtype)}

    def seed() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def their_picture() -> Tensor:
        call = {"num_inference_steps": steps, "generator": seed(), "output_type": "np"}
        return torch.from_numpy(theirs(**asked, **call).images).permute(0, 3, 1, 2)

    # What diffusers draws: in the network's dtype.
    latent = 1, ours.backbone.latent_channels, *ours.backbone.default_size
    latents = torch.randn(latent, generator=seed(), dtype=dtype).float()

    def our_picture() -> Tensor:
        return ours(**asked, steps=steps, latents=latents, output="tensor", progress=False).images.cpu()

    return {
        "fastdiff": Contender(our_picture, our_network, our_vae.decoder, device),
        "diffusers": Contender(their_picture, network, vae.decoder, device),
    }
