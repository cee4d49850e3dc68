"""Arguments that the benchmarks share: argparse types, and what goes together."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch


def add_run_arguments(parser: argparse.ArgumentParser, quick: str) -> None:
    """How to measure, and what to write. `quick` says what less there is of."""
    parser.add_argument(
        "--allocator",
        choices=("tuned", "default", "both"),
        help="setting of glibc's malloc, on a CPU (see fastdiff.tune_allocator); default: both",
    )
    parser.add_argument("--quick", action="store_true", help=f"{quick}: a first look, not a result")
    parser.add_argument("--json", type=writable, metavar="FILE", help="write everything measured")
    parser.add_argument("--report", type=writable, metavar="FILE.html", help="write tables and plots as one HTML file")


def add_network_arguments(
    parser: argparse.ArgumentParser, subject: str, names: Iterable[str], dtypes: Iterable[str]
) -> None:
    """What to run: things of these names, under ``--<subject>``, in these dtypes; default all of them."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=thread_counts, default=(torch.get_num_threads(),), metavar="N[,M...]")
    parser.add_argument(
        f"--{subject}", type=one_of(names), default=tuple(names), metavar="NAME[,...]", help=allowed(names)
    )
    parser.add_argument("--dtype", type=one_of(dtypes), default=tuple(dtypes), metavar="DTYPE[,...]")


def allocators(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The settings of glibc's malloc to measure with. Raises ValueError for a device without, or that is not there."""
    if arguments.device == "cuda":
        if arguments.allocator is not None:
            raise ValueError("--allocator is a setting of the CPU's memory; leave it out with --device cuda")
        if not torch.cuda.is_available():
            raise ValueError(f"--device cuda: torch {torch.__version__} sees no CUDA device")
        return ("default",)
    if arguments.allocator in ("tuned", "default"):
        return (arguments.allocator,)
    if platform.libc_ver()[0] != "glibc":
        print("the C library is not glibc: only its default allocator is measured", file=sys.stderr)
        return ("default",)
    return ("tuned", "default")


def allowed(names: Any) -> str:
    return ", ".join(names)


def one_of(names: Any) -> Any:
    """An argparse type: a comma-separated list of these names."""

    def parse(text: str) -> tuple[str, ...]:
        chosen = tuple(dict.fromkeys(text.split(",")))
        for name in chosen:
            if name not in names:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {allowed(names)}")
        return chosen

    return parse


def thread_counts(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"must be positive integers separated by commas, got {text!r}")
    return tuple(dict.fromkeys(map(int, parts)))


def writable(text: str) -> Path:
    """A path that can be written: known before the minutes of measuring, not after."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"no permission to write in {path.parent}")
    return path
