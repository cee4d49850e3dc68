from __future__ import annotations

import dataclasses
import os
import re
import resource
import shlex
import signal
import subprocess
import time

import pytest

import fastdiff
from fastdiff.cli import build_parser, demo_samples, train
from fastdiff.data import ICONS
from fastdiff.training import TrainConfig
from fastdiff.training.checkpoint import CHECKPOINT_NAME, read_metadata
from fastdiff.training.trainer import TrainResult

pytest.importorskip("sklearn")
needs_extension = pytest.mark.skipif(not fastdiff.build_info()["extension"], reason="needs the compiled extension")

TINY = [
    *("--data", "digits", "--image-size", "8", "--channels", "8", "16", "--attention-resolutions", "4"),
    *("--head-dim", "8", "--norm-groups", "4", "--batch-size", "4", "--warmup-steps", "2", "--checkpoint-every", "2"),
]


def parsed(*arguments: str) -> dict:
    return {k: v for k, v in vars(build_parser().parse_args(["train", *arguments])).items() if k != "command"}


def test_every_field_is_a_flag_with_its_default_and_help(run):
    assert TrainConfig(**parsed()) == TrainConfig()
    help = " ".join(run("train", "--help").out.split())
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in help
        assert field.metadata["help"].split(":")[0] in re.sub(r"- ", "-", help)


def test_flags_set_their_fields():
    config = TrainConfig(
        **parsed(*TINY, "--dropout", "0.25", "--process", "discrete_vp", "--prediction", "v", "--resume")
    )
    assert config.channels == (8, 16) and config.attention_resolutions == (4,)
    assert (config.dropout, config.process, config.prediction, config.resume) == (0.25, "discrete_vp", "v", True)
    assert parsed("--attention-resolutions")["attention_resolutions"] == []


def test_command_in_the_icons_readme_is_the_configuration_that_was_trained(monkeypatch, run):
    readme = (ICONS / "README.md").read_text(encoding="utf-8")
    command = shlex.split(re.search(r"^(?:\w+=\S+ )*(fastdiff train .*)$", readme, re.M)[1])
    ran = []
    monkeypatch.setattr(train, "train", lambda config: ran.append(config) or TrainResult(config.output, 1, 0.0))
    monkeypatch.setattr(train, "require_extension", lambda: None)
    assert run(*command[1:]).code == 0
    assert ran == [TrainConfig(output="runs/icons")]


@needs_extension
def test_train_then_resume_then_draw(run, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_samples, "DIAL", (1, 2, 3, 4))
    folder = tmp_path / "run"
    constant = [*TINY, "--lr-schedule", "constant", "--output", folder]
    first = run("train", *constant, "--steps", 3)
    assert first.code == 0 and "trained 3 steps" in first.out and f"fastdiff demo --checkpoint {folder}" in first.out
    assert "training" in first.err  # the progress bar

    assert "has a checkpoint already" in run("train", *constant, "--steps", 5).failed_in_one_line()
    assert run("train", *constant, "--steps", 5, "--resume").code == 0
    assert read_metadata(folder / CHECKPOINT_NAME)["step"] == 5

    picture = tmp_path / "demo.png"
    drawn = run("demo", "--checkpoint", folder, "--images", 4, "--steps", 2, "--no-compare", "--output", picture)
    assert drawn.code == 0, drawn.err
    assert picture.stat().st_size > 1000


@needs_extension
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--steps", "0"), "steps must be at least 1, got 0"),
        (("--process", "magic"), "process must be one of"),
        (("--data", "no/such/folder"), "there is no folder no/such/folder"),
        (("--norm-groups", "5"), "5"),
        (("--image-size", "10", "--data", "icons"), "image_size must be"),
        (("--resume",), "there is no checkpoint.safetensors"),
        (("--device", "toaster"), "device must be cpu, cuda or cuda:<number>, got 'toaster'"),
        (("--device", "mps"), "device must be cpu, cuda"),
        (("--seed", str(2**70)), "seed"),
    ],
)
def test_what_cannot_be_trained_is_one_line(run, tmp_path, arguments, words):
    given = [*TINY, "--output", tmp_path / "run", "--steps", 2, *arguments]
    assert words in run("train", *given).failed_in_one_line()


@needs_extension
def test_output_that_cannot_be_made(run, tmp_path):
    (tmp_path / "file").touch()
    line = run("train", *TINY, "--steps", 1, "--output", tmp_path / "file" / "run").failed_in_one_line()
    assert str(tmp_path / "file") in line


@needs_extension
def test_damaged_checkpoint_is_one_line(run, tmp_path):
    given = [*TINY, "--output", tmp_path, "--steps", 2]
    assert run("train", *given).code == 0
    os.truncate(tmp_path / CHECKPOINT_NAME, 500)
    assert "is damaged or not a training checkpoint" in run("train", *given, "--resume").failed_in_one_line()


@needs_extension
def test_full_disk_is_one_line_and_keeps_the_checkpoint(script, tmp_path):
    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    command = [script, "train", *TINY, "--output", str(tmp_path), "--lr-schedule", "constant"]
    subprocess.run([*command, "--steps", "2"], check=True, capture_output=True)
    before = (tmp_path / CHECKPOINT_NAME).read_bytes()
    done = subprocess.run(
        [*command, "--steps", "4", "--resume"], capture_output=True, text=True, preexec_fn=limit_file_size
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "File too large" in done.stderr.splitlines()[-1]
    assert (tmp_path / CHECKPOINT_NAME).read_bytes() == before


@needs_extension
@pytest.mark.skipif(os.name != "posix", reason="only POSIX sends SIGINT to a process")
def test_ctrl_c_keeps_the_last_checkpoint(script, tmp_path):
    command = [script, "train", *TINY, "--output", str(tmp_path), "--lr-schedule", "constant"]
    process = subprocess.Popen(
        [*command, "--steps", "1000000"],
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs, and their children, ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / CHECKPOINT_NAME).exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in errors

    step = read_metadata(tmp_path / CHECKPOINT_NAME)["step"]
    said = f"fastdiff train: interrupted: the checkpoint of step {step} in {tmp_path} is intact, go on with --resume"
    assert errors.splitlines()[-1] == said
    assert subprocess.run([*command, "--steps", str(step + 1), "--resume"], capture_output=True).returncode == 0
    assert read_metadata(tmp_path / CHECKPOINT_NAME)["step"] == step + 1


@needs_extension
def test_ctrl_c_before_the_first_checkpoint(run, tmp_path, monkeypatch):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", interrupted)
    result = run("train", *TINY, "--output", tmp_path)
    assert result.code == 130
    assert result.err.strip() == "fastdiff train: interrupted: no checkpoint had been written yet"
