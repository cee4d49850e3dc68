from __future__ import annotations

import platform
from typing import Any

import torch

from fastdiff import _extension
from fastdiff._version import __version__


def build_info() -> dict[str, Any]:
    """What this installation of fastdiff is made of and which kernels it will run.

    Keys: ``fastdiff``, ``python``, ``torch`` (versions); ``extension`` (True, or False with
    ``extension_error``); ``compiler``, ``torch_built_against``; ``cpu_isa`` (instruction set in use),
    ``cpu_isas_built``, ``cpu_isas_supported``; ``cuda_built``, ``cuda_version``, ``cuda_archs``,
    ``cuda_available`` and ``cuda_off_reason`` (None when CUDA kernels can run).
    """
    info: dict[str, Any] = {
        "fastdiff": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "extension": _extension._C is not None,
        "extension_error": None if _extension.load_error is None else str(_extension.load_error),
        "cuda_available": torch.cuda.is_available(),
    }
    if _extension._C is not None:
        info |= _extension._C.build_info()
    info["cuda_off_reason"] = _cuda_off_reason(info)
    return info


def _cuda_off_reason(info: dict[str, Any]) -> str | None:
    if not info["extension"]:
        return "the compiled extension could not be loaded"
    if not info["cuda_built"]:
        return "built without CUDA kernels (nvcc was not found, or FASTDIFF_CUDA=off)"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if not info["cuda_available"]:
        return "torch sees no CUDA device"
    return None
