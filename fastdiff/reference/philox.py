from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Philox4x32-10: Parallel Random Numbers: As Easy as 1, 2, 3 (Salmon et al., SC 2011), section 3.3.
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF


def philox_bits(
    shape: Sequence[int],
    seeds: Tensor | Sequence[int],
    *,
    offset: int | Tensor = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Definition of :func:`fastdiff.ops.philox_bits` in int64 arithmetic."""
    return _per_element(shape, _words(shape, seeds, offset, device))


def philox_uniform(
    shape: Sequence[int],
    seeds: Tensor | Sequence[int],
    *,
    offset: int | Tensor = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Definition of :func:`fastdiff.ops.philox_uniform` in PyTorch's own operators."""
    uniform = _per_element(shape, unit_interval(_words(shape, seeds, offset, device)))
    # Rounding to 16 bits must not end on 0 or 1.
    info = torch.finfo(dtype)
    return uniform.clamp(info.smallest_normal * info.eps, 1 - info.eps / 2).to(dtype)


def philox_normal(
    shape: Sequence[int],
    seeds: Tensor | Sequence[int],
    *,
    offset: int | Tensor = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Definition of :func:`fastdiff.ops.philox_normal`: Box and Muller's transform of float32 uniforms, in `dtype`."""
    uniform = unit_interval(_words(shape, seeds, offset, device)).to(torch.promote_types(dtype, torch.float32))
    radius = torch.sqrt(-2 * torch.log(uniform[..., 0::2]))
    angle = 2 * math.pi * uniform[..., 1::2]
    normal = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1).flatten(-2)
    return _per_element(shape, normal).to(dtype)


def philox_4x32(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """The four words of each block. All numbers are uint32 held in int64 tensors that broadcast together."""
    words, (key_0, key_1) = list(counter), key
    for _ in range(ROUNDS):
        high_0, low_0 = _multiply(MULTIPLIERS[0], words[0])
        high_1, low_1 = _multiply(MULTIPLIERS[1], words[2])
        words = [high_1 ^ words[1] ^ key_0, low_1, high_0 ^ words[3] ^ key_1, low_0]
        key_0, key_1 = (key_0 + WEYL[0]) & WORD, (key_1 + WEYL[1]) & WORD
    return words


def unit_interval(words: Tensor) -> Tensor:
    """``(word + 1/2) * 2^-32`` in float32, as one fused multiplication and addition makes it of the rounded word.

    The largest words would round to 1, whose logarithm's sign is another: they give the float32 below.
    """
    exact = words.float().double() * 2.0**-32 + 2.0**-33  # no bit is lost in float64, so .float() rounds once
    return exact.float().clamp(max=1 - 2.0**-24)


def _multiply(multiplier: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low half of a product of 64 bits, of which int64 cannot hold the sign."""
    low, high = multiplier * (word & 0xFFFF), multiplier * (word >> 16)
    upper = high + (low >> 16)
    return upper >> 16, ((upper & 0xFFFF) << 16) | (low & 0xFFFF)


def _words(
    shape: Sequence[int], seeds: Tensor | Sequence[int], offset: int | Tensor, device: torch.device | str | None
) -> Tensor:
    """(N, 4 * blocks) int64: the words of each sample's blocks, in order, with those beyond its last element."""
    seeds = torch.as_tensor(seeds, dtype=torch.int64, device=device)
    block = torch.arange((math.prod(shape[1:]) + 3) // 4, device=seeds.device)
    offset = torch.as_tensor(offset, dtype=torch.int64, device=seeds.device)
    key = (seeds[:, None] & WORD, (seeds[:, None] >> 32) & WORD)
    words = philox_4x32((block & WORD, block >> 32, offset & WORD, offset >> 32), key)
    return torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(1)


def _per_element(shape: Sequence[int], values: Tensor) -> Tensor:
    return values[:, : math.prod(shape[1:])].reshape(tuple(shape))
