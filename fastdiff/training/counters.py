"""Randomness from counters: what happens at a step follows from (seed, step), so a resumed run needs no other state."""

from __future__ import annotations

import hashlib
import struct
from functools import lru_cache

import torch
from torch import Tensor


def derived_seed(seed: int, stream: str, counter: int = 0) -> int:
    """A 63-bit seed for one purpose and one count, unrelated to those of other purposes and counts."""
    message = stream.encode() + struct.pack("<qq", seed, counter)
    return int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "little") >> 1


def generator(seed: int, stream: str, counter: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed(seed, stream, counter))


def batch_indices(seed: int, step: int, batch_size: int, dataset_size: int) -> Tensor:
    """Which images step `step` sees, (batch_size,) int64: every image once an epoch, each epoch in a new order.

    Batches are cut from the endless row of epochs, so none is short.
    """
    position = torch.arange(step * batch_size, (step + 1) * batch_size)
    epochs = position // dataset_size
    return torch.stack(
        [
            _epoch_order(seed, epoch, dataset_size)[place]
            for epoch, place in zip(epochs.tolist(), (position % dataset_size).tolist(), strict=True)
        ]
    )


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, dataset_size: int) -> Tensor:
    return torch.randperm(dataset_size, generator=generator(seed, "order", epoch))
