"""bench/run.py pipeline: that the sides draw the same, that parts add up, and what it writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

import bench.run
from bench.device import CpuDevice
from bench.environment import describe
from bench.pipelines import PIPELINES
from bench.pipelines.measure import Contender, PipelineCase, measure_pipeline
from bench.timing import Budget
from bench.worker import Job, WrongResult
from fastdiff.models import AutoencoderKL

pytest.importorskip("diffusers")
pytest.importorskip("transformers")  # diffusers' pipelines ask for it
ONCE = Budget(0.0, 1, 1)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("pipeline", sorted(PIPELINES))
def test_a_pipeline_on_both_sides(small, pipeline, dtype) -> None:
    record = measure_pipeline(PipelineCase(pipeline, dtype), CpuDevice(), steps=2, budget=ONCE)
    assert (
        set(record["contenders"]) == set(record["parts_ms"]) == set(record["peak_bytes"]) == {"fastdiff", "diffusers"}
    )
    for name, timing in record["contenders"].items():
        parts = record["parts_ms"][name]
        assert all(milliseconds > 0 for milliseconds in parts.values())
        assert sum(parts.values()) == pytest.approx(timing["median_ms"])


def test_another_picture_is_refused(small, monkeypatch) -> None:
    monkeypatch.setattr(AutoencoderKL, "denormalize_latents", lambda self, latents: latents)
    with pytest.raises(WrongResult, match="dit_xl_2 fp32: the picture differs from diffusers' by"):
        measure_pipeline(PipelineCase("dit_xl_2", "fp32"), CpuDevice(), steps=2, budget=ONCE)


def test_parts_are_the_time_in_their_networks() -> None:
    class Clock(CpuDevice):
        moments = iter([0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 63.0, 127.0])  # seven intervals, each of another length

        def mark(self) -> float:
            return next(self.moments)

        def seconds_between(self, marks: list[float]) -> list[float]:
            return [after - before for before, after in pairwise(marks)]

    network, decoder = nn.Identity(), nn.Identity()
    contender = Contender(lambda: decoder(network(network(torch.ones(1)))), network, decoder, Clock())
    assert contender.run() == 127.0
    assert contender.medians() == {"network": 2e3 + 8e3, "decoder": 32e3, "rest": 1e3 + 4e3 + 16e3 + 64e3}


def test_command(small, monkeypatch, tmp_path, capsys) -> None:
    def run_here(job: Job) -> Iterator[dict[str, Any]]:
        device = CpuDevice()
        yield describe(device, job.allocator)
        for case in job.cases:
            yield job.measure(case, device)

    monkeypatch.setattr("bench.runs.run_job", run_here)  # another process would have the large models
    results, report = tmp_path / "pipeline.json", tmp_path / "pipeline.html"
    arguments = "pipeline --pipeline dit_xl_2 --dtype fp32 --steps 1 --quick --allocator default --threads 1 --json"
    assert bench.run.main([*arguments.split(), str(results), "--report", str(report)]) == 0
    (run,) = json.loads(results.read_text())["runs"]
    assert run["records"][0]["steps"] == 1 and run["environment"]["allocator"] == "default"
    assert "dit_xl_2" in capsys.readouterr().out and "<svg" in report.read_text()
    with pytest.raises(SystemExit):
        bench.run.main([*arguments.split(), str(results), "--steps", "0"])
    assert "--steps must be at least 1, got 0" in capsys.readouterr().err
