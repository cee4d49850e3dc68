"""What every model's from_pretrained does, shown by a small U-Net."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import save_file

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


def in_shards(model: UNet2DModel, folder: Path) -> None:
    """As diffusers writes them."""
    state, weight_map = model.state_dict(), {}
    for number, name in enumerate(state):
        weight_map[name] = f"diffusion_pytorch_model-{number % 2 + 1:05}-of-00002.safetensors"
    for file in set(weight_map.values()):
        tensors = {name: state[name].contiguous() for name in state if weight_map[name] == file}
        save_file(tensors, folder / file)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_count_more_than_a_single_file_and_give_way_to_a_new_one(model, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    other = UNet2DModel(**SMALL)
    in_shards(other, tmp_path)
    assert_same(UNet2DModel.from_pretrained(tmp_path), other)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", WEIGHTS]
    assert_same(UNet2DModel.from_pretrained(tmp_path), model)


def test_failed_save_leaves_the_model_that_was_there(model, tmp_path, monkeypatch) -> None:
    model.save_pretrained(tmp_path)

    def fail(*_) -> None:
        raise safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="cannot write weights: No space left on device"):
        UNet2DModel(**SMALL | {"layers_per_block": 2}).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", WEIGHTS]
    assert_same(UNet2DModel.from_pretrained(tmp_path), model)


def test_folder_with_a_variant_alone(model, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / WEIGHTS.replace(".", ".fp16."))
    with pytest.raises(FileNotFoundError, match=r"no diffusion_pytorch_model.safetensors in .*, only .*\.fp16\."):
        UNet2DModel.from_pretrained(tmp_path)


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
    ((name, revision, patterns),) = requests
    assert (name, revision) == ("someone/something", "fp16")
    shard = WEIGHTS.replace(".", "-00001-of-00002.")
    variants = [WEIGHTS.replace(".", infix) for infix in (".fp16.", ".fp16-00001-of-00002.", ".non_ema.")]
    files = ["config.json", WEIGHTS, f"{WEIGHTS}.index.json", shard, *variants]
    wanted = [file for file in files if any(fnmatch.fnmatch(f"unet/{file}", pattern) for pattern in patterns)]
    assert wanted == files[:4]


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
