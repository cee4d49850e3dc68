"""What is worked out from tensors once, and kept as long as these stay as they were."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

_SAMPLES = 8


class Keeper(nn.Module):
    """A module that keeps one value. Copies and pickles of it, and training, start without."""

    _kept: Kept | None = None

    def forget(self) -> None:
        """Drop what is kept."""
        self._kept = None

    def keep(self, sources: tuple[Tensor, ...], setting: Hashable, work_out: Callable[[], Any]) -> Any:
        """What was kept if it is of these sources, unchanged, and this setting; else it is worked out and kept."""
        kept = self._kept  # which another thread may replace meanwhile
        if kept is None or not kept.is_of(sources, setting):
            kept = self._kept = Kept(tuple(map(_Version.of, sources)), setting, work_out())
        return kept.value

    def train(self, mode: bool = True) -> Self:
        if mode:
            self.forget()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self.forget()  # weights may come to lie where others lay before
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self.forget()
        super()._load_from_state_dict(*arguments)


class Kept(NamedTuple):
    """A value, and what it was worked out from."""

    versions: tuple[_Version, ...]
    setting: Hashable
    value: Any

    def is_of(self, sources: tuple[Tensor, ...], setting: Hashable) -> bool:
        """Whether these are the same tensors, unchanged, and the same setting.

        A change in place is seen by the tensor's version, which every operation of PyTorch counts up. What is written
        past PyTorch, or through ``tensor.data``, is seen on a CPU if it changes one of eight numbers, as a step of
        training, an average of weights or a merged adapter does.
        """
        return (
            len(self.versions) == len(sources)
            and self.setting == setting
            and all(version.is_current(tensor) for version, tensor in zip(self.versions, sources, strict=True))
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # it belongs to one module in one process


def may_keep(*sources: Tensor) -> bool:
    """Whether what is worked out from these tensors may be kept.

    Not where a derivative, a batch of weights or a program is made of what is computed, which would have to reach the
    sources. Tensors made in inference mode count no versions, and other processes count their own.
    """
    if (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or forward_ad._current_level >= 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return False
    for source in sources:
        if source.is_inference() or (source.is_cpu and source.untyped_storage().is_shared()):
            return False
    return True


class _Version(NamedTuple):
    """A tensor as it was: the object, where its numbers lie, how often they had been written, and a few of them."""

    tensor: weakref.ref[Tensor]
    address: int
    version: int
    samples: list[float] | None

    @classmethod
    def of(cls, tensor: Tensor) -> _Version:
        return cls(weakref.ref(tensor), tensor.data_ptr(), tensor._version, _samples(tensor))

    def is_current(self, tensor: Tensor) -> bool:
        return (
            self.tensor() is tensor
            and self.address == tensor.data_ptr()
            and self.version == tensor._version
            and self.samples == _samples(tensor)
        )


def _samples(tensor: Tensor) -> list[float] | None:
    """Some numbers of a dense tensor on a CPU; another device would have to be waited for."""
    dense = tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
    if not tensor.is_cpu or not dense or tensor.numel() < _SAMPLES:
        return None
    return tensor.as_strided((_SAMPLES,), (tensor.numel() // _SAMPLES,)).tolist()
