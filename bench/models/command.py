"""`bench/run.py models`: whole networks, one evaluation, against diffusers'."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import openvino, plots
from bench.arguments import allocators, one_of, thread_counts, writable
from bench.models import DTYPES, MODELS
from bench.models.measure import PEERS, ModelCase, measure_model
from bench.peak import measure_peak
from bench.report import page
from bench.table import Table
from bench.timing import Budget
from bench.worker import Job, run_job
from fastdiff._files import atomic_write

HELP = "whole networks with random weights against diffusers, torch.compile and OpenVINO"
SCHEMA = "fastdiff.bench.models/1"
FULL = Budget(seconds=120.0, min_repetitions=5, max_repetitions=50)
QUICK = Budget(seconds=0.0, min_repetitions=2, max_repetitions=2)
_INTRODUCTION = (
    "One evaluation of a network with random weights, as a sampler makes it: medians, all contenders taking turns in "
    "one process, on the same weights in memory. Convolutional networks run channels-last on all sides. Ratios are the "
    "other's time over fastdiff's. Of the peak: GFLOP/s, with the operations of plain sums, against multiply-adds that "
    "wait for nothing; minimal filtering can bring it above 100. Memory is the most that a call takes beyond what was "
    "held before."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=thread_counts, default=(torch.get_num_threads(),), metavar="N[,M...]")
    parser.add_argument(
        "--model", type=one_of(MODELS), default=tuple(MODELS), metavar="NAME[,...]", help=", ".join(MODELS)
    )
    parser.add_argument("--dtype", type=one_of(DTYPES), default=tuple(DTYPES), metavar="DTYPE[,...]")
    parser.add_argument(
        "--peers", type=one_of(PEERS), default=(), metavar="NAME[,...]", help=f"{', '.join(PEERS)}, beside diffusers"
    )
    parser.add_argument("--allocator", choices=("tuned", "default", "both"), help="of glibc, on a CPU; default: both")
    parser.add_argument("--quick", action="store_true", help="two repetitions: a first look, not a result")
    parser.add_argument("--json", type=writable, metavar="FILE", help="write everything measured")
    parser.add_argument("--report", type=writable, metavar="FILE.html", help="write tables and plots as one HTML file")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print and write. Raises ValueError for arguments that do not go together, and WorkerFailed."""
    if openvino.NAME in arguments.peers and not openvino.available():
        raise ValueError("--peers openvino: it is not installed; pip install openvino")
    cases = tuple(ModelCase(model, dtype) for model in arguments.model for dtype in arguments.dtype)
    measure = partial(measure_model, peers=arguments.peers, budget=QUICK if arguments.quick else FULL)
    runs = []
    for allocator in allocators(arguments):
        for threads in arguments.threads:
            runs.append(_measure(Job(cases, measure, arguments.device, threads, allocator)))
            print(f"\n{table(runs[-1]).text()}", flush=True)
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    if arguments.json:
        content = {"schema": SCHEMA, "created": created, "command": sys.argv, "quick": arguments.quick, "runs": runs}
        atomic_write(arguments.json, (json.dumps(content, indent=1) + "\n").encode())
        print(f"\nwrote {arguments.json}")
    if arguments.report:
        _write_report(arguments.report, runs, created)
        print(f"wrote {arguments.report}")


def _measure(job: Job) -> dict[str, Any]:
    # Before the networks fill the caches and heat the cores.
    peak = measure_peak().times(job.threads) if job.device == "cpu" else None
    environment, *records = run_job(job)
    return {
        "allocator": job.allocator,
        "threads": job.threads,
        "environment": environment,
        "peak_gflop_per_s": peak.gflop_per_s if peak else None,
        "records": records,
    }


def table(run: dict[str, Any]) -> Table:
    peers = [name for name in PEERS if any(name in record["contenders"] for record in run["records"])]
    headers = ["model", "dtype", "M weights", "fastdiff ms", "diffusers ms", "ratio"]
    headers += [f"{name} ratio" for name in peers] + ["GFLOP/s", "of peak", "MB", "diffusers MB"]
    title = f"one evaluation, {run['allocator']} allocator, {run['threads']} threads"
    rows = [_row(record, peers, run["peak_gflop_per_s"] or {}) for record in run["records"]]
    notes = [
        f"{record['model']} {record['dtype']}: without {name}: {reason}"
        for record in run["records"]
        for name, reason in record["left_out"].items()
    ]
    return Table(title, headers, rows, text_columns=2, notes=tuple(notes))


def _row(record: dict[str, Any], peers: list[str], peaks: dict[str, float]) -> list[str]:
    times = medians(record)
    ours, peak = times["fastdiff"], peaks.get(record["dtype"])
    gflop_per_s = record["flops"] / ours / 1e6
    memory = [record["peak_bytes"].get(name) for name in ("fastdiff", "diffusers")]
    return [
        record["model"],
        record["dtype"],
        f"{record['parameters'] / 1e6:.0f}",
        f"{ours:.1f}",
        f"{times['diffusers']:.1f}",
        f"{times['diffusers'] / ours:.2f}",
        *(f"{times[name] / ours:.2f}" if name in times else "-" for name in peers),
        f"{gflop_per_s:.0f}",
        f"{100 * gflop_per_s / peak:.0f}%" if peak else "-",
        *("-" if size is None else f"{size / 1e6:.0f}" for size in memory),
    ]


def medians(record: dict[str, Any]) -> dict[str, float]:
    """Milliseconds, by contender."""
    return {name: timing["median_ms"] for name, timing in record["contenders"].items()}


def _write_report(path: Path, runs: list[dict[str, Any]], created: str) -> None:
    environment = runs[0]["environment"]
    facts = {
        "measured": created,
        "device": environment["device_model"],
        "instruction set": str(environment["fastdiff"].get("cpu_isa")),
        "torch": environment["torch"],
        "fastdiff": environment["fastdiff"]["fastdiff"],
        "command": " ".join(sys.argv),
    }
    sections: list[Table | str] = []
    for run in runs:
        if plots.available():
            groups = {f"{record['model']} {record['dtype']}": medians(record) for record in run["records"]}
            sections.append(plots.relative_times(table(run).title, groups, "diffusers"))
        sections.append(table(run))
    atomic_write(path, page("fastdiff: models", _INTRODUCTION, facts, sections).encode())
