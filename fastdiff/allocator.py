"""A setting of glibc's malloc that keeps large activations mapped between operations."""

from __future__ import annotations

import ctypes
import platform

# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4

_MMAP_THRESHOLD = 1 << 30
_TRIM_NEVER = -1
_TOP_PAD = 64 << 20


def tune_allocator() -> bool:
    """Make glibc keep freed activations for reuse, for the rest of the process. Returns whether it was applied.

    By default glibc maps every block above 32 MiB afresh and hands it back to the kernel when it is freed, so each
    large activation is page-faulted and zeroed again by every operation that returns one. A VAE decoder's eager
    GroupNorm at 1x128x512x512 spends three quarters of its time there. This call raises the size from which blocks
    are mapped one by one to 1 GiB, never gives back the top of the heap, and grows the heap 64 MiB at a time.

    The price is that the process holds its peak of memory until it ends, and that the peak is somewhat higher: the
    heap grows over the first few operations, until its free blocks fit the aligned ones that torch asks for. The
    setting is process-wide, works on what is allocated after the call, and cannot be undone. It serves allocations of
    the main thread: glibc's heaps for other threads are at most 64 MiB, and larger blocks asked for there are still
    mapped one by one.

    Only glibc has these parameters; with any other C library (musl, macOS, Windows) nothing happens and the result
    is False. CUDA memory is not concerned.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Older glibc refuses a threshold above 32 MiB; there, mapping no block at all has the same effect.
    keeps_large_blocks = mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD) or mallopt(_M_MMAP_MAX, 0)
    keeps_the_heap = mallopt(_M_TRIM_THRESHOLD, _TRIM_NEVER)
    return bool(keeps_large_blocks and keeps_the_heap and mallopt(_M_TOP_PAD, _TOP_PAD))
