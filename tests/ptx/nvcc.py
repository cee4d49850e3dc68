"""PTX from CUDA sources by nvcc, cached in build/ptx by the content of the sources."""

from __future__ import annotations

import copy
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from cuda_compiler import MISSING, find_nvcc, nvcc, nvcc_version
from filelock import FileLock
from ptx.machine import Program
from ptx.syntax import Module, PtxError

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / "build" / "ptx"
KERNEL_SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
# One at a time: the kernels have one code path for all architectures, but CUDA's headers choose instructions by it.
ARCHITECTURE = os.environ.get("FASTDIFF_PTX_ARCH", "80")
NVCC_FLAGS = ("-std=c++17", "-O3", f"-arch=compute_{ARCHITECTURE}")


def missing_tools() -> str | None:
    """Why nothing can be compiled here, or None if it can."""
    if find_nvcc() is None:
        return MISSING
    if shutil.which("c++filt") is None:
        return "c++filt was not found: install binutils"
    return None


def compile_ptx(source: Path) -> str:
    """The PTX of a source; reused while the compiler and all sources stay the same."""
    target = CACHE / f"{source.stem}-compute_{ARCHITECTURE}-{_content_key(source)}.ptx"
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not target.exists():
            partial = target.with_suffix(".partial")
            nvcc(*NVCC_FLAGS, f"-I{ROOT / 'csrc'}", "-ptx", "-o", partial, source)
            partial.rename(target)
    return target.read_text()


class Library:
    """The kernels of several PTX files, by their demangled names."""

    def __init__(self, texts: list[str]) -> None:
        self._modules = [Module(text) for text in texts]
        mangled = [(name, module) for module in self._modules for name in module.names]
        names = demangle([name for name, _ in mangled])
        self._found = dict(zip(names, mangled, strict=True))
        if len(self._found) != len(mangled):
            raise PtxError("two kernels have the same name")
        self._programs: dict[str, Program] = {}

    @property
    def names(self) -> list[str]:
        return sorted(self._found)

    def program(self, name: str) -> Program:
        if name not in self._found:
            raise PtxError(f"no PTX of the kernel {name}")
        if name not in self._programs:
            mangled, module = self._found[name]
            self._programs[name] = Program(module.kernel(mangled))
        return self._programs[name]

    def replaced(self, name: str, program: Program) -> Library:
        """The same kernels, but for one."""
        other = copy.copy(self)
        other._programs = {**self._programs, name: program}
        return other


def demangle(names: list[str]) -> list[str]:
    output = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return output.splitlines()


def _content_key(source: Path) -> str:
    """Of the compiler, its flags, and the source with all that it includes of this repository."""
    digest = hashlib.sha256(repr((nvcc_version(), NVCC_FLAGS)).encode())
    pending, seen = [source], {source}
    while pending:
        content = pending.pop().read_bytes()
        digest.update(hashlib.sha256(content).digest())
        for name in re.findall(rb'^\s*#\s*include\s*"([^"]+)"', content, re.MULTILINE):
            included = ROOT / "csrc" / name.decode()
            if included.exists() and included not in seen:
                seen.add(included)
                pending.append(included)
    return digest.hexdigest()[:16]
