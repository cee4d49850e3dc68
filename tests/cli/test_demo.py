from __future__ import annotations

import errno
import json
import os
import pickle
import re
import resource
import subprocess

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import fastdiff
from fastdiff.cli import demo, demo_samples
from fastdiff.cli.demo_picture import CELL, GAP, HEADING_HEIGHT, MARGIN, TITLE_HEIGHT
from fastdiff.cli.demo_timing import Timing, compare

pytestmark = pytest.mark.skipif(not fastdiff.build_info()["extension"], reason="needs the compiled extension")
WEIGHTS = "diffusion_pytorch_model.safetensors"
QUICK = ("--images", 4, "--steps", 2, "--device", "cpu")


@pytest.fixture(autouse=True)
def short_dial(monkeypatch):
    monkeypatch.setattr(demo_samples, "DIAL", (1, 2, 3, 4))


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def cell(picture: np.ndarray, row: int, column: int, left: int = MARGIN) -> np.ndarray:
    top = MARGIN + TITLE_HEIGHT + HEADING_HEIGHT + row * (CELL + GAP)
    left += column * (CELL + GAP)
    return picture[top : top + CELL, left : left + CELL]


def test_picture(run, tmp_path):
    output = tmp_path / "demo.png"
    result = run("demo", *QUICK, "--output", output)
    assert result.code == 0, result.err
    picture = pixels(output)
    height = 2 * MARGIN + TITLE_HEIGHT + HEADING_HEIGHT + 2 * CELL + GAP + 28
    assert picture.shape[0] == height and picture.shape[1] >= 2 * MARGIN + 6 * CELL + 4 * GAP
    grid = [cell(picture, row, column) for row in range(2) for column in range(2)]
    for image in grid:
        assert image.std() > 10  # not constant
        squares = image.reshape(16, 6, 16, 6, 3)  # 16 x 16 pixels, each a square of 6 x 6
        assert (squares == squares[:, :1, :, :1]).all()
    assert len({image.tobytes() for image in grid}) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["demo.png"]


def test_dial_has_the_grid_s_seeds(run, tmp_path):
    run("demo", *QUICK, "--output", tmp_path / "demo.png")
    picture = pixels(tmp_path / "demo.png")
    dial_left = MARGIN + 2 * (CELL + GAP) - GAP + 56
    for seed in range(2):
        in_grid = cell(picture, 0, seed).astype(int)
        same_steps, other_steps = (cell(picture, seed, column, dial_left).astype(int) for column in (1, 3))
        # One level: batches of 4 and of 2 may round differently in torch's convolutions.
        assert np.abs(in_grid - same_steps).max() <= 1
        assert np.abs(in_grid - other_steps).max() > 10


def test_deterministic_for_a_seed(run, tmp_path):
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        assert run("demo", *QUICK, "--no-compare", "--seed", seed, "--output", tmp_path / f"{name}.png").code == 0
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c
    # Seed 8 is the second image of the one run and the first of the other.
    assert (
        np.abs(cell(pixels(tmp_path / "a.png"), 0, 1).astype(int) - cell(pixels(tmp_path / "c.png"), 0, 0)).max() <= 1
    )


def test_printed_report(run, tmp_path):
    out = run("demo", *QUICK, "--threads", 1, "--output", tmp_path / "demo.png").out
    assert f"torch {torch.__version__}" in out
    assert f"kernels    CPU, {fastdiff.build_info()['cpu_isa']}, 1 thread\n" in out
    assert "allocator  " in out
    assert re.search(r"^load +\d+\.\d\d s$", out, re.M)
    assert re.search(r"^4 images, 2 steps +\d+\.\d\d s$", out, re.M)
    for steps in (1, 2, 3, 4):
        row = re.search(rf"^2 images, {steps} steps, dial +(\d+\.\d\d) s +(\d+\.\d\d) s +(\d+\.\d\d)x$", out, re.M)
        assert row is not None, out
    difference = re.search(r"differ by at most (\d+) of 255", out)
    assert difference is not None and int(difference[1]) <= 2

    quiet = run("demo", *QUICK, "--no-compare", "--output", tmp_path / "demo.png").out
    assert "pure PyTorch" not in quiet and "dial" in quiet


def test_both_sides_are_run_and_the_ratio_can_be_below_one():
    assert Timing(2.0, 1.0).ratio == 0.5
    depths = []

    def work() -> torch.Tensor:
        depths.append(fastdiff._switch.reference_depth)
        return torch.tensor(float(depths[-1]))

    kernels, reference, timing = compare(work, torch.device("cpu"))
    assert depths == [0, 1, 1, 0]
    assert (kernels.item(), reference.item()) == (0, 1)
    assert timing.seconds > 0 and timing.reference_seconds is not None


def test_one_image_and_a_row_that_is_not_full(run, tmp_path):
    for images in (1, 3):
        arguments = ("--images", images, "--steps", 1, "--no-compare", "--device", "cpu")
        assert run("demo", *arguments, "--output", tmp_path / "demo.png").code == 0


def test_console_script(script, tmp_path):
    done = subprocess.run(
        [script, "demo", *map(str, QUICK), "--no-compare"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bar where there is no terminal
    assert pixels(tmp_path / "demo.png").std() > 10


# What is wrong with the output


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("missing/demo.png", "there is no folder"),
        ("demo.jpg", "--output must end in .png, got"),
        ("folder.png", "is a folder"),
        ("file/demo.png", "there is no folder"),
    ],
)
def test_wrong_output(run, tmp_path, output, words):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    assert words in run("demo", *QUICK, "--output", tmp_path / output).failed_in_one_line()


