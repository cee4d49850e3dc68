"""What differs between timing on a CPU and on a CUDA device: the clock, the cache and where the floor comes from."""

from __future__ import annotations

import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch

from bench.timing import Call

_FALLBACK_CACHE_BYTES = 64 << 20
_QUEUE_CYCLES = 1_000_000  # of the GPU's clock: half a millisecond or more


class Device(Protocol):
    name: str  # as torch knows it
    model: str
    peak_gb_per_s: float | None  # of main memory, where the device tells it

    def measure(self, call: Call) -> float:
        """Seconds that the call takes."""

    def mark(self) -> Any:
        """A moment between two operations."""

    def seconds_between(self, marks: list[Any]) -> list[float]:
        """Seconds from each mark to the next."""

    def flush_cache(self) -> None:
        """Put something else than the operands into the last-level cache."""


class CpuDevice:
    name = "cpu"
    peak_gb_per_s: float | None = None

    def __init__(self) -> None:
        self.model = _cpu_model()
        # Twice the cache, since it is rarely replaced in strict order; read only, since dirty lines would be
        # written back in the timed call.
        self._buffer = torch.ones(2 * _last_level_cache_bytes() // 8, dtype=torch.int64)

    def measure(self, call: Call) -> float:
        start = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - start
        del result  # freeing the result is not part of the operation
        return seconds

    def mark(self) -> float:
        """On one thread its own time, without that of whatever else a busy machine does in between."""
        return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()

    def seconds_between(self, marks: list[float]) -> list[float]:
        """Less what a mark itself takes, a quarter of a small copy."""
        bare = [self.mark() for _ in range(100)]
        own = statistics.median(after - before for before, after in pairwise(bare))
        return [after - before - own for before, after in pairwise(marks)]

    def flush_cache(self) -> None:
        self._buffer.sum()


class CudaDevice:
    name = "cuda"

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(0)
        self.model = properties.name
        # Clock in kHz, two transfers a cycle, bus width in bits.
        self.peak_gb_per_s: float | None = (
            2 * properties.memory_clock_rate * 1e3 * properties.memory_bus_width / 8 / 1e9
        )
        self._buffer = torch.empty(4 * properties.L2_cache_size, dtype=torch.int8, device="cuda")
        self._start = torch.cuda.Event(enable_timing=True)
        self._stop = torch.cuda.Event(enable_timing=True)

    def measure(self, call: Call) -> float:
        """What the device needs: it waits until all of the call is queued, else small kernels would be timed by how
        fast Python launches them."""
        torch.cuda._sleep(_QUEUE_CYCLES)
        self._start.record()
        result = call()
        self._stop.record()
        self._stop.synchronize()
        del result
        return self._start.elapsed_time(self._stop) / 1e3

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds_between(self, marks: list[torch.cuda.Event]) -> list[float]:
        marks[-1].synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]

    def flush_cache(self) -> None:
        self._buffer.zero_()


def open_device(name: str) -> Device:
    return CudaDevice() if name == "cuda" else CpuDevice()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _last_level_cache_bytes() -> int:
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return max(
        (int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=_FALLBACK_CACHE_BYTES
    )
