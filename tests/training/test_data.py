from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.training import data
from fastdiff.training.counters import batch_indices, derived_seed
from fastdiff.training.data import load_images, to_model_range, to_uint8


@pytest.mark.skipif(importlib.util.find_spec("fugue_icons") is None, reason="needs fugue-icons")
def test_icons():
    icons = load_images("icons", 16)
    assert icons.shape == (3570, 3, 16, 16) and icons.dtype == torch.uint8
    # Transparent corners are white, and the icons are drawings, not noise: most differ from each other.
    assert (icons[:, :, 0, 0] == 255).all(dim=1).float().mean() > 0.8
    assert len(torch.unique(icons.flatten(1), dim=0)) > 3400


def test_digits():
    pytest.importorskip("sklearn")
    digits = load_images("digits", 8)
    assert digits.shape == (1797, 1, 8, 8) and digits.dtype == torch.uint8
    assert digits.min() == 0 and digits.max() == 255


def test_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    stripes = np.zeros((10, 30, 3), dtype=np.uint8)
    stripes[:, 10:20] = (255, 0, 0)  # the central square is red
    Image.fromarray(stripes).save(tmp_path / "b.png")
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "sub" / "c.png")  # transparent: white
    Image.new("L", (5, 9), 128).save(tmp_path / "a.jpg")
    (tmp_path / "notes.txt").write_text("no image")
    images = load_images(str(tmp_path), 4)
    assert images.shape == (3, 3, 4, 4)
    assert (images[0].int() - 128).abs().max() <= 2
    assert images[1, :, 1, 1].tolist() == [255, 0, 0]
    assert (images[2] == 255).all()


def test_range():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert to_model_range(images).aminmax() == (-1.0, 1.0)
    assert torch.equal(to_uint8(to_model_range(images)), images)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_wrong_arguments(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="image_size must be 16 for data 'icons', got 32"):
        load_images("icons", 32)
    with pytest.raises(ValueError, match="image_size must be 8 for data 'digits', got 16"):
        load_images("digits", 16)
    with pytest.raises(FileNotFoundError, match="there is no folder .*nothing"):
        load_images(str(tmp_path / "nothing"), 16)
    with pytest.raises(FileNotFoundError, match="there are no images in"):
        load_images(str(tmp_path), 16)
    (tmp_path / "x.png").write_bytes(b"junk")
    with pytest.raises(ValueError, match="cannot read the image .*x.png"):
        load_images(str(tmp_path), 16)
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps fugue-icons==3.5.6"):
        load_images("icons", 16)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        load_images("digits", 8)


def test_every_image_is_seen_once_an_epoch():
    count, batch = 10, 4
    seen = torch.cat([batch_indices(5, step, batch, count) for step in range(10)])
    epochs = seen.reshape(4, count)
    assert all(sorted(epoch.tolist()) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4
    assert not torch.equal(batch_indices(6, 0, batch, count), batch_indices(5, 0, batch, count))
    assert batch_indices(0, 3, 25, count).bincount().min() >= 2  # a batch may be larger than the data


def test_derived_seeds_differ():
    seeds = {derived_seed(s, stream, c) for s in (0, 1, -1) for stream in ("noise", "order") for c in range(50)}
    assert len(seeds) == 300 and all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(0, "noise", 7) == derived_seed(0, "noise", 7)
