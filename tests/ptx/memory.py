"""The state spaces that instructions load from and store to. Every access is checked for bounds and alignment."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Protocol

import numpy as np
from ptx.scalars import Array

# Where the generic address space shows shared and local memory: far from any address of the host.
SHARED_APERTURE = 1 << 61
LOCAL_APERTURE = 1 << 60
# Shared addresses do not begin at zero, as on a GPU, so that a null pointer is outside.
SHARED_BASE = 1024


class MemoryFault(Exception):
    """An access outside memory, or a misaligned one. `lane`: the number of the first thread at fault."""

    def __init__(self, lane: int, what: str) -> None:
        super().__init__(what)
        self.lane = lane


class Memory(Protocol):
    """`lanes` are the numbers of the threads that access, `addresses` an address for each, or one for all."""

    def load(self, lanes: Array, addresses: Array, dtype: np.dtype, count: int) -> Array:
        """(lanes, count) consecutive elements."""
        ...

    def store(self, lanes: Array, addresses: Array, values: Array) -> None:
        """`values` is (lanes, count)."""
        ...


class GlobalMemory:
    """Ranges of this process's own memory, given as (begin, end) addresses."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self._ranges = sorted((begin, end) for begin, end in ranges if end > begin)
        self._begins = np.array([begin for begin, _ in self._ranges], dtype=np.uint64)
        self._views: dict[tuple[int, np.dtype, int], Array] = {}

    def load(self, lanes: Array, addresses: Array, dtype: np.dtype, count: int) -> Array:
        bytes_ = dtype.itemsize * count
        result = np.empty((len(addresses), count), dtype)
        for index, chosen in self._by_range(lanes, addresses, bytes_):
            result[chosen] = self._view(index, dtype, count)[self._elements(index, addresses[chosen], bytes_)]
        return result

    def store(self, lanes: Array, addresses: Array, values: Array) -> None:
        addresses = np.broadcast_to(addresses, len(lanes))
        values = np.broadcast_to(values, (len(lanes), values.shape[1]))
        bytes_ = values.itemsize * values.shape[1]
        for index, chosen in self._by_range(lanes, addresses, bytes_):
            view = self._view(index, values.dtype, values.shape[1])
            view[self._elements(index, addresses[chosen], bytes_)] = values[chosen]

    def _by_range(self, lanes: Array, addresses: Array, bytes_: int) -> Iterable[tuple[int, slice | Array]]:
        """The ranges accessed, each with the positions of the addresses inside it."""
        check_alignment(lanes, addresses, bytes_)
        found = np.searchsorted(self._begins, addresses, side="right").astype(np.int64) - 1
        first = int(found[0])
        if (found == first).all():
            self._check_bounds(first, lanes, addresses, bytes_)
            return [(first, slice(None))]
        groups = [(int(index), np.flatnonzero(found == index)) for index in np.unique(found)]
        for index, chosen in groups:
            self._check_bounds(index, lanes[chosen], addresses[chosen], bytes_)
        return groups

    def _check_bounds(self, index: int, lanes: Array, addresses: Array, bytes_: int) -> None:
        begin, end = self._ranges[index] if index >= 0 else (0, 0)
        outside = addresses + np.uint64(bytes_) > np.uint64(end)
        if not outside.any():
            return
        which = int(np.argmax(outside))
        address = int(addresses[which])
        place = f"{address - begin} bytes after the begin of {end - begin} bytes" if index >= 0 else f"{address:#x}"
        raise MemoryFault(int(lanes[which]), f"out of bounds: {bytes_} bytes at {place} of global memory")

    def _view(self, index: int, dtype: np.dtype, count: int) -> Array:
        """The range as (elements, count), widened to whole elements: alignment is to addresses, not to its begin."""
        key = (index, dtype, count)
        if key not in self._views:
            begin, end = self._ranges[index]
            bytes_ = dtype.itemsize * count
            first, last = begin // bytes_ * bytes_, -(-end // bytes_) * bytes_
            raw = (ctypes.c_uint8 * (last - first)).from_address(first)
            self._views[key] = np.ctypeslib.as_array(raw).view(dtype).reshape(-1, count)
        return self._views[key]

    def _elements(self, index: int, addresses: Array, bytes_: int) -> Array:
        first = self._ranges[index][0] // bytes_
        return (addresses // np.uint64(bytes_)).astype(np.int64) - first


class WindowMemory:
    """Memory of which each owner has a part of its own at the same addresses: shared, local or of parameters.

    `owner_of` gives the owner of each thread. At first all bits are set, which is NaN to a float.
    """

    def __init__(self, name: str, base: int, bytes_: int, owner_of: Array) -> None:
        self._name, self._base, self._bytes = name, base, bytes_
        self._stride = -(-bytes_ // 16) * 16
        self._owner_of = owner_of
        owners = int(owner_of.max(initial=-1)) + 1
        self.storage = np.full(owners * self._stride, 0xFF, np.uint8)

    def load(self, lanes: Array, addresses: Array, dtype: np.dtype, count: int) -> Array:
        elements = self._elements(lanes, addresses, dtype.itemsize * count)
        return self.storage.view(dtype).reshape(-1, count)[elements]

    def store(self, lanes: Array, addresses: Array, values: Array) -> None:
        count = values.shape[1]
        elements = self._elements(lanes, addresses, values.itemsize * count)
        self.storage.view(values.dtype).reshape(-1, count)[elements] = values

    def _elements(self, lanes: Array, addresses: Array, bytes_: int) -> Array:
        check_alignment(lanes, addresses, bytes_)
        offsets = addresses.astype(np.int64) - self._base
        outside = (offsets < 0) | (offsets + bytes_ > self._bytes)
        if outside.any():
            which = int(np.argmax(outside))
            place = f"byte {int(offsets[which])} of {self._bytes} bytes"
            raise MemoryFault(int(lanes[which]), f"out of bounds: {bytes_} bytes at {place} of {self._name} memory")
        return (self._owner_of[lanes] * self._stride + offsets) // bytes_


class GenericMemory:
    """The address space of pointers that may point anywhere."""

    def __init__(self, global_memory: Memory, shared: Memory, local: Memory) -> None:
        self._parts = ((0, global_memory), (LOCAL_APERTURE, local), (SHARED_APERTURE, shared))

    def load(self, lanes: Array, addresses: Array, dtype: np.dtype, count: int) -> Array:
        result = np.empty((len(lanes), count), dtype)
        for memory, offsets, chosen in self._by_part(lanes, addresses):
            result[chosen] = memory.load(lanes[chosen], offsets, dtype, count)
        return result

    def store(self, lanes: Array, addresses: Array, values: Array) -> None:
        values = np.broadcast_to(values, (len(lanes), values.shape[1]))
        for memory, offsets, chosen in self._by_part(lanes, addresses):
            memory.store(lanes[chosen], offsets, values[chosen])

    def _by_part(self, lanes: Array, addresses: Array) -> Iterable[tuple[Memory, Array, Array]]:
        addresses = np.broadcast_to(addresses, len(lanes))
        part = (addresses >= np.uint64(LOCAL_APERTURE)).astype(int) + (addresses >= np.uint64(SHARED_APERTURE))
        for index in np.unique(part):
            begin, memory = self._parts[index]
            chosen = np.flatnonzero(part == index)
            yield memory, addresses[chosen] - np.uint64(begin), chosen


def check_alignment(lanes: Array, addresses: Array, bytes_: int) -> None:
    misaligned = addresses % np.uint64(bytes_) != 0
    if misaligned.any():
        which = int(np.argmax(misaligned))
        raise MemoryFault(int(lanes[which]), f"misaligned: {bytes_} bytes at the address {int(addresses[which]):#x}")
