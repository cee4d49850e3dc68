"""bench/run.py as a user runs it: what it writes, and what it says to bad arguments."""

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import bench.run
from bench import openvino_peer
from bench.kernels import OPS, command
from bench.kernels.case import Case
from bench.kernels.measure import measure_case
from bench.timing import Budget
from bench.worker import Job, WorkerFailed, run_job

RUN = Path(bench.run.__file__)


def run_bench(*arguments):
    return subprocess.run([sys.executable, str(RUN), *arguments], capture_output=True, text=True, timeout=300)


def job_of(case, *baselines):
    return Job((case,), partial(measure_case, baselines=baselines, budget=Budget(0.0, 1, 1)), "cpu", 1, "default")


def test_no_module_beside_the_script_hides_a_package():
    code = f"import runpy, sys; runpy.run_path({str(RUN)!r}); import worker"
    path = {"PYTHONPATH": str(RUN.parent)}  # as Python sets it for a script
    process = subprocess.run([sys.executable, "-c", code], env=os.environ | path, capture_output=True, text=True)
    assert "No module named 'worker'" in process.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run over a tiny shape without torch.compile, with everything written."""
    folder = tmp_path_factory.mktemp("bench")
    process = run_bench(
        *("kernels", "--op", "group_norm_silu", "--quick", "--shape", "1x32x4x4"),
        *("--dtype", "fp32,bf16", "--baselines", "eager"),
        *("--layout", "NHWC", "--threads", "1,2", "--allocator", "default"),
        *("--json", str(folder / "result.json"), "--report", str(folder / "report.html")),
    )
    assert process.returncode == 0, process.stderr
    return process, json.loads((folder / "result.json").read_text()), (folder / "report.html").read_text()


def test_json_names_the_environment_of_every_run(finished):
    _, result, _ = finished
    assert result["schema"] == "fastdiff.bench.kernels/1"
    assert [(run["allocator"], run["threads"]) for run in result["runs"]] == [("default", 1), ("default", 2)]
    for run in result["runs"]:
        environment = run["environment"]
        assert environment["threads"] == run["threads"]
        assert environment["allocator"] == "default"
        assert environment["torch"] == torch.__version__
        assert environment["device_model"]
        assert environment["fastdiff"]["cpu_isa"]


def test_json_has_a_record_for_every_case(finished):
    _, result, _ = finished
    for run in result["runs"]:
        cases = [(r["direction"], r["dtype"], r["layout"], r["shape"]) for r in run["records"]]
        assert cases == [(d, t, "NHWC", [1, 32, 4, 4]) for d in ("forward", "backward") for t in ("fp32", "bf16")]
        for record in run["records"]:
            assert set(record["errors"]) == {"fastdiff", "eager"}
            assert set(record["caches"]) == {"warm", "cold"}
            for cache in record["caches"].values():
                assert set(cache["contenders"]) == {"fastdiff", "eager", "copy"}
                for timing in cache["contenders"].values():
                    assert timing["repetitions"] >= 3
                    assert 0 < timing["min_ms"] <= timing["median_ms"]
                assert {"ratio", "times_floor", "percent_of_floor", "gb_per_s", "floor_3u_ms"} <= set(cache)


def test_json_summary_has_ratios_and_scaling(finished):
    _, result, _ = finished
    assert {entry["dtype"] for entry in result["summary"]["ratios"]} == {"fp32", "bf16", "all"}
    assert len(result["summary"]["scaling"]) == 2 * len(result["runs"][0]["records"])


def test_screen_shows_every_case_and_the_summary(finished):
    process, _, _ = finished
    assert process.stdout.count("1x32x4x4") == 2 * 2 * 4 + 2 * 4  # two runs, two cache states, four cases; scaling
    assert "geometric mean" in process.stdout
    assert "Speed-up by threads" in process.stdout


def test_report_is_one_self_contained_page(finished):
    _, _, page = finished
    assert page.startswith("<!DOCTYPE html>") and page.rstrip().endswith("</html>")
    assert page.count("<svg") == 4  # two runs, two directions
    assert page.count("1x32x4x4") > 20
    for outside in ("<script", "<link", "<img", "src="):
        assert outside not in page


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "required"),
        (["nonsense"], "nonsense"),
        (["kernels", "--device", "tpu"], "tpu"),
        (["kernels", "--op", "softmax"], f"'softmax' is not one of {', '.join(OPS)}"),
        (["kernels", "--dtype", "fp32,fp8"], "'fp8' is not one of fp32, bf16, fp16"),
        (["kernels", "--threads", "0"], "positive integers"),
        (["kernels", "--threads", "two"], "positive integers"),
        (["kernels", "--shape", "unot"], "'unot' is neither NxCxHxW nor one of latent, pixels, cross"),
        (["kernels", "--op", "group_norm_silu", "--shape", "1x33x4x4"], "multiple of 32"),
        (["kernels", "--op", "group_norm_silu", "--shape", "1x32x4"], "(N, C, H, W), got 3 sizes"),
        (["kernels", "--op", "attention", "--shape", "1x32x4x4"], "(batch, heads, Lq, head_dim, Lkv), got 4 sizes"),
        (["kernels", "--op", "sampler_step", "--direction", "backward"], "nothing to measure"),
        (["kernels", "--baselines", ""], "'' is not one of eager, compile"),
        (["kernels", "--baselines", "openvino"], "--baselines needs eager or compile"),
        (["kernels", "--allocator", "jemalloc"], "jemalloc"),
        (["kernels", "--device", "cuda", "--allocator", "tuned"], "leave it out with --device cuda"),
        (["kernels", "--json", "/nowhere/result.json"], "/nowhere does not exist"),
        (["kernels", "--report", "/"], "/ is a folder"),
    ],
)
def test_bad_arguments_get_one_line_and_a_failing_exit(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as exit_:
        bench.run.main(arguments)
    captured = capsys.readouterr()
    assert exit_.value.code == 2
    assert complaint in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_cuda_without_a_device_is_said_in_one_line(capsys):
    with pytest.raises(SystemExit) as exit_:
        bench.run.main(["kernels", "--device", "cuda"])
    assert exit_.value.code == 2
    assert "sees no CUDA device" in capsys.readouterr().err


def test_a_worker_that_dies_is_reported():
    """An op that does not exist makes the measuring process end with a traceback of its own."""
    case = Case("no_such_op", "forward", (1, 32, 4, 4), "custom", "fp32", "NCHW")
    job = job_of(case, "eager")
    stream = run_job(job)
    assert next(stream)["device"] == "cpu"
    with pytest.raises(WorkerFailed, match="exit code 1"):
        next(stream)


def test_compile_is_a_contender_like_the_others():
    case = Case("group_norm_silu", "forward", (1, 32, 4, 4), "custom", "fp32", "NCHW")
    job = Job(
        (case,), partial(measure_case, baselines=("eager", "compile"), budget=Budget(0.0, 1, 1)), "cpu", 1, "default"
    )
    _, record = run_job(job)
    assert set(record["errors"]) == {"fastdiff", "eager", "compile"}
    assert set(record["caches"]["warm"]["contenders"]) == {"fastdiff", "eager", "compile", "copy"}


def test_openvino_that_is_not_there_is_said_in_one_line(monkeypatch, capsys):
    for device, installed, reason in (("cpu", False, "not installed"), ("cuda", True, "on a CPU only")):
        monkeypatch.setattr(openvino_peer, "available", lambda installed=installed: installed)
        arguments = argparse.Namespace(baselines=("eager", "openvino"), device=device)
        assert command.chosen_baselines(arguments) == ("eager",)
        complaint = capsys.readouterr().err
        assert reason in complaint and complaint.count("\n") == 1


def test_every_op_has_a_table_of_its_own(tmp_path):
    ops = ["attention", "sampler_step"]
    process = run_bench(
        *("kernels", "--op", ",".join(ops), "--quick", "--shape", "1x2x8x4x8", "--dtype", "bf16", "--layout", "NCHW"),
        *("--direction", "forward", "--allocator", "default", "--baselines", "eager"),
        *("--json", str(tmp_path / "result.json")),
    )
    assert process.returncode == 0, process.stderr
    (run,) = json.loads((tmp_path / "result.json").read_text())["runs"]
    attention, sampler_step = (record["caches"]["warm"] for record in run["records"])
    assert attention["percent_of_peak"] == 100 * attention["gflop_per_s"] / run["peak"]["gflop_per_s"]["bf16"]
    assert "percent_of_peak" not in sampler_step
    assert [line.split(":")[0] for line in process.stdout.splitlines() if "default allocator" in line] == ops
