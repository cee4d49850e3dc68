"""Builds fastdiff._C with CMake; everything else about the package is in pyproject.toml.

Environment: FASTDIFF_CUDA=auto|on|off, TORCH_CUDA_ARCH_LIST (as for torch: "8.0 9.0 12.0+PTX"), MAX_JOBS.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


def cuda_architectures(arch_list: str) -> str:
    """TORCH_CUDA_ARCH_LIST as CMAKE_CUDA_ARCHITECTURES: "8.0;9.0+PTX" -> "80-real;90"."""
    architectures = []
    for name in re.split(r"[\s;,]+", arch_list.strip()):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if match is None:
            sys.exit(f"TORCH_CUDA_ARCH_LIST: '{name}' is not of the form 8.0 or 9.0+PTX")
        major, minor, suffix, ptx = match.groups()
        architectures.append(f"{major}{minor}{suffix}" + ("" if ptx else "-real"))
    return ";".join(architectures)


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        cuda = os.environ.get("FASTDIFF_CUDA", "auto").lower()
        if cuda not in ("auto", "on", "off"):
            sys.exit(f"FASTDIFF_CUDA must be auto, on or off, got '{cuda}'")
        options = [f"-DPython_EXECUTABLE={sys.executable}", f"-DFASTDIFF_CUDA={cuda}"]
        if os.environ.get("TORCH_CUDA_ARCH_LIST"):
            options.append(f"-DCMAKE_CUDA_ARCHITECTURES={cuda_architectures(os.environ['TORCH_CUDA_ARCH_LIST'])}")
        options.append(f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}")
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        source = Path(__file__).resolve().parent
        # A cache left by another environment's cmake or torch would be wrong: --fresh configures anew.
        subprocess.check_call(["cmake", "--fresh", "-G", "Ninja", "-S", source, "-B", build, *options])
        subprocess.check_call(["cmake", "--build", build, "--target", "_C", "--parallel", jobs])


setup(ext_modules=[Extension("fastdiff._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
