"""The tables of the kernel benchmark, for the screen and the report."""

from __future__ import annotations

from typing import Any

from bench import openvino_peer
from bench.kernels.measure import ALL_BASELINES, CACHES
from bench.runs import threads_text
from bench.table import Table

Json = dict[str, Any]


def run_title(run: Json) -> str:
    environment = run["environment"]
    if environment["device"] == "cuda":
        return f"{environment['device_model']}, {environment['peak_gb_per_s']:.0f} GB/s"
    isa = environment["fastdiff"].get("cpu_isa")
    return f"{run['allocator']} allocator, {threads_text(run['threads'])}, {environment['device_model']} ({isa})"


def run_tables(run: Json) -> list[Table]:
    """A table for every op."""
    ops = dict.fromkeys(record["op"] for record in run["records"])
    return [_op_table(run, [record for record in run["records"] if record["op"] == op]) for op in ops]


def _op_table(run: Json, records: list[Json]) -> Table:
    """One line a case and cache state. Times are medians in ms."""
    results = [record["caches"][cache] for record in records for cache in CACHES]
    measured = [name for name in ALL_BASELINES if any(name in result["contenders"] for result in results)]
    contenders = ["fastdiff", *measured, "copy"]
    ratios = {"ratio": "ratio"} | ({"ov ratio": "openvino_ratio"} if openvino_peer.NAME in measured else {})
    speeds = {}
    if any("gflop_per_s" in result for result in results):
        speeds["GFLOP/s"] = "gflop_per_s"
        if run["peak"]:
            speeds["% peak"] = "percent_of_peak"
    floor_headers = ["3U", "floor", "x floor", "GB/s", "% floor"]
    headers = ["shape", "dtype", "layout", "pass", "cache", *contenders, *ratios, *floor_headers, *speeds]
    rows = [
        _row(record, cache, contenders, list(ratios.values()), list(speeds.values()))
        for record in records
        for cache in CACHES
    ]
    title = f"{records[0]['op']}: {run_title(run)}"
    return Table(title, headers, rows, text_columns=5, notes=_notes(run, records, "% peak" in speeds))


def _row(record: Json, cache: str, contenders: list[str], ratios: list[str], speeds: list[str]) -> list[str]:
    result = record["caches"][cache]
    timings = result["contenders"]
    return [
        "x".join(map(str, record["shape"])),
        record["dtype"],
        record["layout"],
        record["direction"],
        cache,
        *(_milliseconds(timings[name]["median_ms"]) if name in timings else "-" for name in contenders),
        *(f"{result[name]:.2f}" if name in result else "-" for name in ratios),
        _milliseconds(result["floor_3u_ms"]),
        f"{record['floor_units']}U",
        f"{result['times_floor']:.2f}",
        f"{result['gb_per_s']:.1f}",
        f"{result['percent_of_floor']:.0f}",
        *(f"{result[name]:.0f}" if name in result else "-" for name in speeds),
    ]


def _notes(run: Json, records: list[Json], with_peak: bool) -> tuple[str, ...]:
    notes = [f"without {name}: {reason}" for record in records for name, reason in record["left_out"].items()]
    if with_peak:
        peak = run["peak"]["gflop_per_s"]
        if peak is None:
            notes.append(f"no peak: {run['peak']['reason']}")
        else:
            dtypes = dict.fromkeys(record["dtype"] for record in records)
            values = ", ".join(f"{dtype} {peak[dtype]:.0f}" for dtype in dtypes)
            notes.append(f"peak of {threads_text(run['threads'])}, in GFLOP/s: {values}")
    return tuple(dict.fromkeys(notes))


def summary_tables(summary: Json) -> list[Table]:
    tables = [_ratio_table("Fastdiff against the better of eager and compile, same settings", summary["ratios"])]
    if summary["against_default"]:
        title = "Fastdiff with the tuned allocator against the better of eager and compile with the default one"
        tables.append(_ratio_table(title, summary["against_default"]))
    if summary["scaling"]:
        tables.append(_scaling_table(summary["scaling"]))
    return tables


def _ratio_table(title: str, entries: list[Json]) -> Table:
    classes = list(dict.fromkeys(name for entry in entries for name in entry["minimum"]))
    means = ["geometric mean", "by minima"]
    settings = ["allocator", "threads", "op", "pass", "dtype", "cache"]
    headers = [*settings, *means, *(f"least {name}" for name in classes)]
    rows = []
    for entry in entries:
        least = [f"{entry['minimum'][name]:.2f}" if name in entry["minimum"] else "-" for name in classes]
        means = [f"{entry['geometric_mean']:.2f}", f"{entry['geometric_mean_of_minima']:.2f}"]
        fields = ("allocator", "threads", "op", "direction", "dtype", "cache")
        rows.append([*(str(entry[field]) for field in fields), *means, *least])
    return Table(title, headers, rows, text_columns=len(settings))


def _scaling_table(entries: list[Json]) -> Table:
    columns = [
        ("fastdiff", "speedup"),
        ("fastdiff", "speedup_of_minima"),
        ("copy", "speedup"),
        ("copy", "speedup_of_minima"),
    ]
    titles = ["fastdiff", "by minima", "copy", "by minima"]
    headers = ["allocator", "threads", "op", "shape", "dtype", "layout", "pass", "cache", *titles]
    rows = []
    for entry in entries:
        fewer, more = entry["threads"]
        shape = "x".join(map(str, entry["shape"]))
        case = [entry["op"], shape, entry["dtype"], entry["layout"], entry["direction"]]
        speedups = [f"{entry[statistic][name]:.2f}" for name, statistic in columns]
        rows.append([entry["allocator"], f"{more} over {fewer}", *case, entry["cache"], *speedups])
    return Table("Speed-up by threads (the copy shows what memory allows)", headers, rows, text_columns=8)


def _milliseconds(value: float) -> str:
    return f"{value:.1f}" if value >= 100 else f"{value:.3f}"
