"""Draw the same seeds with 1,000, 20 and 4 calls of the shipped network: step_dial.png beside this file.

python docs/figures/plot_step_dial.py

The last row needs a distilled network, which examples/distil_icons.py makes first if there is none in
runs/icons-consistency: some minutes, and the package fugue-icons.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastdiff.cli.demo import ICONS_CREDIT
from fastdiff.data import ICONS
from fastdiff.models import UNet2DModel
from fastdiff.sampling import SamplingSettings, sample
from fastdiff.training.data import to_uint8

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

import distil_icons  # noqa: E402

PLOT = ROOT / "docs" / "figures" / "step_dial.png"
DISTILLED = ROOT / "runs" / "icons-consistency"
SEEDS = range(16)
ENLARGED, GAP, MARGIN, TEXT_HEIGHT = 4, 6, 24, 30
PAPER, FRAME, INK, GREY = "#f4f3ef", "#dedbd2", "#1d1d1f", "#6e6c66"


def main() -> None:
    if not DISTILLED.is_dir():
        distil_icons.main(DISTILLED)
    few = distil_icons.SETTINGS.arguments()
    rows = [
        ("DDPM, 1,000 steps", "ancestral: noise at every step", draw(ICONS, sampler="ddpm", steps=1000)),
        ("DPM++ 2M, 20 steps", "deterministic", draw(ICONS, sampler="dpmpp_2m", steps=20)),
        (
            "Consistency, 4 steps",
            "the same network after some minutes of consistency distillation",
            draw(DISTILLED, **few),
        ),
        (
            "Consistency, 4 steps, not distilled",
            "the shipped network, for comparison: not what this sampler is for",
            draw(ICONS, **few),
        ),
    ]
    picture(rows).save(PLOT, optimize=True)


def draw(folder: Path, **settings) -> Tensor:
    """(16, 3, 16, 16) images of SEEDS in -1 ... 1."""
    network = UNet2DModel.from_pretrained(folder, dtype=torch.float32)
    arguments = SamplingSettings.load(ICONS).arguments(**settings, seeds=SEEDS)
    return sample(network, (len(SEEDS), 3, 16, 16), **arguments, progress=True)


def picture(rows: Sequence[tuple[str, str, Tensor]]) -> Image.Image:
    """Each row of images under its name; what belongs to one seed stands in one column."""
    edge = 16 * ENLARGED
    row_height = TEXT_HEIGHT + edge + 2 * GAP
    width = 2 * MARGIN + len(SEEDS) * (edge + GAP) - GAP
    height = 2 * MARGIN + len(rows) * row_height + TEXT_HEIGHT // 2
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, (name, remark, images) in enumerate(rows):
        top = MARGIN + i * row_height
        pen.text((MARGIN, top), name, INK, ImageFont.load_default(17))
        after = MARGIN + ImageFont.load_default(17).getlength(name) + 12
        pen.text((after, top + 3), remark, GREY, ImageFont.load_default(14))
        for column, pixels in enumerate(to_uint8(images).permute(0, 2, 3, 1)):
            x, y = MARGIN + column * (edge + GAP), top + TEXT_HEIGHT
            sheet.paste(Image.fromarray(pixels.numpy()).resize((edge, edge), Image.Resampling.NEAREST), (x, y))
            pen.rectangle((x - 1, y - 1, x + edge, y + edge), outline=FRAME)
    pen.text((MARGIN, height - MARGIN - 8), ICONS_CREDIT, GREY, ImageFont.load_default(12))
    return sheet


if __name__ == "__main__":
    main()
