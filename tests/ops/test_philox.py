"""The counter-based random numbers against published vectors, their definition and the distributions they stand for."""

from __future__ import annotations

import pytest
import torch

from fastdiff.reference.philox import philox_4x32

# Random123, file kat_vectors: counter, key, words.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize("counter, key, expected", KNOWN_ANSWERS)
def test_definition_gives_the_known_answers(counter: str, key: str, expected: str) -> None:
    block = philox_4x32(*([torch.tensor([word]) for word in words(text)] for text in (counter, key)))
    assert [word.item() for word in block] == words(expected)
