"""What every model's from_pretrained does, shown by a small U-Net."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from fastdiff.models import UNet2DModel, hub

SMALL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "layers_per_block": 1,
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def model() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(**SMALL).eval()


def assert_same(loaded: UNet2DModel, model: UNet2DModel) -> None:
    theirs = model.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in loaded.state_dict().items())
    assert not loaded.training


def test_subfolder(model, tmp_path) -> None:
    model.save_pretrained(tmp_path / "unet")
    assert_same(UNet2DModel.from_pretrained(tmp_path, subfolder="unet"), model)


def test_dtype_and_device(model, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    loaded = UNet2DModel.from_pretrained(tmp_path, dtype=torch.bfloat16, device="cpu")
    assert {weight.dtype for weight in loaded.state_dict().values()} == {torch.bfloat16}
    assert_same(loaded, model.bfloat16())
    assert {weight.device.type for weight in UNet2DModel.from_pretrained(tmp_path, device="meta").parameters()} == {
        "meta"
    }


def test_weights_changed_in_place_leave_the_file_as_it_is(model, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    before = hashlib.sha256((tmp_path / WEIGHTS).read_bytes()).digest()
    loaded = UNet2DModel.from_pretrained(tmp_path)
    with torch.no_grad():
        for weight in loaded.parameters():
            weight.zero_()
    assert hashlib.sha256((tmp_path / WEIGHTS).read_bytes()).digest() == before
    loaded.save_pretrained(tmp_path)
    assert all(not weight.any() for weight in UNet2DModel.from_pretrained(tmp_path).parameters())


def test_pickle_is_refused(model, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    torch.save(model.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="is a pickle, which can run code"):
        UNet2DModel.from_pretrained(tmp_path)


@pytest.fixture
def requests(model, tmp_path, monkeypatch) -> list[tuple]:
    """What the hub is asked for; it has the model as "someone/something", in the subfolder "unet"."""
    model.save_pretrained(tmp_path / "snapshot" / "unet")
    monkeypatch.chdir(tmp_path)
    asked = []

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        if name == "someone/offline":
            raise LocalEntryNotFoundError("no connection")
        if name != "someone/something":
            # Its initialiser wants the response of whichever HTTP client the hub's library uses.
            raise RepositoryNotFoundError.__new__(RepositoryNotFoundError, "404")
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    return asked


def test_model_on_the_hub(model, requests) -> None:
    loaded = UNet2DModel.from_pretrained("someone/something", subfolder="unet", revision="fp16")
    assert_same(loaded, model)
    patterns = ["unet/config.json", "unet/diffusion_pytorch_model*.safetensors*"]
    assert requests == [("someone/something", "fp16", patterns)]


def test_folder_comes_before_the_hub(model, requests) -> None:
    model.save_pretrained(Path("someone") / "something")
    assert_same(UNet2DModel.from_pretrained("someone/something"), model)
    assert requests == []
    with pytest.raises(ValueError, match="revision is for models on the hub"):
        UNet2DModel.from_pretrained("someone/something", revision="main")


@pytest.mark.parametrize("name", ["someone/nothing", "someone/offline"])
def test_not_on_the_hub(requests, name) -> None:
    with pytest.raises(FileNotFoundError, match=f"no folder {name}, and the hub has no such model to give"):
        UNet2DModel.from_pretrained(name)


def test_path_is_no_name_on_the_hub(requests) -> None:
    for path in ("runs/of/mine", "nothing", Path("someone") / "something"):
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            UNet2DModel.from_pretrained(path)
    assert requests == []
