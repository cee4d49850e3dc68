"""Moves between registers and memory, and asynchronous copies.

A cp.async is made as late as it may be: when its thread waits for it. Who reads the copy without waiting reads what was
there before.
"""

from __future__ import annotations

import numpy as np
from ptx.decode import Decoding, Read, Step, decodes
from ptx.memory import LOCAL_APERTURE, SHARED_APERTURE, check_alignment
from ptx.scalars import TYPES, Array, ScalarType
from ptx.syntax import Immediate, Vector
from ptx.threads import Lanes, PendingCopy, Threads

_VECTORS = {"v2": 2, "v4": 4}
# What an access says of caches and ordering changes nothing here: threads run in lockstep and see all stores at once.
_CACHING = ("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "weak", "volatile", "relaxed", "cta", "gpu", "sys")
_CACHING_LEVELS = ("L1::", "L2::")


def _take_caching(decoding: Decoding) -> None:
    while decoding.one_of(*_CACHING):
        pass
    decoding.modifiers = [name for name in decoding.modifiers if not name.startswith(_CACHING_LEVELS)]


def _take_space(decoding: Decoding) -> str:
    found = decoding.one_of("global", "shared", "shared::cta", "local", "param")
    return found.removesuffix("::cta") if found else "generic"


@decodes("ld")
def _load(decoding: Decoding) -> Step:
    space, kind, count = _take_access(decoding)
    destination, address = decoding.operands
    writers = [decoding.writer(d, kind, may_be_wider=True) for d in decoding.vector(destination, count)]
    addresses = decoding.address(address)

    def load(threads: Threads, lanes: Lanes) -> None:
        values = threads.memories[space].load(threads.numbers[lanes], addresses(threads, lanes), kind.dtype, count)
        for index, write in enumerate(writers):
            write(threads, lanes, values[:, index])

    return load


@decodes("st")
def _store(decoding: Decoding) -> Step:
    space, kind, count = _take_access(decoding)
    address, source = decoding.operands
    readers = [decoding.reader(s, kind, may_be_wider=True) for s in decoding.vector(source, count)]
    addresses = decoding.address(address)

    def store(threads: Threads, lanes: Lanes) -> None:
        numbers = threads.numbers[lanes]
        values = np.empty((len(numbers), count), kind.dtype)
        for index, read in enumerate(readers):
            values[:, index] = read(threads, lanes)
        threads.memories[space].store(numbers, addresses(threads, lanes), values)

    return store


def _take_access(decoding: Decoding) -> tuple[str, ScalarType, int]:
    """The state space, the type and the number of elements of a load or store."""
    decoding.expect_operands(2)
    space = _take_space(decoding)
    _take_caching(decoding)
    count = _VECTORS[decoding.required(*_VECTORS)] if set(_VECTORS) & set(decoding.modifiers) else 1
    return space, decoding.type(), count


@decodes("mov")
def _move(decoding: Decoding) -> Step:
    decoding.expect_operands(2)
    kind = decoding.type()
    destination, source = decoding.operands
    if isinstance(source, Vector):
        return _join(decoding, kind, source)
    if isinstance(destination, Vector):
        return _split(decoding, kind, destination)
    write, read = decoding.writer(destination, kind), decoding.reader(source, kind)
    return lambda threads, lanes: write(threads, lanes, read(threads, lanes))


def _part(decoding: Decoding, kind: ScalarType, vector: Vector) -> ScalarType:
    return TYPES[f"b{kind.bits // len(vector.elements)}"]


def _join(decoding: Decoding, kind: ScalarType, source: Vector) -> Step:
    """mov.b32 d, {low, high}."""
    part = _part(decoding, kind, source)
    readers = decoding.readers(source.elements, part)
    write = decoding.writer(decoding.operands[0], kind)

    def join(threads: Threads, lanes: Lanes) -> None:
        value = np.zeros(1, kind.dtype)
        for index, read in enumerate(readers):
            value = value | (read(threads, lanes).astype(kind.dtype) << kind.dtype.type(index * part.bits))
        write(threads, lanes, value)

    return join


def _split(decoding: Decoding, kind: ScalarType, destination: Vector) -> Step:
    """mov.b32 {low, high}, a."""
    part = _part(decoding, kind, destination)
    writers = [decoding.writer(element, part) for element in destination.elements]
    read = decoding.reader(decoding.operands[1], kind)

    def split(threads: Threads, lanes: Lanes) -> None:
        value = read(threads, lanes)
        for index, write in enumerate(writers):
            write(threads, lanes, (value >> kind.dtype.type(index * part.bits)).astype(part.dtype))

    return split


@decodes("cvta")
def _convert_address(decoding: Decoding) -> Step:
    """Between a state space's own addresses and generic ones."""
    decoding.expect_operands(2)
    from_generic = decoding.flag("to")
    aperture = {"global": 0, "shared": SHARED_APERTURE, "local": LOCAL_APERTURE}[
        decoding.required("global", "shared", "local")
    ]
    kind = decoding.type()
    if kind.bits != 64:
        raise decoding.error("addresses have 64 bits")
    offset = np.array([-aperture if from_generic else aperture], np.int64).view(np.uint64)
    destination, source = decoding.operands
    return decoding.elementwise(
        decoding.writer(destination, kind), lambda address: address + offset, [decoding.reader(source, kind)]
    )


@decodes("cp")
def _copy(decoding: Decoding) -> Step:
    decoding.required("async")
    if decoding.flag("commit_group"):
        return _commit
    if decoding.flag("wait_all"):
        return _wait_for_all
    if decoding.flag("wait_group"):
        return _wait_for_groups(decoding)
    if not decoding.one_of("ca", "cg"):
        raise decoding.error("an unknown kind of copy")
    decoding.required("shared", "shared::cta")
    decoding.required("global")
    decoding.modifiers = [name for name in decoding.modifiers if not name.startswith(_CACHING_LEVELS)]
    return _start_copy(decoding)


def _start_copy(decoding: Decoding) -> Step:
    """cp.async [shared], [global], bytes{, source bytes}: what the source lacks is filled with zeros."""
    decoding.expect_operands(3, 4)
    destination, source, size, *source_size = decoding.operands
    if not isinstance(size, Immediate) or int(size.text, 0) not in (4, 8, 16):
        raise decoding.error("cp.async copies 4, 8 or 16 bytes")
    if "cg" in decoding.instruction.modifiers and int(size.text, 0) != 16:
        raise decoding.error("cp.async.cg copies 16 bytes")
    to, from_ = decoding.address(destination), decoding.address(source)
    bytes_ = int(size.text, 0)
    source_bytes: Read = decoding.reader((*source_size, size)[0], TYPES["u32"])

    def start(threads: Threads, lanes: Lanes) -> None:
        numbers = threads.numbers[lanes]
        wanted = np.broadcast_to(source_bytes(threads, lanes), len(numbers)).astype(np.int64)
        if (wanted > bytes_).any():
            raise decoding.error("more source bytes than are copied")
        copy = PendingCopy(
            lanes=numbers,
            groups=threads.groups_committed[lanes].copy(),
            sources=np.broadcast_to(from_(threads, lanes), len(numbers)).copy(),
            source_bytes=wanted,
            destinations=np.broadcast_to(to(threads, lanes), len(numbers)).copy(),
            bytes=bytes_,
        )
        _read_source(threads, copy)  # for its checks: the data is read again when it is waited for
        threads.copies.append(copy)

    return start


def _read_source(threads: Threads, copy: PendingCopy) -> Array:
    """(copies, bytes); what lies beyond the source's bytes is zero, and not read."""
    check_alignment(copy.lanes, copy.sources, copy.bytes)
    data = np.zeros((len(copy.lanes), copy.bytes), np.uint8)
    memory, whole = threads.memories["global"], copy.source_bytes == copy.bytes
    if whole.any():
        data[whole] = memory.load(copy.lanes[whole], copy.sources[whole], np.dtype(np.uint8), copy.bytes)
    for offset in range(int(copy.source_bytes[~whole].max(initial=0))):
        chosen = np.flatnonzero(~whole & (offset < copy.source_bytes))
        at = copy.sources[chosen] + np.uint64(offset)
        data[chosen, offset] = memory.load(copy.lanes[chosen], at, np.dtype(np.uint8), 1)[:, 0]
    return data


def _commit(threads: Threads, lanes: Lanes) -> None:
    threads.groups_committed[lanes] += 1


def _wait_for_all(threads: Threads, lanes: Lanes) -> None:
    """Also for copies that no group holds yet."""
    _complete(threads, lanes, threads.groups_committed + 1)


def _wait_for_groups(decoding: Decoding) -> Step:
    decoding.expect_operands(1)
    newest = decoding.reader(decoding.operands[0], TYPES["s64"])

    def wait(threads: Threads, lanes: Lanes) -> None:
        _complete(threads, lanes, threads.groups_committed - int(newest(threads, lanes)[0]))

    return wait


def _complete(threads: Threads, lanes: Lanes, before: Array) -> None:
    """Makes the copies of `lanes` in groups with numbers below `before`, which has an entry for every thread."""
    waits = np.zeros(len(threads.numbers), bool)
    waits[lanes] = True
    remaining = []
    for copy in threads.copies:
        done = waits[copy.lanes] & (copy.groups < before[copy.lanes])
        if done.any():
            due = copy.subset(done)
            threads.memories["shared"].store(due.lanes, due.destinations, _read_source(threads, due))
        if not done.all():
            remaining.append(copy.subset(~done))
    threads.copies = remaining
