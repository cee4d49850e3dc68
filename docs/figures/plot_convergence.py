"""Measure how fast the samplers converge: the table in docs/sampling.md and the plot beside this file.

python docs/figures/plot_convergence.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from convergence import CASES, UNIFORM, errors, exact_end, slope  # noqa: E402

PAGE, PLOT = ROOT / "docs" / "sampling.md", ROOT / "docs" / "figures" / "convergence.svg"
STEPS = (15, 30, 60, 120, 240)
PLOTTED = {
    "ddim": "#999999",
    "heun": "#E69F00",
    "dpmpp_2m": "#56B4E9",
    "dpmpp_3m_uncorrected": "#D55E00",
    "dpmpp_3m": "#009E73",
    "unipc": "#0072B2",
}
BEGIN, END = "<!-- measured table -->", "<!-- end of measured table -->"


def main() -> None:
    end = exact_end()
    cases = [*CASES, ("dpmpp_3m_uncorrected", {}, 2)]
    measured = [(*case, errors(*case[:2], end, STEPS)) for case in cases]
    page = PAGE.read_text(encoding="utf-8")
    table = "\n".join([BEGIN, "", *table_lines(measured), "", END])
    PAGE.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: table, page, flags=re.DOTALL), encoding="utf-8")
    plot(measured)


def table_lines(measured: list) -> list[str]:
    lines = ["| sampler | options | " + " | ".join(f"N = {n}" for n in STEPS) + " | slope | theory |"]
    lines.append("|---|---|" + "---|" * (len(STEPS) + 2))
    for sampler, options, order, found in measured:
        shown = ", ".join(f"{name}={value}" for name, value in options.items())
        numbers = " | ".join(f"{error:.1e}" for error in found)
        lines.append(f"| {sampler} | {shown} | {numbers} | {slope(*found[-2:]):.2f} | {order} |")
    return lines


def plot(measured: list) -> None:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    drawn = set()
    for sampler, options, _, found in measured:
        chosen = (
            sampler in PLOTTED and sampler not in drawn and options.get("order", 3) == 3 and "variant" not in options
        )
        if chosen and options != UNIFORM:
            drawn.add(sampler)
            label = f"{sampler} {options['order']}" if "order" in options else sampler
            axes.loglog(STEPS, found, "o-", color=PLOTTED[sampler], label=label)
    axes.set_xlabel("steps")
    axes.set_ylabel("RMS distance from the exact flow")
    axes.set_xticks(STEPS, [str(n) for n in STEPS], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastdiff"}):
        figure.savefig(PLOT, metadata={"Date": None})


if __name__ == "__main__":
    main()
