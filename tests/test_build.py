"""The build as it is configured for its users; that it works is what all other tests show."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import cuda_compiler
import pytest
import tools

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [
    pytest.mark.skipif(not shutil.which(tool, path=tools.PATH), reason=f"the build needs {tool}")
    for tool in ("cmake", "ninja", "c++")
]


def configured(build: Path, **options: str) -> str:
    """build.ninja with these options of CMake."""
    definitions = [f"-D{name}={value}" for name, value in options.items()]
    command = ["cmake", "-G", "Ninja", "-S", ROOT, "-B", build, f"-DPython_EXECUTABLE={sys.executable}"]
    tools.run([*command, *definitions])
    return (build / "build.ninja").read_text()


@pytest.mark.skipif(cuda_compiler.find_nvcc() is None, reason=cuda_compiler.MISSING)
@pytest.mark.parametrize(
    ("options", "compiled_for"),
    [
        ({}, {"sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "compute_120,sm_120"}),
        ({"CMAKE_CUDA_ARCHITECTURES": "90-real"}, {"sm_90"}),
    ],
    ids=["default", "chosen"],
)
def test_architectures(tmp_path, options, compiled_for) -> None:
    nvcc = {"CMAKE_CUDA_COMPILER": cuda_compiler.find_nvcc()}
    assert set(re.findall(r"code=\[([^]]*)\]", configured(tmp_path, **nvcc, **options))) == compiled_for


def test_without_cuda(tmp_path) -> None:
    assert not re.search(r"\.cu\b", configured(tmp_path, FASTDIFF_CUDA="off"))
