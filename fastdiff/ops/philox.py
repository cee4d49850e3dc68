from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff import _dispatch, _extension, _switch, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_BITS, _UNIFORM, _NORMAL = range(3)  # Draw in csrc/common/philox.h


def philox_bits(
    shape: Sequence[int],
    seeds: Tensor | Sequence[int],
    *,
    offset: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """The 32 random bits behind every element of :func:`philox_uniform`, for any shape (N, *).

    Philox4x32-10 (Parallel Random Numbers: As Easy as 1, 2, 3, Salmon et al., SC 2011), a function of a counter and a
    key. Element e of a sample, counted in C order, is word e % 4 of the block whose counter is (e // 4, offset), two
    words of 32 bits each with the low one first, and whose key is the sample's seed.

    Args:
        shape: (N, *).
        seeds: N integers, one a sample: a (N,) int64 tensor or a sequence of ints from -2**63 to 2**63 - 1. A sample
            depends on its own seed, on the offset and on its number of elements before it, and on nothing else.
        offset: 0 to 2**63 - 1: other numbers of the same seeds, such as those of another step of a sampler.
        device: default that of `seeds`, or the CPU.

    Returns:
        `shape` int64, contiguous: 0 to 2**32 - 1, the same on every device.

    Raises:
        TypeError: seeds that are not integers, or an offset that is none.
        ValueError: a shape without a batch, or a number of seeds, a device or an integer that does not fit.
    """
    seeds = _checked_seeds(shape, seeds, offset, device)
    if _switch.reference_depth:
        return reference.philox_bits(shape, seeds, offset=offset)
    return _draw(shape, seeds, offset, _BITS, torch.int64)


def philox_uniform(
    shape: Sequence[int],
    seeds: Tensor | Sequence[int],
    *,
    offset: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniform numbers in (0, 1): ``(word + 1/2) * 2**-32`` in float32, of the words of :func:`philox_bits`.

    Args:
        shape, seeds, offset, device: as :func:`philox_bits` takes them.
        dtype: float32, bfloat16 or float16; rounded from float32, and kept between 0 and 1.

    Returns:
        `shape` of `dtype`, contiguous.

    Raises:
        TypeError, ValueError: as :func:`philox_bits`; TypeError also for another dtype.
    """
    _check_dtype(dtype)
    seeds = _checked_seeds(shape, seeds, offset, device)
    if _switch.reference_depth:
        return reference.philox_uniform(shape, seeds, offset=offset, dtype=dtype)
    return _draw(shape, seeds, offset, _UNIFORM, dtype)


def philox_normal(
    shape: Sequence[int],
    seeds: Tensor | Sequence[int],
    *,
    offset: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normal numbers, of which a sample's depend on its own seed alone.

    Box and Muller's transform (A Note on the Generation of Random Normal Deviates, 1958) of the uniforms u of
    :func:`philox_uniform`: ``sqrt(-2 log u[2k]) * cos(2 pi u[2k+1])`` is element 2k of a sample and the sine's is
    element 2k + 1. The smallest and largest number that can appear are -6.77 and 6.77. Devices differ in the last
    digits of float32; on one device a sample's bits depend on no other sample and no number of threads.

    Args:
        shape, seeds, offset, device: as :func:`philox_bits` takes them.
        dtype: float32, bfloat16 or float16; computed in float32.

    Returns:
        `shape` of `dtype`, contiguous.

    Raises:
        TypeError, ValueError: as :func:`philox_bits`; TypeError also for another dtype.
    """
    _check_dtype(dtype)
    seeds = _checked_seeds(shape, seeds, offset, device)
    if _switch.reference_depth:
        return reference.philox_normal(shape, seeds, offset=offset, dtype=dtype)
    return _draw(shape, seeds, offset, _NORMAL, dtype)


def _draw(shape, seeds, offset: int, kind: int, dtype: torch.dtype) -> Tensor:
    _extension.require()
    return _dispatch.call(torch.ops.fastdiff.philox.default, list(shape), seeds, offset, kind, dtype)


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in DTYPES and not (_switch.reference_depth and dtype.is_floating_point):
        raise TypeError(f"dtype must be float32, bfloat16 or float16, got {dtype}")


def _checked_seeds(shape, seeds, offset, device) -> Tensor:
    """The seeds as a tensor on the device, once all arguments are known to fit."""
    if len(shape) == 0 or any(size < 0 for size in shape):
        raise ValueError(f"shape must be (N, *) of sizes from 0 on, got {tuple(shape)}")
    if not isinstance(offset, int):
        raise TypeError(f"offset must be an int, got {type(offset).__name__}")
    if not 0 <= offset < 2**63:
        raise ValueError(f"offset must be from 0 to 2**63 - 1, got {offset}")
    if not isinstance(seeds, Tensor):
        seeds = _seeds_of_integers(seeds, device)
    elif device is not None and torch.empty(0, device=device).device != seeds.device:
        raise ValueError(f"device must be that of the seeds, {seeds.device}, got {device}")
    if seeds.dtype != torch.int64:
        raise TypeError(f"seeds must be int64, got {seeds.dtype}")
    if seeds.shape != (shape[0],):
        given = len(seeds) if seeds.dim() == 1 else f"shape {tuple(seeds.shape)}"
        raise ValueError(f"seeds must have one entry for each of the {shape[0]} samples, got {given}")
    return seeds


def _seeds_of_integers(seeds: Sequence[int], device: torch.device | str | None) -> Tensor:
    for seed in seeds:
        if not isinstance(seed, int):
            raise TypeError(f"seeds must be integers, got {type(seed).__name__}")
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"seeds must be from -2**63 to 2**63 - 1, got {seed}")
    return torch.tensor(list(seeds), dtype=torch.int64, device=device)


def _fake(shape, seeds, offset, kind, dtype):
    return seeds.new_empty(shape, dtype=dtype)


if _extension._C is not None:
    torch.library.register_fake("fastdiff::philox", _fake)
