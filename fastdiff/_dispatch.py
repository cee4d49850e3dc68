from __future__ import annotations

import torch


def call(op: torch._ops.OpOverload, *arguments):
    """Call a custom op, past its autograd layer where no gradient can be asked for.

    That layer is Python and takes longer (8 us) than some of the kernels it would wrap. Compilers see the plain call.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return op(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)
