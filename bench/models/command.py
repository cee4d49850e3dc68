"""`bench/run.py models`: whole networks, one evaluation, against diffusers'."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from bench import openvino_peer
from bench.arguments import add_network_arguments, add_run_arguments, one_of
from bench.models import DTYPES, MODELS
from bench.models.measure import PEERS, ModelCase, measure_model
from bench.peak import measure_peak
from bench.runs import jobs_for, measure, medians, megabytes, threads_text, write_results
from bench.table import Table
from bench.timing import Budget
from bench.worker import Job

HELP = "whole networks with random weights against diffusers, torch.compile and OpenVINO"
FULL = Budget(seconds=120.0, min_repetitions=5, max_repetitions=50)
QUICK = Budget(seconds=0.0, min_repetitions=2, max_repetitions=2)
_INTRODUCTION = (
    "One evaluation of a network with random weights, as a sampler makes it: medians, all contenders taking turns in "
    "one process, on the same weights in memory. A peer whose result is another is timed, too, and named below. "
    "Convolutional networks run channels-last on all sides. Ratios are the other's time over fastdiff's. Of the peak: "
    "GFLOP/s, with the operations of plain sums, against multiply-adds that wait for nothing; minimal filtering can "
    "bring it above 100. Memory is the most that a call takes beyond what was held before."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_network_arguments(parser, "model", MODELS, DTYPES)
    parser.add_argument(
        "--peers", type=one_of(PEERS), default=(), metavar="NAME[,...]", help=f"{', '.join(PEERS)}, beside diffusers"
    )
    add_run_arguments(parser, "two repetitions")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print and write. Raises ValueError for arguments that do not go together, and WorkerFailed."""
    if openvino_peer.NAME in arguments.peers and not openvino_peer.available():
        raise ValueError("--peers openvino: it is not installed; pip install openvino")
    cases = tuple(ModelCase(model, dtype) for model in arguments.model for dtype in arguments.dtype)
    measure_one = partial(measure_model, peers=arguments.peers, budget=QUICK if arguments.quick else FULL)
    jobs = jobs_for(arguments, cases, measure_one)
    runs = measure(jobs, lambda job, _: {"peak_gflop_per_s": _peak(job)}, lambda run: [table(run)])
    write_results(arguments, runs, "models", "model", _INTRODUCTION, table)


def _peak(job: Job) -> dict[str, float] | None:
    """GFLOP/s by dtype."""
    return measure_peak().times(job.threads).gflop_per_s if job.device == "cpu" else None


def table(run: dict[str, Any]) -> Table:
    peers = [name for name in PEERS if any(name in record["contenders"] for record in run["records"])]
    headers = ["model", "dtype", "M weights", "fastdiff ms", "diffusers ms", "ratio"]
    headers += [f"{name} ratio" for name in peers] + ["GFLOP/s", "of peak", "MB", "diffusers MB"]
    title = f"one evaluation, {run['allocator']} allocator, {threads_text(run['threads'])}"
    rows = [_row(record, peers, run["peak_gflop_per_s"] or {}) for record in run["records"]]
    notes = [
        f"{record['model']} {record['dtype']}: without {name}: {reason}"
        for record in run["records"]
        for name, reason in record["left_out"].items()
    ]
    notes += [
        f"{record['model']} {record['dtype']}: {name} {difference}"
        for record in run["records"]
        for name, difference in record["wrong"].items()
    ]
    return Table(title, headers, rows, text_columns=2, notes=tuple(notes))


def _row(record: dict[str, Any], peers: list[str], peaks: dict[str, float]) -> list[str]:
    times = medians(record)
    ours, peak = times["fastdiff"], peaks.get(record["dtype"])
    gflop_per_s = record["flops"] / ours / 1e6
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
        *megabytes(record),
    ]
