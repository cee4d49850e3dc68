from __future__ import annotations

import torch
from torch import Tensor


def call(op: torch._ops.OpOverload, *arguments):
    """Call a custom op, past its autograd layer where no gradient can be asked for.

    That layer is Python and takes longer (8 us) than some of the kernels it would wrap. Compilers see the plain call.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return op(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


def is_left_to_inductor(x: Tensor) -> bool:
    """Whether `torch.compile` is to trace the definition of an elementwise op, in place of the op, on tensors like x.

    Inductor fuses a definition with the elementwise work around it, and cannot look into an op. An exported program
    keeps the op, since it may run as it is. On a GPU, too: there nothing has been measured yet.
    """
    compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return compiling and x.device.type == "cpu"
