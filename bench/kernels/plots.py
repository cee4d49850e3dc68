"""The plots of the kernel benchmark, as SVG text."""

from __future__ import annotations

from typing import Any

from bench.kernels.measure import CACHES
from bench.kernels.tables import run_title
from bench.plots import COLORS, svg

Json = dict[str, Any]
_MARKERS = {"fastdiff": "o", "eager": "s", "compile": "^", "openvino": "D", "copy": "|"}


def run_plots(run: Json) -> list[str]:
    """For each op and direction: times of all contenders over the floor, and fastdiff's ratio, side by side."""
    groups = dict.fromkeys((record["op"], record["direction"]) for record in run["records"])
    return [_plot(run, op, direction) for op, direction in groups]


def _plot(run: Json, op: str, direction: str) -> str:
    from matplotlib.figure import Figure

    records = [record for record in run["records"] if (record["op"], record["direction"]) == (op, direction)]
    labels = ["{} {dtype} {layout}".format("x".join(map(str, r["shape"])), **r) for r in records]
    figure = Figure(figsize=(12, 1.6 + 0.32 * len(records)), layout="constrained")
    over_floor, ratio = figure.subplots(1, 2, sharey=True)
    _draw_over_floor(over_floor, records)
    _draw_ratio(ratio, records)
    over_floor.set_yticks(range(len(records)), labels)
    over_floor.invert_yaxis()
    figure.suptitle(f"{op} {direction}: {run_title(run)}")
    return svg(figure)


def _draw_over_floor(axes: Any, records: list[Json]) -> None:
    results = [record["caches"]["warm"] for record in records]
    for name in dict.fromkeys(name for result in results for name in result["contenders"]):
        rows = [row for row, result in enumerate(results) if name in result["contenders"]]
        values = [results[row]["contenders"][name]["median_ms"] / results[row]["floor_ms"] for row in rows]
        axes.plot(values, rows, _MARKERS[name], color=COLORS[name], label=name, markersize=7)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel(f"time over the {records[0]['floor_units']}U floor, warm cache (lower is better)")
    axes.grid(axis="x", which="both", alpha=0.3)
    axes.legend()


def _draw_ratio(axes: Any, records: list[Json]) -> None:
    height = 0.8 / len(CACHES)
    for i, cache in enumerate(CACHES):
        positions = [row + (i - 0.5) * height for row in range(len(records))]
        values = [record["caches"][cache]["ratio"] for record in records]
        bars = axes.barh(positions, values, height, label=f"{cache} cache", color=("#0072B2", "#56B4E9")[i])
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("times faster than the better of eager and compile (higher is better)")
    axes.legend()
