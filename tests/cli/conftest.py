from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tools
import torch

from fastdiff.cli import main
from fastdiff.data import ICONS


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    def failed_in_one_line(self, code: int = 1) -> str:
        """The one line on stderr, after a check that it is the only one and that nothing else went wrong."""
        assert self.code == code, self
        lines = self.err.strip().splitlines()
        assert len(lines) == 1 and "Traceback" not in self.err, self.err
        assert lines[0].startswith("fastdiff") and ": error: " in lines[0]
        assert len(lines[0]) < 600
        return lines[0]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def call(*arguments: object) -> Result:
        code = main([str(argument) for argument in arguments])
        return Result(code, *capfd.readouterr())

    return call


@pytest.fixture(autouse=True)
def threads_restored() -> Iterator[None]:
    """--threads sets torch's number of threads for the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def icons(tmp_path: Path) -> Path:
    """A copy of the shipped checkpoint, to be damaged."""
    return shutil.copytree(ICONS, tmp_path / "icons")


@pytest.fixture
def script() -> str:
    """The installed console script."""
    path = shutil.which("fastdiff", path=tools.PATH)
    if path is None:
        pytest.skip("the console script is not installed")
    return path
