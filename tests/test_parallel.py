"""How CPU kernels share out their work: every item once, whatever threads come, and whenever they come."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tools

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")
def test_every_item_is_done_once(tmp_path) -> None:
    program = tmp_path / "parallel"
    flags = ("-std=c++17", "-O2", "-pthread", "-DFASTDIFF_ISA=portable", f"-I{ROOT / 'csrc'}")
    tools.run(["c++", *flags, Path(__file__).with_name("parallel.cpp"), "-o", program])
    assert tools.run([program]) == ""