def test_unwritable_folder(run, tmp_path, monkeypatch):
    def denied(dir):
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr(demo.tempfile, "TemporaryFile", denied)  # root may write anywhere
    line = run("demo", *QUICK, "--output", tmp_path / "demo.png").failed_in_one_line()
    assert "cannot write" in line and "Permission denied" in line


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_write_permission(run, tmp_path):
    tmp_path.chmod(0o500)
    assert "Permission denied" in run("demo", *QUICK, "--output", tmp_path / "demo.png").failed_in_one_line()


def test_full_disk_leaves_the_old_picture(script, tmp_path):
    output = tmp_path / "demo.png"
    output.write_bytes(b"the old picture")

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    done = subprocess.run(
        [script, "demo", *map(str, QUICK), "--no-compare", "--output", str(output)],
        capture_output=True,
        text=True,
        preexec_fn=limit_file_size,
    )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "cannot write" in done.stderr and "File too large" in done.stderr
    assert output.read_bytes() == b"the old picture" and len(list(tmp_path.iterdir())) == 1


# What is wrong with the checkpoint


def edit_json(path, **changes) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **changes}))


def edit_weights(path, change) -> None:
    state = safetensors.torch.load_file(path)
    change(state)
    safetensors.torch.save_file(state, path)


DAMAGES = {
    "no folder": (lambda f: f.rename(f.with_name("elsewhere")), "there is no pipeline.json in"),
    "no config": (lambda f: (f / "config.json").unlink(), "there is no config.json in"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"there is no {WEIGHTS} in"),
    "no settings": (lambda f: (f / "pipeline.json").unlink(), "there is no pipeline.json in"),
    "truncated": (lambda f: os.truncate(f / WEIGHTS, 100_000), "is damaged or not a safetensors file"),
    "empty": (lambda f: os.truncate(f / WEIGHTS, 0), "is damaged or not a safetensors file"),
    "pickle": (lambda f: (f / WEIGHTS).write_bytes(pickle.dumps({"a": [0] * 100})), "not a safetensors file"),
    "torch.save": (lambda f: torch.save({"a": torch.zeros(9)}, f / WEIGHTS), "not a safetensors file"),
    "missing key": (lambda f: edit_weights(f / WEIGHTS, lambda s: s.pop("conv_in.weight")), "conv_in.weight"),
    "all keys missing": (lambda f: edit_weights(f / WEIGHTS, lambda s: s.clear()), "Missing key"),
    "nan": (lambda f: edit_weights(f / WEIGHTS, lambda s: s["conv_in.weight"].fill_(torch.nan)), "is not finite"),
    "bad config": (lambda f: (f / "config.json").write_text('{"sample_size": 16,'), "is not valid JSON"),
    "config is binary": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "is not valid JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "must hold a JSON object"),
    "config is empty": (lambda f: (f / "config.json").write_text("{}"), "do not fit"),
    "unknown key": (lambda f: edit_json(f / "config.json", colour=1), "'colour'"),
    "wrong type": (lambda f: edit_json(f / "config.json", block_out_channels=["a", "b", "c"]), "cannot use"),
    "no image size": (lambda f: edit_json(f / "config.json", sample_size=None), "sample_size"),
    "image size is a string": (lambda f: edit_json(f / "config.json", sample_size="big"), "cannot use"),
    "bad settings": (lambda f: (f / "pipeline.json").write_text("junk"), "pipeline.json is damaged"),
    "settings is empty": (lambda f: (f / "pipeline.json").write_text("{}"), "pipeline.json is damaged"),
    "settings is a list": (lambda f: (f / "pipeline.json").write_text("[1]"), "pipeline.json is damaged"),
    "unknown sampler": (lambda f: edit_json(f / "pipeline.json", sampler="magic"), "'magic'"),
    "steps is a string": (lambda f: edit_json(f / "pipeline.json", steps="many"), "steps"),
    "unknown option": (lambda f: edit_json(f / "pipeline.json", sampler_options={"s": 1}), "no option 's'"),
    "options is a list": (lambda f: edit_json(f / "pipeline.json", sampler_options=[1]), "cannot use"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint(run, icons, tmp_path, damage):
    harm, words = DAMAGES[damage]
    harm(icons)
    line = run("demo", *QUICK, "--checkpoint", icons, "--output", tmp_path / "demo.png").failed_in_one_line()
    assert str(icons) in line and words in line
    assert not (tmp_path / "demo.png").exists()


def test_checkpoint_that_is_a_file(run, icons, tmp_path):
    line = run("demo", *QUICK, "--checkpoint", icons / WEIGHTS, "--output", tmp_path / "demo.png").failed_in_one_line()
    assert "cannot use the checkpoint" in line


def test_copy_of_the_checkpoint_draws_the_same(run, icons, tmp_path):
    for name, more in (("a", ()), ("b", ("--checkpoint", icons))):
        arguments = (*QUICK, "--no-compare", *more, "--output", tmp_path / f"{name}.png")
        assert run("demo", *arguments).code == 0
    a, b = (pixels(tmp_path / f"{name}.png") for name in "ab")
    assert (cell(a, 0, 0) == cell(b, 0, 0)).all()


@pytest.mark.skipif(fastdiff.build_info()["cuda_off_reason"] is None, reason="CUDA is on here")
def test_device_that_is_not_there(run, tmp_path):
    line = run("demo", "--device", "cuda", "--output", tmp_path / "demo.png").failed_in_one_line()
    assert "device 'cuda' cannot be used: " + fastdiff.build_info()["cuda_off_reason"] in line
