"""A run that is killed at any moment and resumed ends with the bits of a run that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch

from fastdiff.training import TrainConfig
from fastdiff.training.checkpoint import CHECKPOINT_NAME, read_metadata
from fastdiff.training.trainer import train

pytest.importorskip("sklearn")

RUN = {
    "data": "digits",
    "image_size": 8,
    "channels": (8, 16),
    "attention_resolutions": (4,),
    "head_dim": 8,
    "norm_groups": 4,
    "dropout": 0.1,
    "steps": 60,
    "batch_size": 7,  # does not divide the epoch
    "warmup_steps": 10,
    "checkpoint_every": 9,
    "export_dtype": "float32",
}

SCRIPT = """
import contextlib, sys, time
import fastdiff
from fastdiff.training import TrainConfig, train
config = TrainConfig(**eval(sys.argv[1]))
kernels = fastdiff.build_info()["extension"]
with contextlib.nullcontext() if kernels else fastdiff.use_reference():
    train(config, progress=False, on_step=lambda step, loss: print(step, flush=True))
"""


def start(output: Path, **changes) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, repr(RUN | {"output": str(output)} | changes)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def kill_after_step(process: subprocess.Popen, step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= step:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def tensors(folder: Path) -> dict[str, bytes]:
    """Every tensor of the training checkpoint and of the finished model, as bytes."""
    files = [folder / CHECKPOINT_NAME, folder / "diffusion_pytorch_model.safetensors"]
    return {
        f"{file.name}:{name}": tensor.numpy().tobytes()
        for file in files
        for name, tensor in safetensors.torch.load_file(file).items()
    }


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has SIGKILL")
def test_killed_and_resumed_run_is_bit_identical(tmp_path):
    whole = start(tmp_path / "whole")
    whole.communicate()
    assert whole.returncode == 0

    # Killed twice, both times between checkpoints, so that steps are done again.
    killed = tmp_path / "killed"
    kill_after_step(start(killed), 23)
    assert read_metadata(killed / CHECKPOINT_NAME)["step"] in (18, 27)
    kill_after_step(start(killed, resume=True), 40)
    resumed_from = read_metadata(killed / CHECKPOINT_NAME)["step"]
    assert 36 <= resumed_from < 60
    finished = start(killed, resume=True)
    steps_done = [int(line) for line in finished.communicate()[0].split()]
    assert finished.returncode == 0
    assert steps_done == list(range(resumed_from + 1, 61))

    expected, actual = tensors(tmp_path / "whole"), tensors(killed)
    assert expected.keys() == actual.keys() and len(expected) > 100
    assert [name for name in expected if expected[name] != actual[name]] == []
    losses = [read_metadata(tmp_path / name / CHECKPOINT_NAME)["loss"] for name in ("whole", "killed")]
    assert losses[0] == losses[1]


def test_refusals(tmp_path):
    config = TrainConfig(**RUN | {"output": str(tmp_path / "run"), "steps": 2})

    def changed(**changes) -> TrainConfig:
        return TrainConfig(**RUN | {"output": str(tmp_path / "run"), "steps": 2} | changes)

    with pytest.raises(FileNotFoundError, match="no checkpoint.safetensors"):
        train(changed(resume=True), progress=False)
    train(config, progress=False)
    with pytest.raises(FileExistsError, match="has a checkpoint already"):
        train(config, progress=False)
    with pytest.raises(ValueError, match="batch_size must be 7 to resume.*got 8"):
        train(changed(resume=True, batch_size=8), progress=False)
    with pytest.raises(ValueError, match=r"channels must be \(8, 16\) to resume"):
        train(changed(resume=True, channels=(16, 16)), progress=False)

    checkpoint = tmp_path / "run" / CHECKPOINT_NAME
    whole = checkpoint.read_bytes()
    for damaged in (b"", b"junk", whole[:-50]):
        checkpoint.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged or not a training checkpoint"):
            train(changed(resume=True), progress=False)
    safetensors.torch.save_file(safetensors.torch.load(whole), checkpoint)
    with pytest.raises(ValueError, match="is damaged or not a training checkpoint"):
        train(changed(resume=True), progress=False)


def test_resuming_a_finished_run_exports_it_again(tmp_path):
    run = RUN | {"output": str(tmp_path), "steps": 3}
    train(TrainConfig(**run), progress=False)
    expected = tensors(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    result = train(TrainConfig(**run, resume=True), progress=False)
    assert result.step == 3 and tensors(tmp_path) == expected


def test_a_run_with_constant_learning_rate_can_be_made_longer(tmp_path):
    run = RUN | {"lr_schedule": "constant"}
    train(TrainConfig(**run | {"output": str(tmp_path / "whole"), "steps": 6}), progress=False)
    for steps in (4, 6):
        part = TrainConfig(**run | {"output": str(tmp_path / "parts"), "steps": steps, "resume": steps > 4})
        train(part, progress=False)
    assert tensors(tmp_path / "parts") == tensors(tmp_path / "whole")
    with pytest.raises(ValueError, match="steps must be at least the 6 of .*got 5"):
        train(TrainConfig(**run | {"output": str(tmp_path / "parts"), "steps": 5, "resume": True}), progress=False)
