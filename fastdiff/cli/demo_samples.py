"""What `fastdiff demo` draws: the grid and the dial, each part timed."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from tqdm.auto import tqdm

import fastdiff
from fastdiff.cli.checkpoint import Checkpoint, require_finite
from fastdiff.cli.demo_timing import ROUNDS, Timing, compare, timed
from fastdiff.sampling import sample
from fastdiff.training.data import to_uint8

DIAL = (4, 8, 16, 32)


@dataclass
class Samples:
    grid: Tensor
    """(N, C, H, W)"""
    dial: dict[int, Tensor] = field(default_factory=dict)
    """number of steps -> (M, C, H, W)"""
    timings: dict[str, Timing] = field(default_factory=dict)
    """what was drawn -> how long it took"""
    largest_difference: int = 0
    """between a pixel with the kernels and in pure PyTorch, of 255 levels"""


def draw_samples(checkpoint: Checkpoint, seeds: range, steps: int, dial_seeds: range, compare_sides: bool) -> Samples:
    """Draw the grid (`seeds`, `steps`) and the dial (`dial_seeds` at each of DIAL), one progress bar over all.

    The dial is what is compared; the grid is the same work on more images.
    """
    warm_up_sides, dial_runs = (2, 2 * ROUNDS) if compare_sides else (1, 1)
    total = len(seeds) * (1 + steps) + len(dial_seeds) * (warm_up_sides + dial_runs * sum(DIAL))
    # None: no bar where stderr is not a terminal.
    with tqdm(total=total, desc="drawing", unit="image step", disable=None, leave=False) as bar:
        painter = _Painter(checkpoint, bar)
        painter.warm_up(seeds, both_sides=False)
        grid, seconds = timed(lambda: painter.draw(seeds, steps), checkpoint.device)
        samples = Samples(grid)
        samples.timings[f"{len(seeds)} images, {steps} steps"] = Timing(seconds, None)
        painter.warm_up(dial_seeds, both_sides=compare_sides)
        for dial_steps in DIAL:
            name = f"{len(dial_seeds)} images, {dial_steps} steps, dial"
            _add_to_dial(samples, painter, dial_seeds, dial_steps, name, compare_sides)
    for images in (samples.grid, *samples.dial.values()):
        require_finite(images, checkpoint)
    return samples


def _add_to_dial(samples: Samples, painter: _Painter, seeds: range, steps: int, name: str, compare_sides: bool) -> None:
    if not compare_sides:
        samples.dial[steps], seconds = timed(lambda: painter.draw(seeds, steps), painter.checkpoint.device)
        samples.timings[name] = Timing(seconds, None)
        return
    images, reference, timing = compare(lambda: painter.draw(seeds, steps), painter.checkpoint.device)
    samples.dial[steps], samples.timings[name] = images, timing
    difference = (to_uint8(images).int() - to_uint8(reference).int()).abs().max().item()
    samples.largest_difference = max(samples.largest_difference, int(difference))


class _Painter:
    """Samples with one checkpoint and moves the progress bar with every call of the network."""

    def __init__(self, checkpoint: Checkpoint, bar: tqdm) -> None:
        self.checkpoint = checkpoint
        self._bar = bar

    def draw(self, seeds: range, steps: int) -> Tensor:
        """(len(seeds), C, H, W) in -1 ... 1."""
        arguments = self.checkpoint.settings.arguments(steps=steps, seeds=seeds, device=self.checkpoint.device)
        return sample(self._denoise, (len(seeds), *self.checkpoint.image_shape), **arguments)

    def warm_up(self, seeds: range, *, both_sides: bool) -> None:
        """One step, for what the first call of a shape pays: allocations, oneDNN's or cuDNN's choices."""
        require_finite(self.draw(seeds, 1), self.checkpoint)
        if both_sides:
            with fastdiff.use_reference():
                self.draw(seeds, 1)

    def _denoise(self, x: Tensor, timestep: Tensor) -> Tensor:
        prediction = self.checkpoint.model(x, timestep).sample
        self._bar.update(x.shape[0])
        return prediction
