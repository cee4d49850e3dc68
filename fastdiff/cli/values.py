"""Types of command-line values, for argparse."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def integer(smallest: int, largest: int) -> Callable[[str], int]:
    """Whole numbers from `smallest` to `largest`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not smallest <= value <= largest:
            raise argparse.ArgumentTypeError(f"must be a whole number from {smallest} to {largest}, got {text!r}")
        return value

    return parse
