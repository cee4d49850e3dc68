from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

import fastdiff
from fastdiff._files import atomic_write
from fastdiff.cli.checkpoint import Checkpoint, load_checkpoint
from fastdiff.cli.demo_picture import Captions, draw_picture, grid_rows
from fastdiff.cli.demo_samples import Samples, draw_samples
from fastdiff.cli.demo_timing import ROUNDS
from fastdiff.cli.device import available_device, kernels_in_use, require_extension
from fastdiff.cli.errors import CommandError, as_command_error
from fastdiff.cli.values import integer
from fastdiff.data import ICONS

HELP = "draw new images with a checkpoint, and time the kernels against pure PyTorch"
LARGEST_DIAL = 8  # images in a column of the dial
ICONS_CREDIT = "Trained on the Fugue Icons by Yusuke Kamiyamane (CC BY 3.0)."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("demo.png"), metavar="FILE", help="default: %(default)s")
    parser.add_argument(
        "--checkpoint", type=Path, default=ICONS, metavar="DIR", help="from fastdiff train (default: the shipped icons)"
    )
    parser.add_argument("--images", type=integer(1, 400), default=36, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--steps", type=integer(1, 1000), metavar="N", help="of the grid (default: the checkpoint's own, icons: 32)"
    )
    parser.add_argument(
        "--seed", type=integer(0, 2**62), default=0, metavar="S", help="of the first image (default: %(default)s)"
    )
    parser.add_argument("--threads", type=integer(1, 1024), metavar="N", help="of the CPU (default: torch's own)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA where it runs")
    parser.add_argument(
        "--no-compare", dest="compare", action="store_false", help="draw only, without the runs in pure PyTorch"
    )


def run(arguments: argparse.Namespace) -> int:
    start = time.perf_counter()
    _require_writable(arguments.output)
    require_extension()
    device = available_device(arguments.device)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    tuned = fastdiff.tune_allocator()
    print(f"fastdiff   {fastdiff.__version__}, torch {torch.__version__}")
    print(f"kernels    {kernels_in_use(device)}")
    print(
        f"allocator  {'tuned, freed activations are kept for reuse' if tuned else 'as it is (only glibc can be tuned)'}"
    )

    load_start = time.perf_counter()
    checkpoint = load_checkpoint(arguments.checkpoint, device)
    load_seconds = time.perf_counter() - load_start
    print(f"checkpoint {arguments.checkpoint}, {checkpoint.parameters / 1e6:.1f} M parameters", flush=True)

    seeds = range(arguments.seed, arguments.seed + arguments.images)
    dial_seeds = seeds[: min(grid_rows(len(seeds)), LARGEST_DIAL)]
    steps = arguments.steps or checkpoint.settings.steps
    # ValueError: more steps than the checkpoint's process has.
    with as_command_error(ValueError, torch.OutOfMemoryError):
        samples = draw_samples(checkpoint, seeds, steps, dial_seeds, arguments.compare)
    print(_times(load_seconds, samples, arguments.compare), flush=True)

    png = draw_picture(samples.grid, samples.dial, _captions(checkpoint, seeds, steps))
    with as_command_error(OSError, doing=f"cannot write {arguments.output}"):
        atomic_write(arguments.output, png)
    print(f"\nwrote {arguments.output}, {time.perf_counter() - start:.1f} s in all")
    return 0


def _require_writable(output: Path) -> None:
    """A CommandError now rather than after the drawing."""
    if output.suffix.lower() != ".png":
        raise CommandError(f"--output must end in .png, got {str(output)!r}")
    if output.is_dir():
        raise CommandError(f"--output must be a file, {output} is a folder")
    if not output.parent.is_dir():
        raise CommandError(f"cannot write {output}: there is no folder {output.parent}")
    with as_command_error(OSError, doing=f"cannot write {output}"), tempfile.TemporaryFile(dir=output.parent):
        pass


def _times(load_seconds: float, samples: Samples, compared: bool) -> str:
    """The table of times, and how they were taken."""
    lines = [f"\n{'':<26}{'kernels':>10}" + (f"{'pure PyTorch':>15}{'ratio':>8}" if compared else "")]
    lines.append(f"{'load':<26}{load_seconds:>8.2f} s")
    for name, timing in samples.timings.items():
        line = f"{name:<26}{timing.seconds:>8.2f} s"
        if timing.reference_seconds is not None:
            line += f"{timing.reference_seconds:>13.2f} s{timing.ratio:>7.2f}x"
        lines.append(line)
    if compared:
        lines.append(
            "\nThe dial is timed both ways: the same network, seeds and threads, warmed up, interleaved, the faster of "
            f"{ROUNDS} runs.\nThe kernels replace norms, activations and attention; convolutions and linear layers are "
            "torch's on both sides.\n"
            f"The pictures of the two differ by at most {samples.largest_difference} of 255 levels."
        )
    return "\n".join(lines)


def _captions(checkpoint: Checkpoint, seeds: range, steps: int) -> Captions:
    shipped = checkpoint.folder == ICONS
    what = "icons" if shipped else "images"
    settings = checkpoint.settings
    _, height, width = checkpoint.image_shape
    return Captions(
        title=f"{len(seeds)} new {what}, drawn from noise",
        subtitle=f"fastdiff: U-Net of {checkpoint.parameters / 1e6:.1f} M parameters, {width} x {height} pixels, "
        f"sampler {settings.sampler}",
        grid_label=f"seeds {seeds[0]} to {seeds[-1]}, {steps} steps",
        footer=ICONS_CREDIT if shipped else f"Checkpoint {checkpoint.folder.resolve().name}",
    )
