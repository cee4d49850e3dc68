from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


class ExactBuffers(nn.Module):
    """A module whose own buffers stay float32 or wider when the model goes to a narrower dtype.

    They are frequencies and levels of noise: bfloat16 would round a phase of 100 radians by half a turn.
    """

    def _apply(self, function: Any, recurse: bool = True) -> Any:
        before = dict(self._buffers)
        super()._apply(function, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype.itemsize < torch.float32.itemsize:
                self._buffers[name] = old.to(new.device, torch.float32)
        return self


def exact_names(model: nn.Module) -> Iterator[str]:
    """The ``state_dict`` keys of the buffers that keep their dtype."""
    for prefix, module in model.named_modules():
        if isinstance(module, ExactBuffers):
            yield from (name for name, _ in module.named_buffers(prefix, recurse=False))
