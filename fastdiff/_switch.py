"""The process-wide switch between the kernels and their pure-PyTorch definitions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

reference_depth = 0


@contextmanager
def use_reference() -> Iterator[None]:
    """Run every fastdiff op in pure PyTorch inside this block, to bisect a difference or to compare speed.

    The switch is process-wide, nests, and is seen by ``torch.compile`` (which recompiles once for each side).

    >>> with fastdiff.use_reference():
    ...     y = fastdiff.ops.group_norm_silu(torch.randn(1, 32, 8, 8), 8)
    """
    global reference_depth
    reference_depth += 1
    try:
        yield
    finally:
        reference_depth -= 1
