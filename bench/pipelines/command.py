"""`bench/run.py pipeline`: from a condition to an image, against diffusers' pipelines."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from bench.arguments import add_network_arguments, add_run_arguments
from bench.models import DTYPES
from bench.pipelines import PIPELINES
from bench.pipelines.measure import PARTS, PipelineCase, measure_pipeline
from bench.runs import jobs_for, measure, medians, megabytes, threads_text, write_results
from bench.table import Table
from bench.timing import Budget

HELP = "latent diffusion from a condition to an image, with random weights, against diffusers"
FULL = Budget(seconds=120.0, min_repetitions=3, max_repetitions=20)
QUICK = Budget(seconds=0.0, min_repetitions=1, max_repetitions=1)
_INTRODUCTION = (
    "One image with classifier-free guidance, from an encoded text or a class, drawn by the same sampler from the same "
    "latents with the same random weights in memory: medians of both sides taking turns in one process. Ratios are "
    "diffusers' time over fastdiff's. The rest is the sampler, guidance, and what a pipeline does around its networks. "
    "Memory is the most that a call takes beyond what was held before."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_network_arguments(parser, "pipeline", PIPELINES, DTYPES)
    parser.add_argument("--steps", type=int, default=4, metavar="N", help="of the sampler; default: 4")
    add_run_arguments(parser, "one repetition")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print and write. Raises ValueError for arguments that do not go together, and WorkerFailed."""
    if arguments.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {arguments.steps}")
    cases = tuple(PipelineCase(pipeline, dtype) for pipeline in arguments.pipeline for dtype in arguments.dtype)
    measure_one = partial(measure_pipeline, steps=arguments.steps, budget=QUICK if arguments.quick else FULL)
    runs = measure(jobs_for(arguments, cases, measure_one), lambda job, records: {}, lambda run: [table(run)])
    write_results(arguments, runs, "pipeline", "pipeline", _INTRODUCTION, table)


def table(run: dict[str, Any]) -> Table:
    steps = run["records"][0]["steps"]
    title = f"an image in {steps} steps, {run['allocator']} allocator, {threads_text(run['threads'])}"
    headers = ["pipeline", "dtype", "fastdiff ms", "diffusers ms", "ratio"]
    headers += [text for part in PARTS for text in (f"{part} ms", "ratio")] + ["MB", "diffusers MB"]
    return Table(title, headers, [_row(record) for record in run["records"]], text_columns=2)


def _row(record: dict[str, Any]) -> list[str]:
    times = medians(record)
    ours, theirs = times["fastdiff"], times["diffusers"]
    cells = [record["pipeline"], record["dtype"], f"{ours:.0f}", f"{theirs:.0f}", f"{theirs / ours:.2f}"]
    parts, their_parts = record["parts_ms"]["fastdiff"], record["parts_ms"]["diffusers"]
    for part in PARTS:
        cells += [f"{parts[part]:.1f}", f"{their_parts[part] / parts[part]:.2f}"]
    return [*cells, *megabytes(record)]
