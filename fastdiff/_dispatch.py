from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def call(op: torch._ops.OpOverload, *arguments: Any) -> Any:
    """Call a custom op, past its autograd layer where no gradient is asked for.

    That layer is Python and takes longer (10 us) than some of the kernels it would wrap. Compilers see the plain call.

    Raises:
        NotImplementedError: a forward-mode derivative is asked for: torch would silently take it to be zero.
    """
    if torch.compiler.is_compiling():
        return op(*arguments)
    if forward_ad._current_level >= 0 and any(map(_has_tangent, _tensors(arguments))):
        raise NotImplementedError(
            f"{op._schema.name.replace('::', '.ops.')} has no forward-mode derivative (torch.func.jvp, dual tensors); "
            "inside fastdiff.use_reference() it has"
        )
    # Inside a transform of torch.func a tensor tells of the innermost level only.
    transformed = torch._C._functorch.maybe_current_level() is not None
    if transformed or asks_for_gradient(_tensors(arguments)):
        return op(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


def asks_for_gradient(tensors: Iterable[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from _tensors(argument)


def _has_tangent(tensor: Tensor) -> bool:
    """Whether it is a dual tensor, or belongs to a `torch.func.jvp` on any level of nested transforms."""
    functorch = torch._C._functorch
    stack = functorch.get_interpreter_stack() or ()
    jvp_levels = {transform.level() for transform in stack if transform.key() == functorch.TransformType.Jvp}
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.maybe_get_level(tensor) in jvp_levels:
            return True
        tensor = functorch.get_unwrapped(tensor)
    return forward_ad.unpack_dual(tensor).tangent is not None


def is_left_to_inductor(x: Tensor) -> bool:
    """Whether `torch.compile` is to trace the definition of an elementwise op, in place of the op, on tensors like x.

    Inductor fuses a definition with the elementwise work around it, and cannot look into an op. An exported program
    keeps the op, since it may run as it is. On a GPU, too: there nothing has been measured yet.
    """
    compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return compiling and x.device.type == "cpu"
