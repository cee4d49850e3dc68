"""Training images as one uint8 tensor (N, C, H, W) in memory."""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

ICON_SIZE = 16
DIGIT_SIZE = 8


def load_images(data: str, size: int) -> Tensor:
    """The images that `data` names, at `size` x `size`.

    Args:
        data: "icons", "digits", or a folder.

    Raises:
        ImportError: the package that holds the images is not installed; the message has the pip command.
        FileNotFoundError: the folder is missing or has no images.
        ValueError: a size that the data does not have, or a damaged image.
    """
    if data == "icons":
        _require_size(data, size, ICON_SIZE)
        return load_icons()
    if data == "digits":
        _require_size(data, size, DIGIT_SIZE)
        return load_digits()
    return load_folder(Path(data), size)


def load_icons() -> Tensor:
    """The 3,570 Fugue icons by Yusuke Kamiyamane (CC BY 3.0) on white, (3570, 3, 16, 16), in the order of their names.

    From the package fugue-icons: one sheet of images and the place of each name in it.
    """
    if importlib.util.find_spec("fugue_icons") is None:
        raise ImportError(
            "data 'icons' needs the package fugue-icons: pip install --no-deps fugue-icons==3.5.6 "
            "(its declared dependency no longer exists)"
        )
    static = importlib.resources.files("fugue_icons") / "static"
    places = json.loads((static / "fugue-icons.json").read_text(encoding="utf-8"))
    with (static / "fugue-icons.png").open("rb") as file:
        sheet = _on_white(Image.open(file))
    icons = [sheet.crop((x, y, x + ICON_SIZE, y + ICON_SIZE)) for _, (x, y) in sorted(places.items())]
    return torch.stack([_to_tensor(icon) for icon in icons])


def load_digits() -> Tensor:
    """scikit-learn's 1,797 handwritten digits, (1797, 1, 8, 8)."""
    if importlib.util.find_spec("sklearn") is None:
        raise ImportError("data 'digits' needs scikit-learn: pip install scikit-learn")
    from sklearn.datasets import load_digits as sklearn_digits

    images = sklearn_digits().images  # (1797, 8, 8), whole numbers from 0 to 16
    return torch.from_numpy((images * (255 / 16)).round().astype(np.uint8))[:, None]


def load_folder(folder: Path, size: int) -> Tensor:
    """Every image in `folder` and below, (N, 3, size, size): on white, its central square, resized."""
    if not folder.is_dir():
        raise FileNotFoundError(f"data must be 'icons', 'digits' or a folder of images; there is no folder {folder}")
    known = Image.registered_extensions()
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in known)
    if not paths:
        raise FileNotFoundError(f"there are no images in {folder}")
    return torch.stack([_to_tensor(_square(path, size)) for path in paths])


def to_model_range(images: Tensor) -> Tensor:
    """uint8 in 0 ... 255 to float32 in -1 ... 1."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """The inverse of :func:`to_model_range`, for samples: values beyond the range are clipped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _square(path: Path, size: int) -> Image.Image:
    try:
        image = _on_white(Image.open(path))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"cannot read the image {path}: {error}") from error
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    box = (left, top, left + edge, top + edge)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box)


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _require_size(data: str, size: int, available: int) -> None:
    if size != available:
        raise ValueError(f"image_size must be {available} for data {data!r}, got {size}")
