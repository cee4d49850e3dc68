"""Whether matrices are multiplied on a tile unit (AMX)."""

from __future__ import annotations

import functools

from fastdiff import _extension


@functools.lru_cache(maxsize=1)
def available() -> bool:
    """Whether this processor has a tile unit, and the kernels for it are in use."""
    return _extension._C is not None and _extension._C.build_info()["cpu_isa"] == "amx"
