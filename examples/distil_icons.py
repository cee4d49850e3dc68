"""Distil the shipped network into one that draws in four steps: consistency distillation (arXiv:2303.01469).

    python examples/distil_icons.py

The student learns to say from one noise level where the teacher's flow ends, by agreeing with itself one level further
down that flow. It starts as a copy of the teacher: what a flow network says of x0, x_t - t * v, is x_t itself at t = 0,
the boundary condition of a consistency function. The folder that this leaves is drawn with by

    fastdiff demo --checkpoint runs/icons-consistency --output distilled.png
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fastdiff.data import ICONS
from fastdiff.diffusion import FlowMatching, consistency_loss
from fastdiff.diffusion.consistency import noise_levels
from fastdiff.models import UNet2DModel
from fastdiff.sampling import SamplingSettings
from fastdiff.training.data import load_icons, to_model_range

STEPS, BATCH_SIZE, LEARNING_RATE, WARM_UP = 1000, 16, 4e-4, 50
LEVELS = noise_levels(10, sigma_min=0.02, sigma_max=80.0)
TARGET_DECAY = 0.95  # of the moving average that is followed, and kept
SETTINGS = SamplingSettings(
    sampler="consistency",
    steps=4,
    schedule="karras",
    sampler_options={"sigma_max": 80.0, "sigma_min": 0.8},
)


def consistency_function(network: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """(x0 + sigma * noise, sigma (N,)) -> x0, from a network that knows the straight path and returns its velocity."""
    process = FlowMatching()

    def function(x: Tensor, sigma: Tensor) -> Tensor:
        t = process.time_at(sigma)
        alpha, per_image = process.alpha(t).view(-1, 1, 1, 1), t.view(-1, 1, 1, 1)
        x_t = alpha * x
        return x_t - per_image * network(x_t, process.timestep(t)).sample

    return function


def distil(images: Tensor, steps: int, batch_size: int) -> UNet2DModel:
    """The student after `steps` steps on images (N, 3, 16, 16) in -1 ... 1."""
    teacher = UNet2DModel.from_pretrained(ICONS, dtype=torch.float32).requires_grad_(False)
    student, target = copy.deepcopy(teacher).requires_grad_(True), copy.deepcopy(teacher)
    f, followed, denoiser = map(consistency_function, (student, target, teacher))
    optimizer = torch.optim.AdamW(student.parameters(), weight_decay=0.0)
    progress = tqdm(range(steps), desc="distilling")
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        x0 = images[torch.randint(len(images), (batch_size,))]
        pair = torch.randint(len(LEVELS) - 1, (batch_size,))
        low, high = LEVELS[pair], LEVELS[pair + 1]
        loss = consistency_loss(f, followed, x0, torch.randn_like(x0), low, high, teacher=denoiser)
        loss = (loss * (high - low)).mean()  # all levels alike, as for distillation in the paper
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(target.parameters(), student.parameters(), strict=True):
                average.lerp_(parameter, 1 - TARGET_DECAY)
        progress.set_postfix(loss=f"{loss.item():.3f}")
    return target


def learning_rate(step: int, steps: int) -> float:
    return LEARNING_RATE * min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))


def main(output: Path, steps: int = STEPS, batch_size: int = BATCH_SIZE) -> None:
    torch.manual_seed(0)
    student = distil(to_model_range(load_icons()), steps, batch_size)
    student.save_pretrained(output, dtype=torch.float16)
    SETTINGS.save(output)
    print(f"wrote {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Distil the shipped network into one that draws in four steps.")
    parser.add_argument("--output", type=Path, default=Path("runs/icons-consistency"), help="default: %(default)s")
    main(parser.parse_args().output)
