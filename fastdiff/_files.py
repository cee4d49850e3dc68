"""Files that are either the old version or the new one, whenever the process or the machine stops."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(*paths: Path) -> Iterator[list[Path]]:
    """Temporary files to be written in place of those at `paths`, in one folder.

    Each takes its place in one step (fsync, rename, fsync of the folder) when the block ends; none does if it fails.
    """
    # Fixed names: what a killed process left is overwritten.
    temporaries = [path.with_name(f".{path.name}.tmp") for path in paths]
    try:
        yield temporaries
        for temporary in temporaries:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        for temporary, path in zip(temporaries, paths, strict=True):
            os.replace(temporary, path)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
    if os.name == "posix":  # Windows cannot open a folder; there the rename alone is durable enough.
        folder = os.open(paths[0].parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def atomic_write(path: Path, content: bytes) -> None:
    """Replace the file at `path` with `content` in one step."""
    with replacing(path) as (temporary,):
        temporary.write_bytes(content)
