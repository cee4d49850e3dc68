"""What describes an original layout: how its part of a file is told, its configuration, and the table of its names."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fastdiff.models.weights import StoredTensor

_PLACEHOLDERS = {"n": r"\d+", "p": "weight|bias", "rest": ".+"}


@dataclass(frozen=True)
class Part:
    """The tensors of a file that belong to one network, by their names without the prefix."""

    path: Path
    prefix: str
    tensors: Mapping[str, StoredTensor]
    others: Collection[str]
    """The names of other networks in the file."""

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def shape(self, name: str, dimensions: int | None = None) -> tuple[int, ...]:
        """Of a tensor that must be there, not empty, and of so many dimensions."""
        if name not in self:
            raise ValueError(f"{self.path} has no tensor {self.prefix}{name}")
        shape = self.tensors[name].shape
        if dimensions not in (None, len(shape)) or 0 in shape:
            wanted = "some" if dimensions is None else dimensions
            raise ValueError(f"{self.prefix}{name} of {self.path} must have {wanted} dimensions, got shape {shape}")
        return shape

    def count(self, pattern: str) -> int:
        """How many blocks there are: the numbers that stand for the {n} at the end of a pattern."""
        compiled = re.compile(re.escape(pattern.removesuffix("{n}")) + r"(\d+)\.")
        return len({match[1] for match in map(compiled.match, self.tensors) if match})


class NotTold(NamedTuple):
    """In place of a value of the configuration that a file doesn't tell, and for which its family has no rule."""

    reason: str


class Assumed(NamedTuple):
    """A value of the configuration that a file doesn't tell, where others are as likely."""

    value: Any
    reason: str


Make: TypeAlias = Callable[[Tensor, Sequence[torch.Size]], Sequence[Tensor]]


class Place(NamedTuple):
    """Where a tensor of the file goes."""

    names: tuple[str, ...]
    """In the model."""
    make: Make
    """Makes the tensors of these names from the one of the file, given their shapes. Raises ValueError."""
    copy: bool = False
    """Whether each must have memory of its own."""


Rules: TypeAlias = Mapping[str, str | Place]
"""A name in the file, without the prefix, to the name in the model or to the place. In the names {n} stands for a
number, {p} for "weight" or "bias" and {rest} for anything, each the same on both sides; the first that fits counts."""


@dataclass(frozen=True)
class Layout:
    """An original layout of one of the models."""

    mark: str
    """The name of a tensor, without the prefix, that tells this layout from all others."""
    infer: Callable[[Part], dict[str, Any]]
    """The configuration from names and shapes; what the model has as its default may be left out."""
    rules: Callable[[Any], Rules]
    """The table of names for a configuration."""
    prefixes: tuple[str, ...] = ()
    """What stands before the names in a file that has other networks beside this one."""
    beside: tuple[str, ...] = ("model_ema.",)
    """What the names of other things begin with, after the prefix if there is one."""

    def find(self, path: Path, tensors: Mapping[str, StoredTensor]) -> Part | None:
        """This layout's part of a file, None where there is none."""
        for prefix in (*self.prefixes, ""):
            if prefix + self.mark in tensors:
                named = {name: name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}
                mine = {new: tensors[name] for name, new in named.items() if not new.startswith(self.beside)}
                return Part(path, prefix, mine, tensors.keys() - named)
        return None


def split(*names: str) -> Place:
    """One below the other, as the rows of a fused projection: the parts are views."""

    def make(tensor: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        rows = [shape[0] for shape in shapes]
        if len(tensor) != sum(rows):
            raise ValueError(f"must have {sum(rows)} rows, got {len(tensor)}")
        return tensor.split(rows)

    return Place(names, make)


def swapped(name: str) -> Place:
    """The two halves of the rows the other way round: (shift, scale) becomes (scale, shift)."""
    return Place((name,), lambda tensor, _: [torch.cat(tensor.chunk(2)[::-1])])


def linear(name: str) -> Place:
    """A 1x1 convolution as a linear layer, or such a layer as it is."""
    return Place((name,), lambda tensor, _: [tensor[..., 0, 0] if tensor.shape[2:] == (1, 1) else tensor])


def copies(*names: str) -> Place:
    """What several parts of the model have each for itself."""
    return Place(names, lambda tensor, _: [tensor] * len(names), copy=True)


class Table:
    """Rules, ready for use."""

    def __init__(self, rules: Rules) -> None:
        self._rules = [(re.compile(_regular_expression(name)), place) for name, place in rules.items()]

    def place(self, name: str) -> Place | None:
        """Where a tensor of the file goes, None for one that no rule knows."""
        for pattern, place in self._rules:
            if match := pattern.fullmatch(name):
                if isinstance(place, str):
                    place = Place((place,), lambda tensor, _: [tensor])
                return place._replace(names=tuple(target.format(**match.groupdict()) for target in place.names))
        return None


def _regular_expression(name: str) -> str:
    pieces = re.split(r"\{(\w+)\}", name)
    # Text and the names of placeholders take turns.
    return "".join(
        f"(?P<{piece}>{_PLACEHOLDERS[piece]})" if index % 2 else re.escape(piece) for index, piece in enumerate(pieces)
    )
