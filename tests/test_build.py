"""The build as it is configured for its users; that it works is what all other tests show."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import cuda_compiler
import pytest

ROOT = Path(__file__).resolve().parent.parent

pytest.importorskip("cmake", reason="the build needs cmake")
pytest.importorskip("ninja", reason="the build needs ninja")


def configured(build: Path, **options: str) -> str:
    """build.ninja with these options of CMake."""
    tools = Path(sys.executable).parent  # pip puts cmake and ninja there
    definitions = [f"-D{name}={value}" for name, value in options.items()]
    command = [tools / "cmake", "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}", "-S", ROOT, "-B", build]
    cuda_compiler.run([*command, f"-DPython_EXECUTABLE={sys.executable}", *definitions])
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
