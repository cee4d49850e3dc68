"""What the plots of the benchmarks share, and the one of whole runs. As SVG text."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

# Wong's palette (Nature Methods 8, 441): told apart by colour-blind readers too.
COLORS = {
    "fastdiff": "#0072B2",
    "eager": "#D55E00",
    "diffusers": "#D55E00",
    "compile": "#E69F00",
    "openvino": "#009E73",
    "copy": "#999999",
}


def available() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def relative_times(title: str, groups: Mapping[str, Mapping[str, float]], base: str) -> str:
    """Bars of the times in each group, over that of `base`."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for times in groups.values() for name in times))
    figure = Figure(figsize=(10, 1.2 + 0.25 * len(groups) * len(names)), layout="constrained")
    axes, height = figure.subplots(), 0.8 / len(names)
    for i, name in enumerate(names):
        rows = [row for row, times in enumerate(groups.values()) if name in times]
        values = [list(groups.values())[row][name] / list(groups.values())[row][base] for row in rows]
        positions = [row + (i - (len(names) - 1) / 2) * height for row in rows]
        bars = axes.barh(positions, values, height, label=name, color=COLORS[name])
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
    axes.set_yticks(range(len(groups)), list(groups))
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel(f"time over that of {base} (lower is better)")
    axes.set_title(title)
    axes.legend()
    return svg(figure)


def svg(figure: Any) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text: small and searchable
        figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]
