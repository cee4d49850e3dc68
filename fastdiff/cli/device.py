from __future__ import annotations

import torch

import fastdiff
from fastdiff.cli.errors import CommandError


def require_extension() -> None:
    """A CommandError that says why, where the compiled kernels could not be loaded."""
    info = fastdiff.build_info()
    if not info["extension"]:
        raise CommandError(f"the compiled kernels cannot be used: {info['extension_error']} (see fastdiff doctor)")


def available_device(name: str) -> torch.device:
    """The torch device named `name`, after a check that it and its kernels are there; "auto" prefers CUDA."""
    cuda_off_reason = fastdiff.build_info()["cuda_off_reason"]
    if name == "auto":
        return torch.device("cpu" if cuda_off_reason else "cuda")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise CommandError(f"device must be cpu, cuda or cuda:<number>, got {name!r}")
    if device.type == "cuda" and cuda_off_reason:
        raise CommandError(f"device {name!r} cannot be used: {cuda_off_reason}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CommandError(f"device {name!r} cannot be used: torch sees {torch.cuda.device_count()} CUDA device(s)")
    return device


def kernels_in_use(device: torch.device) -> str:
    """Which kernels run on `device`, in words."""
    if device.type == "cuda":
        return f"CUDA, {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"CPU, {fastdiff.build_info()['cpu_isa']}, {threads} thread{'s' if threads > 1 else ''}"
