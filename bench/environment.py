"""Where and with what a measurement was made."""

from __future__ import annotations

import os
import platform

import torch

import fastdiff
from bench.device import Device


def describe(device: Device, allocator: str) -> dict[str, object]:
    """What has to be known to repeat a measurement; goes into the JSON and the report."""
    return {
        "device": device.name,
        "device_model": device.model,
        "peak_gb_per_s": device.peak_gb_per_s,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "platform": platform.platform(),
        "libc": " ".join(platform.libc_ver()),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "allocator": allocator,
        "fastdiff": fastdiff.build_info(),
    }
