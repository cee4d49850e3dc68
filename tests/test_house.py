"""The order of the house: who may include and import whom, what is packaged, and that names and versions agree."""

from __future__ import annotations

import ast
import fnmatch
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tools

import fastdiff

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fastdiff"
OPS = sorted(path.stem for path in (PACKAGE / "reference").glob("*.py") if path.stem != "__init__")

# What each part of the package may import; those not named here are the foundations, free for all.
LAYERS = {
    "reference": set(),
    "ops": {"reference"},
    "nn": {"ops"},
    "models": {"nn", "ops"},
    "diffusion": set(),
    "sampling": {"diffusion", "ops"},
    "pipelines": {"diffusion", "models", "ops", "sampling"},
    "training": {"diffusion", "models", "ops", "sampling"},
    "integrations": {"diffusion", "ops", "sampling"},
    "cli": {"allocator", "data", "diffusion", "models", "ops", "reference", "sampling", "training"},
}
FOUNDATIONS = {"_build_info", "_dispatch", "_extension", "_files", "_switch", "_version"}


def sources(folder: str, *suffixes: str) -> list[Path]:
    found = [path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    assert found
    return found


def includes(path: Path) -> list[str]:
    return re.findall(r"^\s*#\s*include\s*[<\"]([^>\"]+)[>\"]", path.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("folder", ("csrc/common", "csrc/cpu", "csrc/cuda", "csrc/emulator"))
def test_kernels_know_no_framework(folder: str) -> None:
    forbidden = ("torch/", "ATen/", "c10/", "pybind11/", "Python.h", "bindings/")
    for path in sources(folder, ".h", ".cpp", ".cu", ".cuh"):
        assert not [name for name in includes(path) if name.startswith(forbidden)], path


def test_only_the_platform_header_includes_cuda() -> None:
    """All else in csrc/cuda must compile without the CUDA toolkit's language, for the emulator."""
    for path in sources("csrc/cuda", ".h", ".cpp", ".cu", ".cuh"):
        toolkit = [name for name in includes(path) if re.match(r"(cuda[_/]?(runtime|fp|bf)|cooperative_|mma\.h)", name)]
        assert not toolkit or path.name == "platform.cuh", path


def test_backends_know_nothing_of_each_other() -> None:
    for folder, other in (("csrc/cpu", "cuda/"), ("csrc/cuda", "cpu/"), ("csrc/common", ("cpu/", "cuda/"))):
        for path in sources(folder, ".h", ".cpp", ".cu", ".cuh"):
            assert not [name for name in includes(path) if name.startswith(other)], path


def imported_parts(path: Path) -> set[str]:
    """The parts of fastdiff that a module imports, as written at any depth."""
    parts: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        parts |= {name.split(".")[1] for name in names if name.startswith("fastdiff.")}
    return parts


@pytest.mark.parametrize("part", LAYERS)
def test_imports_run_downwards(part: str) -> None:
    public = set(LAYERS) | {"allocator", "data"}
    for path in (PACKAGE / part).rglob("*.py"):
        upwards = (imported_parts(path) & public) - LAYERS[part] - {part}
        assert not upwards, f"{path.relative_to(ROOT)} imports {sorted(upwards)}"


def test_every_part_has_its_layer() -> None:
    parts = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert parts - {"data"} <= set(LAYERS)
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    assert modules <= FOUNDATIONS | {"__init__", "__main__", "allocator"}


def test_reference_and_ops_offer_the_same_names() -> None:
    names = fastdiff.reference.__all__
    assert fastdiff.ops.__all__ == names == sorted(names)
    assert sorted({getattr(fastdiff.reference, name).__module__.split(".")[-1] for name in names}) == OPS


@pytest.mark.parametrize("op", OPS)
def test_op_has_its_files(op: str) -> None:
    assert (PACKAGE / "ops" / f"{op}.py").exists()
    assert (ROOT / "tests" / "ops" / f"test_{op}.py").exists()
    for name in ("csrc/bindings/{}.cpp", "csrc/common/{}.h", "csrc/cpu/{}.cpp", "csrc/cuda/{}.cu"):
        assert (ROOT / name.format(op)).exists()


def test_data_and_typing_marker_are_packaged() -> None:
    tomllib = pytest.importorskip("tomllib")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    patterns = settings["package-data"]["fastdiff"]
    shipped = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_file()]
    shipped = [path for path in shipped if path.suffix not in (".py", ".pyc", ".so") and path.name[0] != "."]
    assert Path("py.typed") in shipped
    for path in shipped:
        assert any(fnmatch.fnmatch(str(path), pattern.replace("**/", "")) for pattern in patterns), path


def test_versions_agree() -> None:
    assert importlib.metadata.version("fastdiff") == fastdiff.__version__
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest and newest[1] == fastdiff.__version__


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf was not found: install binutils")
def test_extension_is_bound_to_no_torch() -> None:
    """It asks for two of torch's libraries, whoever has loaded them, and for none of CUDA's."""
    command = ["readelf", "--dynamic", "--wide", fastdiff._extension.require().__file__]
    dynamic = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic))
    assert {name for name in needed if re.match("lib(torch|c10|cu|nv)", name)} == {"libc10.so", "libtorch_cpu.so"}
    assert "RUNPATH" not in dynamic and "RPATH" not in dynamic


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have one instruction set only")
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm was not found: install binutils")
def test_instruction_sets_share_no_function(tmp_path: Path) -> None:
    """A function that the linker may merge with that of other sources would bring AVX-512 to a machine without it."""
    configure = ["cmake", "-G", "Ninja", "-S", ROOT, "-B", tmp_path, f"-DPython_EXECUTABLE={sys.executable}"]
    build = ["cmake", "--build", tmp_path, "--target", "fastdiff_cpu_avx512", "-j", os.environ.get("MAX_JOBS", "2")]
    for command in ([*configure, "-DFASTDIFF_CUDA=off"], build):
        tools.run(command)
    objects = sorted(tmp_path.rglob("fastdiff_cpu_avx512.dir/**/*.o"))
    assert objects
    for path in objects:
        assert mergeable_symbols(path) == [], path.name


def test_mergeable_symbols_are_seen(tmp_path: Path) -> None:
    source = tmp_path / "template.cpp"
    source.write_text("template <class T> T twice(T x) { return 2 * x; } template int twice<int>(int);")
    subprocess.run(["c++", "-c", source, "-o", tmp_path / "template.o"], check=True)
    assert len(mergeable_symbols(tmp_path / "template.o")) == 1


def mergeable_symbols(path: Path) -> list[str]:
    """The weak and unique symbols that an object file defines, constants left out."""
    command = ["nm", "--defined-only", "--demangle", str(path)]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert symbols
    return [line for line in symbols if line.split()[1] in ("W", "u")]
