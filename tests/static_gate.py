"""What the compiled CUDA kernels are made of: registers, spills, local memory and access widths, read without a GPU.

Each csrc/cuda/*.cu is compiled to a cubin for every architecture, then read with cuobjdump (the version that
pyproject.toml pins, from PyPI). `python tests/static_gate.py` prints the table.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cuda_compiler import MISSING, find_nvcc, nvcc, nvcc_version
from filelock import FileLock
from tools import run

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "cubin"
ARCHITECTURES = (80, 90, 100, 120)
NVCC_FLAGS = ("-std=c++17", "-O3", "-Xptxas=-v")


@dataclass(frozen=True)
class Multiprocessor:
    """What the blocks on one multiprocessor share (CUDA programming guide, compute capabilities)."""

    shared_bytes: int
    threads: int
    blocks: int
    registers: int = 65536


MULTIPROCESSORS = {
    80: Multiprocessor(shared_bytes=164 * 1024, threads=2048, blocks=32),
    90: Multiprocessor(shared_bytes=228 * 1024, threads=2048, blocks=32),
    100: Multiprocessor(shared_bytes=228 * 1024, threads=2048, blocks=32),
    120: Multiprocessor(shared_bytes=100 * 1024, threads=1536, blocks=24),
}
_RESERVED_SHARED_BYTES = 1024  # taken by the system from each block
_REGISTERS_PER_ALLOCATION = 256  # a warp's registers are given in units of this


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel on one architecture. `instructions` counts SASS operations by full name, as LDG.E.128."""

    name: str
    architecture: int
    registers: int
    shared_bytes: int  # static
    stack_bytes: int
    spill_bytes: int  # stores and loads
    max_threads: int  # of its __launch_bounds__, 0 without
    instructions: collections.Counter[str]

    def count(self, pattern: str) -> int:
        """Number of instructions whose whole name matches the regular expression."""
        return sum(number for name, number in self.instructions.items() if re.fullmatch(pattern, name))

    @property
    def local_accesses(self) -> int:
        return self.count(r"(LDL|STL)(\..*)?")

    @property
    def loads_128(self) -> int:
        return self.count(r"LDG\.(.*\.)?128(\..*)?")

    @property
    def stores_128(self) -> int:
        return self.count(r"STG\.(.*\.)?128(\..*)?")

    @property
    def occupancy(self) -> float:
        """Share of a multiprocessor's threads, at the largest block and without dynamic shared memory."""
        sm = MULTIPROCESSORS[self.architecture]
        threads = self.max_threads or 1024
        warps = -(-threads // 32)
        warp_registers = _round_up(max(self.registers, 1) * 32, _REGISTERS_PER_ALLOCATION)
        blocks = min(
            sm.registers // warp_registers // warps,
            sm.shared_bytes // (self.shared_bytes + _RESERVED_SHARED_BYTES),
            sm.threads // threads,
            sm.blocks,
        )
        return blocks * threads / sm.threads


@dataclass(frozen=True)
class Rule:
    """What a kernel must have at least, if its demangled name contains the regular expression: so many 128-bit global
    accesses, and so many instructions whose whole names match those of `contains`.

    A kernel may also move its small operands by 128 bits. So where `twin`, a pair (text, replacement), turns its name
    into that of a kernel which differs in the width of the accesses in question, only what it has beyond that counts.
    """

    pattern: str
    loads_128: int = 0
    stores_128: int = 0
    contains: tuple[tuple[str, int], ...] = ()
    twin: tuple[str, str] | None = None

    def twin_of(self, kernel: Kernel, kernels: Iterable[Kernel]) -> Kernel | None:
        if self.twin is None:
            return None
        name = kernel.name.replace(*self.twin)
        return next(other for other in kernels if (other.name, other.architecture) == (name, kernel.architecture))


def violations(kernel: Kernel, rules: Sequence[Rule], kernels: Sequence[Kernel] = ()) -> list[str]:
    """What is wrong with a kernel, in words; empty if nothing is. `kernels` are those among which to look for twins."""
    found = []
    if kernel.stack_bytes:
        found.append(f"uses {kernel.stack_bytes} bytes of stack")
    if kernel.spill_bytes:
        found.append(f"spills {kernel.spill_bytes} bytes of registers")
    if kernel.local_accesses:
        found.append(f"has {kernel.local_accesses} accesses to local memory")
    for rule in rules:
        if not re.search(rule.pattern, kernel.name):
            continue
        twin = rule.twin_of(kernel, kernels)
        loads = kernel.loads_128 - (twin.loads_128 if twin else 0)
        stores = kernel.stores_128 - (twin.stores_128 if twin else 0)
        if loads < rule.loads_128:
            found.append(f"has {loads} 128-bit global loads (LDG.128), fewer than {rule.loads_128}")
        if stores < rule.stores_128:
            found.append(f"has {stores} 128-bit global stores (STG.128), fewer than {rule.stores_128}")
        for pattern, wanted in rule.contains:
            if (number := kernel.count(pattern)) < wanted:
                found.append(f"has {number} instructions {pattern}, fewer than {wanted}")
    return found


def missing_tools() -> str | None:
    """Why the gate cannot run here, or None if it can."""
    if find_nvcc() is None:
        return MISSING
    if _binary_tools() is None:
        return "cuobjdump was not found: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
    if shutil.which("c++filt") is None:
        return "c++filt was not found: install binutils"
    return None


def kernels_of(sources: Iterable[Path], architectures: Sequence[int] = ARCHITECTURES) -> list[Kernel]:
    """Compiles the sources, two at a time, and reads all their kernels. Cubins are cached in build/cubin."""
    jobs = [(source, architecture) for source in sources for architecture in architectures]
    with ThreadPoolExecutor(max_workers=2) as pool:
        kernels = pool.map(lambda job: read_cubin(*compile_cubin(*job), job[1]), jobs)
        return [kernel for of_job in kernels for kernel in of_job]


def compile_cubin(source: Path, architecture: int) -> tuple[Path, str]:
    """The cubin of a source and what ptxas said of it; reused while the compiler and all sources stay the same."""
    key = _content_key(source, architecture)
    cubin = CACHE / f"{source.stem}-sm_{architecture}-{key}.cubin"
    log = cubin.with_suffix(".log")
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(cubin.with_suffix(".lock")):
        if not cubin.exists():
            partial = cubin.with_suffix(".partial")
            include = f"-I{ROOT / 'csrc'}"
            log.write_text(nvcc(*NVCC_FLAGS, f"-arch=sm_{architecture}", include, "-cubin", "-o", partial, source))
            partial.rename(cubin)
    return cubin, log.read_text()


def read_cubin(cubin: Path, ptxas_log: str, architecture: int) -> list[Kernel]:
    """The kernels of a cubin, in the order of their names."""
    resources = _parse_resources(_cuobjdump("-res-usage", cubin))
    instructions = _parse_sass(_cuobjdump("-sass", cubin))
    spills = _parse_spills(ptxas_log)
    threads = _parse_max_threads(_cuobjdump("-elf", cubin))
    names = _demangle(list(resources))
    if resources.keys() != instructions.keys() or resources.keys() != spills.keys():
        raise RuntimeError(f"{cubin}: cuobjdump and ptxas disagree about the kernels")
    kernels = [
        Kernel(
            name=names[mangled],
            architecture=architecture,
            registers=usage["REG"],
            shared_bytes=usage["SHARED"],
            stack_bytes=usage["STACK"] + usage["LOCAL"],
            spill_bytes=spills[mangled],
            max_threads=threads.get(mangled, 0),
            instructions=instructions[mangled],
        )
        for mangled, usage in resources.items()
    ]
    return sorted(kernels, key=lambda kernel: kernel.name)


def table(kernels: Iterable[Kernel]) -> str:
    """One line a kernel and architecture."""
    header = ("kernel", "sm", "regs", "shared", "stack", "spills", "LDG.128", "STG.128", "occupancy")
    rows = [
        (
            short_name(kernel.name),
            kernel.architecture,
            kernel.registers,
            kernel.shared_bytes,
            kernel.stack_bytes,
            kernel.spill_bytes,
            kernel.loads_128,
            kernel.stores_128,
            f"{kernel.occupancy:.0%}",
        )
        for kernel in kernels
    ]
    lines = [tuple(map(str, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def short_name(name: str) -> str:
    """`void fastdiff::cuda::(anonymous namespace)::f<float>(int)` without result, namespaces and parameters."""
    name = re.sub(r"\((?!anonymous).*\)$", "", name)
    return re.sub(r"^void |(fastdiff|cuda|\(anonymous namespace\))::", "", name)


def _parse_resources(text: str) -> dict[str, dict[str, int]]:
    return {
        name: {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", usage)}
        for name, usage in re.findall(r"^ *Function (\S+):\n(.*)$", text, re.MULTILINE)
    }


def _parse_sass(text: str) -> dict[str, collections.Counter[str]]:
    operation = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
    functions = re.split(r"^\s*Function : ", text, flags=re.MULTILINE)[1:]
    return {body.split(maxsplit=1)[0]: collections.Counter(operation.findall(body)) for body in functions}


def _parse_spills(ptxas_log: str) -> dict[str, int]:
    properties = re.findall(
        r"Function properties for (\S+)\n\s+\d+ bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
        ptxas_log,
    )
    return {name: int(stores) + int(loads) for name, stores, loads in properties}


def _parse_max_threads(text: str) -> dict[str, int]:
    sections = re.findall(r"^\.nv\.info\.(\S+)\n(.*?)(?=^\.\S|\Z)", text, re.MULTILINE | re.DOTALL)
    found = {}
    for name, body in sections:
        if size := re.search(r"EIATTR_MAX_THREADS\n.*\n\s*Value:\s+(0x\w+) (0x\w+) (0x\w+)", body):
            x, y, z = (int(value, 16) for value in size.groups())
            found[name] = x * y * z
    return found


def _demangle(names: Sequence[str]) -> dict[str, str]:
    output = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return dict(zip(names, output.splitlines(), strict=True))


def _content_key(source: Path, architecture: int) -> str:
    headers = sorted(path for name in ("cuda", "common") for path in (ROOT / "csrc" / name).iterdir())
    digest = hashlib.sha256(repr((nvcc_version(), NVCC_FLAGS, architecture)).encode())
    for path in [source, *headers]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def _binary_tools() -> Path | None:
    """The directory that holds cuobjdump and nvdisasm, installed by pip under nvidia/cu<version>/bin."""
    if (package := importlib.util.find_spec("nvidia")) is None:
        return None
    roots = [Path(location) for location in package.submodule_search_locations or ()]
    return next((tool.parent for root in roots for tool in sorted(root.glob("cu*/bin/cuobjdump"))), None)


def _cuobjdump(option: str, cubin: Path) -> str:
    tools = _binary_tools()
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"}  # it calls nvdisasm
    return run([f"{tools}/cuobjdump", option, cubin], environment)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


if __name__ == "__main__":
    print(table(kernels_of(sorted((ROOT / "csrc" / "cuda").glob("*.cu")))))
