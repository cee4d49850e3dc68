"""Draw what guidance does to two classes known in closed form: guidance.png beside this file.

python docs/figures/plot_guidance.py
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from guided_mixture import CLASS, KINDS, OTHER, Effect, draw, effect, guidance  # noqa: E402

PLOT = ROOT / "docs" / "figures" / "guidance.png"
SAMPLES, SHOWN_SCALE, SCALES = 2000, 3.0, (1.5, 2.0, 3.0, 4.0)
X, Y = (-0.8, 1.5), (-0.25, 1.42)  # what the panels show of the plane
PIXELS = 300
INK, GREY, OF_CLASS, OF_OTHER = "#1d1d1f", "#6e6c66", "#0072B2", "#E69F00"
COLOURS = {"classifier-free": "#D55E00", "interval": "#CC79A7", "autoguidance": "#009E73"}
NAMES = {
    "classifier-free": "Classifier-free guidance",
    "interval": "Classifier-free, in an interval",
    "autoguidance": "Autoguidance",
}


def main() -> None:
    figure = Figure(figsize=(11.6, 6.4))
    (first, plain, free), (interval, auto, summary) = figure.subplots(2, 3)
    figure.subplots_adjust(left=0.01, right=0.955, top=0.95, bottom=0.07, wspace=0.05, hspace=0.25)
    own, other = (data.sample(SAMPLES, torch.Generator().manual_seed(0)) for data in (CLASS, OTHER))
    panel(first, own, INK, "The class", "and another, in orange")
    first.scatter(*other.T, s=1.5, color=OF_OTHER, linewidths=0)

    unguided = draw(None, SAMPLES)
    start = effect(unguided)
    panel(plain, unguided, INK, "No guidance", in_words(start))
    paths: dict[str, list[Effect]] = {}
    for axes, kind in zip((free, interval, auto), KINDS, strict=True):
        drawn = {scale: draw(guidance(kind, scale), SAMPLES) for scale in SCALES}
        paths[kind] = [start, *map(effect, drawn.values())]
        shown = drawn[SHOWN_SCALE]
        panel(axes, shown, COLOURS[kind], f"{NAMES[kind]}, scale {SHOWN_SCALE:g}", in_words(effect(shown)))
    compare(summary, paths, effect(own))
    figure.savefig(PLOT, dpi=120, metadata={"Software": None})


def in_words(found: Effect) -> str:
    return f"{found.off_class:.0%} off the class, spread {found.spread:.2f}, {found.lost} of 31 branches lost"


def panel(axes: Axes, x: Tensor, colour: str, title: str, text: str) -> None:
    """Samples x (N, 2) over the shapes of both classes."""
    across, up = (torch.linspace(*limits, PIXELS, dtype=torch.float64) for limits in (X, Y))
    for i, shade in enumerate((OF_CLASS, OF_OTHER)):
        axes.contourf(across, up, shapes()[i], levels=[-2.2, 100], colors=[pale(shade)])
    axes.scatter(*x.T, s=1.5, color=colour, linewidths=0)
    axes.set(xlim=X, ylim=Y, xticks=[], yticks=[], aspect="equal")
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(text, loc="left", fontsize=9, color=GREY)
    for spine in axes.spines.values():
        spine.set_color("#dedbd2")


@functools.cache
def shapes() -> list[Tensor]:
    """(PIXELS, PIXELS) log density of each class, slightly blurred."""
    plane = torch.cartesian_prod(*(torch.linspace(*limits, PIXELS, dtype=torch.float64) for limits in (X, Y)))
    blur = torch.tensor(0.025, dtype=torch.float64)
    return [data.log_density(plane, torch.ones_like(blur), blur).view(PIXELS, PIXELS).T for data in (CLASS, OTHER)]


def compare(axes: Axes, paths: dict[str, list[Effect]], own: Effect) -> None:
    """Of every kind, how both measures move with the scale."""
    for kind, path in paths.items():
        off, spread = [100 * found.off_class for found in path], [found.spread for found in path]
        axes.plot(off, spread, "o-", clip_on=False, color=COLOURS[kind], markersize=4)
        axes.annotate(NAMES[kind].removesuffix(" guidance"), (off[-1], spread[-1]), **beside(kind), color=COLOURS[kind])
    axes.plot(100 * own.off_class, own.spread, "*", color=INK, markersize=11)
    axes.annotate("the class", (100 * own.off_class, own.spread), (6, 8), textcoords="offset points", fontsize=9)
    start = next(iter(paths.values()))[0]
    axes.annotate("none", (100 * start.off_class, start.spread), (0, 8), textcoords="offset points", fontsize=9)
    axes.set_title(f"At scales 1 (none), {', '.join(f'{scale:g}' for scale in SCALES)}", loc="left", fontsize=11)
    axes.set_xlabel("samples off the class, %", fontsize=9, color=GREY)
    axes.yaxis.tick_right()
    axes.yaxis.set_label_position("right")
    axes.set_ylabel("spread, in that of the class", fontsize=9, color=GREY)
    axes.tick_params(labelsize=9)
    axes.set(xlim=(-3, 70), ylim=(0.55, 1.12))
    axes.grid(alpha=0.3)
    axes.spines[["top", "left"]].set_visible(False)


def beside(kind: str) -> dict:
    place = {"classifier-free": (-7, -4), "interval": (4, -14), "autoguidance": (-2, -16)}[kind]
    side = "left" if kind == "autoguidance" else "right"
    return {"xytext": place, "textcoords": "offset points", "fontsize": 9, "ha": side}


def pale(colour: str) -> tuple[float, ...]:
    return tuple(1 - 0.22 * (1 - channel) for channel in to_rgb(colour))


if __name__ == "__main__":
    main()
