"""Programs that the tests run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# The running Python's scripts first: pip puts cmake, ninja and fastdiff there.
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> str:
    """What a program prints, with PATH above unless there is an environment. RuntimeError with that if it fails."""
    environment = environment or {**os.environ, "PATH": PATH}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{result.stdout}")
    return result.stdout
