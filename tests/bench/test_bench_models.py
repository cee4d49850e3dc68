"""bench/run.py models: that the sides compute the same, and what it writes."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bench.run
from bench import openvino_peer
from bench.device import CpuDevice
from bench.models import MODELS, command
from bench.models.measure import ModelCase, measure_model, peak_bytes
from bench.timing import Budget
from bench.worker import WrongResult

pytest.importorskip("diffusers")
ONCE = Budget(0.0, 1, 1)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_a_model_on_both_sides(small, model) -> None:
    record = measure_model(ModelCase(model, "fp32"), CpuDevice(), peers=(), budget=ONCE)
    assert set(record["contenders"]) == set(record["errors"]) == {"fastdiff", "diffusers"}
    assert record["flops"] > 1e6 and record["parameters"] > 1e4
    assert all(size is not None for size in record["peak_bytes"].values())


def test_compiled_peers_compute_the_same(small) -> None:
    peers = ("compile", *([openvino_peer.NAME] if openvino_peer.available() else []))
    record = measure_model(ModelCase("dit_xl_2", "fp32"), CpuDevice(), peers=peers, budget=ONCE)
    assert not record["left_out"] and not record["wrong"]
    assert set(record["contenders"]) == {"fastdiff", "diffusers", *peers}


def test_a_wrong_result_is_refused(small, monkeypatch) -> None:
    forward = torch.nn.GELU.forward
    monkeypatch.setattr("fastdiff.nn.Linear.gelu", lambda self, x, approximate: 1.1 * forward(torch.nn.GELU(), self(x)))
    with pytest.raises(WrongResult, match="dit_xl_2 fp32: fastdiff differs from diffusers by"):
        measure_model(ModelCase("dit_xl_2", "fp32"), CpuDevice(), peers=(), budget=ONCE)


def test_a_contender_with_another_result_is_timed_and_named(small, monkeypatch) -> None:
    errors = iter((0.0, 0.0, 0.2))
    monkeypatch.setattr("bench.models.measure.relative_error", lambda got, expected: next(errors))
    record = measure_model(ModelCase("dit_xl_2", "fp32"), CpuDevice(), peers=("compile",), budget=ONCE)
    assert record["wrong"] == {"compile": "differs from diffusers by 0.2 of its result"}
    assert "compile" in record["contenders"]
    run = {"allocator": "default", "threads": 1, "records": [record], "peak_gflop_per_s": None}
    assert "dit_xl_2 fp32: compile differs from diffusers by 0.2 of its result" in command.table(run).notes


def test_peak_memory_is_that_of_a_call() -> None:
    size = 64 << 20

    def call() -> None:
        torch.ones(size // 4).add(1)

    assert peak_bytes(lambda: None) < size // 8
    assert 1.8 * size < peak_bytes(call) < 2.5 * size


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is glibc's")
def test_peak_memory_counts_what_a_tuned_allocator_keeps() -> None:
    code = (
        "import fastdiff, torch; from bench.models.measure import peak_bytes; assert fastdiff.tune_allocator(); "
        "call = lambda: torch.ones(1 << 24).add(1); call(); assert 1.8 * 2**26 < peak_bytes(call) < 2.5 * 2**26"
    )
    root = Path(bench.run.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_command(tmp_path, capsys) -> None:
    results, report = tmp_path / "models.json", tmp_path / "models.html"
    arguments = "models --model icons_unet --quick --allocator default --threads 1 --json"
    assert bench.run.main([*arguments.split(), str(results), "--report", str(report)]) == 0
    (run,) = json.loads(results.read_text())["runs"]
    assert [record["dtype"] for record in run["records"]] == ["fp32", "bf16"]
    assert run["environment"]["allocator"] == "default" and run["environment"]["threads"] == 1
    assert "icons_unet" in capsys.readouterr().out and "<svg" in report.read_text()
    with pytest.raises(SystemExit):
        bench.run.main(["models", "--model", "sd15"])
    assert "'sd15' is not one of icons_unet, sd15_unet" in capsys.readouterr().err
