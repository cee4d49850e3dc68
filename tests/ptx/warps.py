"""Instructions that threads of a warp or a block execute together, once all that must take part have come."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ptx.decode import Decoding, Read, Step, decodes
from ptx.scalars import TYPES, Array
from ptx.syntax import SINK, Both, Immediate, Instruction, Kernel
from ptx.threads import WARP, Lanes, Threads

# Which of the threads that have come to an instruction may execute it: those whose companions have come, too.
Ready = Callable[[Threads, Lanes], Array]
_BARRIERS = ("bar", "barrier")
_WHOLE_WARP = ("ldmatrix", "mma")
_MASKED = ("shfl", "vote", "redux")
TOGETHER = (*_BARRIERS, *_WHOLE_WARP, *_MASKED)


def readiness(kernel: Kernel, instruction: Instruction) -> Ready | None:
    """None for an instruction that every thread executes on its own."""
    ready = _readiness(kernel, instruction)
    if ready is not None and instruction.guard is not None:
        raise instruction.error("executed together, but guarded by a predicate")
    return ready


def _readiness(kernel: Kernel, instruction: Instruction) -> Ready | None:
    if instruction.opcode in _BARRIERS:
        if "warp" in instruction.modifiers:
            return _masked(Decoding(kernel, instruction), instruction)
        return _whole_block
    if instruction.opcode in _WHOLE_WARP:
        return lambda threads, lanes: threads.present_lanes(lanes) == np.uint32(0xFFFFFFFF)
    if instruction.opcode in _MASKED:
        return _masked(Decoding(kernel, instruction), instruction)
    return None


def _whole_block(threads: Threads, lanes: Lanes) -> Array:
    blocks = len(threads.numbers) // threads.block_size
    block_of = threads.numbers // threads.block_size
    arrived = np.bincount(block_of[lanes], minlength=blocks)
    expected = np.bincount(block_of[threads.exists], minlength=blocks)
    return (arrived == expected)[block_of[lanes]]


def _masked(decoding: Decoding, instruction: Instruction) -> Ready:
    member_mask = decoding.reader(instruction.operands[-1], TYPES["u32"])

    def ready(threads: Threads, lanes: Lanes) -> Array:
        mask = member_mask(threads, lanes)
        if not ((mask >> threads.lane_in_warp[lanes]) & np.uint32(1)).all():
            raise instruction.error("a thread is not in its own member mask")
        present = threads.present_lanes(lanes)
        return (present & mask) == mask

    return ready


@decodes("bar", "barrier")
def _barrier(decoding: Decoding) -> Step:
    """Nothing is left to do once all have come: stores are seen at once."""
    decoding.flag("cta")
    if decoding.flag("warp"):
        decoding.required("sync")
        decoding.expect_operands(1)
    else:
        decoding.required("sync")
        decoding.flag("aligned")
        if decoding.operands != (Immediate("0"),):
            raise decoding.error("of the barriers of a block, only number 0 with all threads is known")
    return lambda threads, lanes: None


@decodes("shfl")
def _shuffle(decoding: Decoding) -> Step:
    decoding.expect_operands(5)
    decoding.required("sync")
    mode, kind = decoding.required("up", "down", "bfly", "idx"), decoding.type()
    destination, source, offset, limits, mask = decoding.operands
    value_to, predicate_to = (
        (destination.first, destination.second) if isinstance(destination, Both) else (destination, SINK)
    )
    write, write_predicate = decoding.writer(value_to, kind), decoding.writer(predicate_to, TYPES["pred"])
    read = decoding.reader(source, kind)
    offsets, bounds, masks = decoding.readers((offset, limits, mask), TYPES["u32"])

    def shuffle(threads: Threads, lanes: Lanes) -> None:
        from_lane, in_range = _source_lane(
            mode, threads.lane_in_warp[lanes], offsets(threads, lanes), bounds(threads, lanes)
        )
        if not ((masks(threads, lanes) >> from_lane) & np.uint32(1)).all():
            raise decoding.error("reads from a thread that is not in the member mask")
        given = np.zeros(len(threads.numbers), kind.dtype)
        given[lanes] = read(threads, lanes)
        warp_begin = threads.numbers[lanes] // WARP * WARP
        write(threads, lanes, given[warp_begin + from_lane])
        write_predicate(threads, lanes, in_range)

    return shuffle


def _source_lane(mode: str, lane: Array, offset: Array, limits: Array) -> tuple[Array, Array]:
    """The lane that each lane reads, and whether that is in range, by the PTX ISA's description of shfl.sync."""
    lane, offset = lane.astype(np.int64), (offset & np.uint32(31)).astype(np.int64)
    clamp, segment = (
        (limits & np.uint32(31)).astype(np.int64),
        ((limits >> np.uint32(8)) & np.uint32(31)).astype(np.int64),
    )
    last = (lane & segment) | (clamp & ~segment)
    if mode == "up":
        source = lane - offset
        in_range = source >= last
    else:
        first = lane & segment
        source = {"down": lane + offset, "bfly": lane ^ offset, "idx": first | (offset & ~segment)}[mode]
        in_range = source <= last
    return np.where(in_range, source, lane).astype(np.uint32), in_range


@decodes("vote")
def _vote(decoding: Decoding) -> Step:
    decoding.expect_operands(3)
    decoding.required("sync")
    mode = decoding.required("any", "all", "uni", "ballot")
    kind = decoding.type()
    if (kind.name == "pred") == (mode == "ballot"):
        raise decoding.error(f"of the wrong type for .{mode}")
    destination, source, mask = decoding.operands
    write, read = decoding.writer(destination, kind), decoding.reader(source, TYPES["pred"])
    read_mask = decoding.reader(mask, TYPES["u32"])

    def vote(threads: Threads, lanes: Lanes) -> None:
        votes, members = _votes(threads, lanes, read), read_mask(threads, lanes)
        votes = votes & members
        results = {
            "any": votes != 0,
            "all": votes == members,
            "ballot": votes,
            "uni": (votes == 0) | (votes == members),
        }
        write(threads, lanes, results[mode])

    return vote


def _votes(threads: Threads, lanes: Lanes, read: Read) -> Array:
    """For each of `lanes`, the bits of the lanes of its warp whose predicate is true."""
    voted = np.zeros(len(threads.numbers), bool)
    voted[lanes] = read(threads, lanes)
    in_favour = np.flatnonzero(voted)
    bits = np.zeros(len(threads.numbers), np.uint32)
    bits[in_favour] = np.uint32(1) << threads.lane_in_warp[in_favour]
    return np.repeat(bits.reshape(-1, WARP).sum(axis=1, dtype=np.uint32), WARP)[lanes]


@decodes("redux")
def _reduce(decoding: Decoding) -> Step:
    decoding.expect_operands(3)
    decoding.required("sync")
    function = {"add": np.add, "min": np.minimum, "max": np.maximum}[decoding.required("add", "min", "max")]
    kind = decoding.type()
    destination, source, mask = decoding.operands
    write, read = decoding.writer(destination, kind), decoding.reader(source, kind)
    read_mask = decoding.reader(mask, TYPES["u32"])

    def reduce(threads: Threads, lanes: Lanes) -> None:
        group = threads.numbers[lanes] // WARP * (1 << 32) + read_mask(threads, lanes).astype(np.int64)
        values = np.broadcast_to(read(threads, lanes), len(group))
        result = np.empty_like(values)
        for members in (np.flatnonzero(group == number) for number in np.unique(group)):
            result[members] = function.reduce(values[members], dtype=kind.dtype)
        write(threads, lanes, result)

    return reduce
