"""Running an op's tests on the other CPU kernels of the build."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import fastdiff


def run_tests(isa: str, file: str, selection: str) -> None:
    """Run the tests of `file` that `selection` names in a process of their own, on the kernels of `isa`."""
    if isa == fastdiff.build_info()["cpu_isa"]:
        pytest.skip("in use: all other tests run it")
    if isa not in fastdiff.build_info()["cpu_isas_supported"]:
        pytest.skip(f"this processor has no {isa}")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", file, "-k", f"not cuda and ({selection})"]
    environment = {**os.environ, "FASTDIFF_CPU_ISA": isa, "PYTEST_ADDOPTS": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout
