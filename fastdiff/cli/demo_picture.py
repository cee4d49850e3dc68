"""The picture of `fastdiff demo`: a grid of new images, and beside it the step-count dial."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastdiff.training.data import to_uint8

CELL = 96  # edge of a small image in the picture, as near as a whole factor of enlargement comes
GAP = 8
MARGIN = 40
BETWEEN = 56  # from the grid to the dial
TITLE_SIZE, HEADING_SIZE, TEXT_SIZE = 30, 19, 14
TITLE_HEIGHT, HEADING_HEIGHT, FOOTER_HEIGHT = 84, 64, 28

PAPER, FRAME, INK, GREY = "#f4f3ef", "#dedbd2", "#1d1d1f", "#6e6c66"


@dataclass(frozen=True)
class Captions:
    title: str
    subtitle: str
    grid_label: str
    footer: str


def grid_columns(images: int) -> int:
    """As near to a square as `images` allow."""
    return math.ceil(math.sqrt(images))


def grid_rows(images: int) -> int:
    return math.ceil(images / grid_columns(images))


def draw_picture(grid: Tensor, dial: dict[int, Tensor], captions: Captions) -> bytes:
    """The picture as the bytes of a PNG file.

    Args:
        grid: (N, C, H, W) in -1 ... 1, C of 1 or 3.
        dial: number of steps -> (M, C, H, W), sample i from the same noise everywhere.
    """
    images, columns = _enlarged(grid), grid_columns(len(grid))
    dial_images = {steps: _enlarged(samples) for steps, samples in dial.items()}
    width, height = images[0].size
    rows = max(grid_rows(len(images)), max(map(len, dial_images.values())))

    left, top = MARGIN, MARGIN + TITLE_HEIGHT
    dial_left = left + columns * (width + GAP) - GAP + BETWEEN
    content_right = dial_left + len(dial) * (width + GAP) - GAP
    content_bottom = top + HEADING_HEIGHT + rows * (height + GAP) - GAP
    text_width = max(_text_width(captions.subtitle, TEXT_SIZE), _text_width(captions.footer, TEXT_SIZE))
    right = max(content_right, math.ceil(left + text_width), left + math.ceil(_text_width(captions.title, TITLE_SIZE)))
    picture = Image.new("RGB", (right + MARGIN, content_bottom + FOOTER_HEIGHT + MARGIN), PAPER)

    pen = ImageDraw.Draw(picture)
    _write(pen, (left, MARGIN - 6), captions.title, TITLE_SIZE, INK)
    _write(pen, (left, MARGIN + 38), captions.subtitle, TEXT_SIZE, GREY)
    _write(pen, (left, top), "The grid", HEADING_SIZE, INK)
    _write(pen, (dial_left, top), "The step-count dial: the same first seeds", HEADING_SIZE, INK)
    _write(pen, (left, content_bottom + 18), captions.footer, TEXT_SIZE, GREY)

    image_top = top + HEADING_HEIGHT
    _write(pen, (left, image_top - 12), captions.grid_label, TEXT_SIZE, GREY, anchor="ls")
    for i, image in enumerate(images):
        _place(picture, image, left + i % columns * (width + GAP), image_top + i // columns * (height + GAP))
    for column, (steps, samples) in enumerate(dial_images.items()):
        x = dial_left + column * (width + GAP)
        _write(pen, (x + width / 2, image_top - 12), f"{steps} steps", TEXT_SIZE, GREY, anchor="ms")
        for row, image in enumerate(samples):
            _place(picture, image, x, image_top + row * (height + GAP))
    return _png(picture)


def _enlarged(samples: Tensor) -> list[Image.Image]:
    """(N, C, H, W) as images, by a whole factor and with nearest neighbour: every pixel stays a visible square."""
    factor = max(1, CELL // max(samples.shape[-2:]))
    pixels = to_uint8(samples.cpu()).expand(-1, 3, -1, -1)
    pixels = pixels.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    return [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in torch.unbind(pixels)]


def _place(picture: Image.Image, image: Image.Image, x: int, y: int) -> None:
    picture.paste(image, (x, y))
    ImageDraw.Draw(picture).rectangle((x - 1, y - 1, x + image.width, y + image.height), outline=FRAME)


def _write(pen: ImageDraw.ImageDraw, place, text: str, size: int, colour: str, anchor: str = "la") -> None:
    pen.text(place, text, fill=colour, font=ImageFont.load_default(size), anchor=anchor)


def _text_width(text: str, size: int) -> float:
    return ImageFont.load_default(size).getlength(text)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
