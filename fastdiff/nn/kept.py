"""What is worked out from tensors once, and kept as long as these stay as they were."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on


class Keeper(nn.Module):
    """A module that keeps one value. Copies and pickles of it, and training, start without."""

    _kept: Kept | None = None

    def forget(self) -> None:
        """Drop what is kept."""
        self._kept = None

    def keep(self, sources: tuple[Tensor, ...], setting: Hashable, work_out: Callable[[], Any]) -> Any:
        """What was kept if it is of these sources, unchanged, and this setting; else it is worked out and kept."""
        if self._kept is None or not self._kept.is_of(sources, setting):
            self._kept = Kept(tuple(map(_Version.of, sources)), setting, work_out())
        return self._kept.value

    def train(self, mode: bool = True) -> Self:
        if mode:
            self.forget()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self.forget()  # weights may come to lie where others lay before
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


class Kept(NamedTuple):
    """A value, and what it was worked out from."""

    versions: tuple[_Version, ...]
    setting: Hashable
    value: Any

    def is_of(self, sources: tuple[Tensor, ...], setting: Hashable) -> bool:
        """Whether these are the same tensors, unchanged, and the same setting.

        A change in place is seen by the tensor's version, which every operation of PyTorch counts up; writing through
        ``tensor.data`` or NumPy is not.
        """
        return (
            len(self.versions) == len(sources)
            and self.setting == setting
            and all(version.is_current(tensor) for version, tensor in zip(self.versions, sources, strict=True))
        )


def may_keep(*sources: Tensor) -> bool:
    """Whether what is worked out from these tensors may be kept.

    Not with gradients, which would have to reach the sources. Tensors made in inference mode count no versions; a
    compiler would freeze what is kept into its graph.
    """
    return not (
        torch.is_grad_enabled() or torch.compiler.is_compiling() or any(source.is_inference() for source in sources)
    )


class _Version(NamedTuple):
    """A tensor as it was: the object, where its numbers lie, and how often they had been written."""

    tensor: weakref.ref[Tensor]
    address: int
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Version:
        return cls(weakref.ref(tensor), tensor.data_ptr(), tensor._version)

    def is_current(self, tensor: Tensor) -> bool:
        return self.tensor() is tensor and self.address == tensor.data_ptr() and self.version == tensor._version
