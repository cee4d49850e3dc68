"""The runs of a benchmark, each a configuration in a process of its own, and the files that come of them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench import plots
from bench.arguments import allocators
from bench.device import Device
from bench.report import page
from bench.table import Table
from bench.worker import Job, run_job
from fastdiff._files import atomic_write

_BUSY_LOAD = 0.7

Json = dict[str, Any]


def jobs_for(
    arguments: argparse.Namespace, cases: Sequence[Any], measure_one: Callable[[Any, Device], Json]
) -> list[Job]:
    """The cases with each setting of the allocator and each number of threads."""
    return [
        Job(cases, measure_one, arguments.device, threads, allocator)
        for allocator in allocators(arguments)
        for threads in arguments.threads
    ]


def measure(
    jobs: list[Job], complete: Callable[[Job, list[Json]], Json], tables: Callable[[Json], list[Table]]
) -> list[Json]:
    """Run the jobs one after the other, printing the tables of each as soon as it is there.

    Args:
        complete: (job, its records) -> what belongs to the run beside them.
        tables: of a run.

    Raises:
        WorkerFailed: a configuration could not be measured.
    """
    load = os.getloadavg()[0]
    if load > _BUSY_LOAD:
        print(f"the machine is busy (load average {load:.1f}): times will scatter, trust the minima", file=sys.stderr)
    runs = []
    with tqdm(total=sum(len(job.cases) for job in jobs), unit="case", leave=False) as progress:
        for job in jobs:
            progress.set_description(f"{job.allocator} allocator, {threads_text(job.threads)}")
            stream = run_job(job)
            environment = next(stream)
            records = []
            for record in stream:
                records.append(record)
                progress.update()
            run = {
                "allocator": job.allocator,
                "threads": job.threads,
                "environment": environment,
                **complete(job, records),
                "records": records,
            }
            runs.append(run)
            for table in tables(run):
                tqdm.write(f"\n{table.text()}")
    return runs


def threads_text(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def write_json(path: Path, content: Json) -> None:
    atomic_write(path, (json.dumps(content, indent=1) + "\n").encode())
    print(f"\nwrote {path}")


def write_report(path: Path, html: str) -> None:
    atomic_write(path, html.encode())
    print(f"wrote {path}" + ("" if plots.available() else " (no plots: matplotlib is not installed)"))


def write_results(
    arguments: argparse.Namespace,
    runs: list[Json],
    name: str,
    subject: str,
    introduction: str,
    table: Callable[[Json], Table],
) -> None:
    """What was asked for of JSON, and of an HTML report whose plots show times over diffusers'.

    Args:
        name: of the benchmark.
        subject: the key of what a record is about.
    """
    created = now()
    if arguments.json:
        content = {"schema": f"fastdiff.bench.{name}/1", "created": created, "command": sys.argv}
        write_json(arguments.json, {**content, "quick": arguments.quick, "runs": runs})
    if arguments.report:
        sections: list[Table | str] = []
        for run in runs:
            if plots.available():
                groups = {f"{record[subject]} {record['dtype']}": medians(record) for record in run["records"]}
                sections.append(plots.relative_times(table(run).title, groups, "diffusers"))
            sections.append(table(run))
        heading = facts(runs[0]["environment"], created)
        write_report(arguments.report, page(f"fastdiff: {name}", introduction, heading, sections))


def medians(record: Json) -> dict[str, float]:
    """Milliseconds, by contender."""
    return {name: timing["median_ms"] for name, timing in record["contenders"].items()}


def megabytes(record: Json) -> list[str]:
    """The memory of a call of both sides, as cells of a table."""
    sizes = [record["peak_bytes"].get(name) for name in ("fastdiff", "diffusers")]
    return ["-" if size is None else f"{size / 1e6:.0f}" for size in sizes]


def facts(environment: Json, created: str) -> dict[str, str]:
    """What heads a report."""
    return {
        "measured": created,
        "device": environment["device_model"],
        "instruction set": str(environment["fastdiff"].get("cpu_isa")),
        "torch": environment["torch"],
        "fastdiff": environment["fastdiff"]["fastdiff"],
        "system": f"{environment['platform']}, {environment['cores']} cores",
        "command": " ".join(sys.argv),
    }
