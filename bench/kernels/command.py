"""`bench/run.py kernels`: arguments, the runs, and what is made of their records."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from functools import partial
from typing import Any

from bench import openvino_peer
from bench.arguments import add_run_arguments, allocators, allowed, one_of, thread_counts
from bench.kernels import OPS, plots
from bench.kernels.case import DIRECTIONS, DTYPES, LAYOUTS, Case
from bench.kernels.measure import ALL_BASELINES, BASELINES, CACHES, measure_case
from bench.kernels.summary import summarize
from bench.kernels.tables import run_tables, summary_tables
from bench.peak import measure_peak
from bench.plots import available as have_plots
from bench.report import page
from bench.runs import facts, measure, now, write_json, write_report
from bench.timing import Budget
from bench.worker import Job

HELP = "fused kernels against eager PyTorch, torch.compile, OpenVINO and a plain copy"
SCHEMA = "fastdiff.bench.kernels/1"
FULL = Budget(seconds=1.5, min_repetitions=7, max_repetitions=200)
QUICK = Budget(seconds=0.2, min_repetitions=3, max_repetitions=50)
SHAPE_CLASSES = tuple(dict.fromkeys(name for op in OPS.values() for name in op.shapes))
_INTRODUCTION = (
    "Times are medians in milliseconds, all contenders taking turns in one process. U is one pass over the activation; "
    "the copy is 2U. The floor is what a kernel must move that keeps nothing in the cache: of group_norm_silu "
    "3U forward and 5U backward, of sampler_step 5U; on a CPU at the pace of the copy, on a GPU at the bandwidth of "
    "its memory. "
    "The ratio is the better of eager and compile over fastdiff, the ov ratio OpenVINO over fastdiff (forward passes "
    "on a CPU). Of the peak: GFLOP/s against multiply-adds that wait for nothing, one core's times the threads. "
    "Warm: the same call ran just before. "
    "Cold: a buffer larger than the last-level cache was walked in between."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=thread_counts, default=(1,), metavar="N[,M...]", help="default: 1")
    parser.add_argument("--op", type=one_of(OPS), default=tuple(OPS), metavar="NAME[,...]", help=allowed(OPS))
    parser.add_argument(
        "--dtype", type=one_of(DTYPES), default=("fp32", "bf16"), metavar="DTYPE[,...]", help=allowed(DTYPES)
    )
    parser.add_argument(
        "--layout", type=one_of(LAYOUTS), default=tuple(LAYOUTS), metavar="LAYOUT[,...]", help=allowed(LAYOUTS)
    )
    parser.add_argument(
        "--direction", type=one_of(DIRECTIONS), default=DIRECTIONS, metavar="PASS[,...]", help=allowed(DIRECTIONS)
    )
    parser.add_argument(
        "--shape",
        type=_shapes,
        metavar="SHAPE[,...]",
        help=f"a class of shapes ({allowed(SHAPE_CLASSES)}) or sizes as NxCxHxW; default: all",
    )
    parser.add_argument(
        "--baselines",
        type=one_of(ALL_BASELINES),
        default=ALL_BASELINES,
        metavar="NAME[,...]",
        help=f"{allowed(ALL_BASELINES)}; the ratio is that of the better of the first two",
    )
    add_run_arguments(parser, "few repetitions")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print and write. Raises ValueError for arguments that do not go together, and WorkerFailed."""
    cases = select_cases(arguments)
    settings = allocators(arguments)
    baselines = chosen_baselines(arguments)
    measure_one = partial(measure_case, baselines=baselines, budget=QUICK if arguments.quick else FULL)
    jobs = [
        Job(cases, measure_one, arguments.device, threads, allocator)
        for allocator in settings
        for threads in arguments.threads
    ]
    runs = measure(jobs, lambda job, records: {"peak": _peak(job, records)}, run_tables)
    summary = summarize(runs)
    tables = summary_tables(summary)
    for table in tables:
        print(f"\n{table.text()}")
    created = now()
    if arguments.json:
        content = {
            "schema": SCHEMA,
            "created": created,
            "command": sys.argv,
            "quick": arguments.quick,
            "runs": runs,
            "summary": summary,
        }
        write_json(arguments.json, content)
    if arguments.report:
        write_report(arguments.report, _html(runs, tables, created))


def select_cases(arguments: argparse.Namespace) -> tuple[Case, ...]:
    """The cases that the arguments ask for. Raises ValueError when there is none, or an op cannot take a shape."""
    cases = []
    for name in arguments.op:
        op = OPS[name]
        shapes = [shape for known in op.shapes.values() for shape in known]
        if arguments.shape is not None:
            wanted = [op.shapes.get(entry, ()) if isinstance(entry, str) else (entry,) for entry in arguments.shape]
            shapes = list(dict.fromkeys(shape for group in wanted for shape in group))
        for shape in shapes:
            op.check_shape(shape)
        cases += [
            Case(name, direction, shape, op.class_of(shape), dtype, layout)
            for direction in arguments.direction
            if direction in op.directions
            for shape in shapes
            for dtype in arguments.dtype
            for layout in arguments.layout
            if layout in op.layouts
        ]
    if not cases:
        raise ValueError(f"nothing to measure: {allowed(arguments.op)} has no case with these passes and layouts")
    return tuple(cases)


def chosen_baselines(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The baselines that are asked for and there. Raises ValueError without one that the ratio can be of."""
    chosen = arguments.baselines
    if not set(chosen) & set(BASELINES):
        raise ValueError(f"--baselines needs {' or '.join(BASELINES)}, which the ratio is of; got {allowed(chosen)}")
    if openvino_peer.NAME not in chosen:
        return chosen
    if arguments.device == "cuda":
        reason = "it is measured on a CPU only"
    elif not openvino_peer.available():
        reason = "it is not installed; pip install openvino"
    else:
        return chosen
    print(f"without {openvino_peer.NAME}: {reason}", file=sys.stderr)
    return tuple(name for name in chosen if name != openvino_peer.NAME)


def _peak(job: Job, records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What GFLOP/s are compared with, if any are; the comparison goes into the records."""
    results = [(r["dtype"], r["caches"][cache]) for r in records for cache in CACHES]
    results = [(dtype, result) for dtype, result in results if "gflop_per_s" in result]
    if job.device == "cuda" or not results:
        return None
    peak = measure_peak().times(job.threads)
    if peak.gflop_per_s is not None:
        for dtype, result in results:
            result["percent_of_peak"] = 100 * result["gflop_per_s"] / peak.gflop_per_s[dtype]
    return asdict(peak)


def _html(runs: list[dict[str, Any]], tables: list[Any], created: str) -> str:
    sections = list(tables)
    for run in runs:
        sections += plots.run_plots(run) if have_plots() else []
        sections += run_tables(run)
    return page("fastdiff: kernels", _INTRODUCTION, facts(runs[0]["environment"], created), sections)


def _shapes(text: str) -> tuple[str | tuple[int, ...], ...]:
    entries: list[str | tuple[int, ...]] = []
    for part in text.split(","):
        sizes = part.split("x")
        if part in SHAPE_CLASSES:
            entries.append(part)
        elif all(size.isdecimal() and int(size) > 0 for size in sizes):
            entries.append(tuple(map(int, sizes)))
        else:
            raise argparse.ArgumentTypeError(f"{part!r} is neither NxCxHxW nor one of {allowed(SHAPE_CLASSES)}")
    return tuple(entries)
