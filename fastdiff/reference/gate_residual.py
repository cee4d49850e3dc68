from __future__ import annotations

from torch import Tensor


def gate_residual(x: Tensor, gate: Tensor, residual: Tensor) -> Tensor:
    """Definition of :func:`fastdiff.ops.gate_residual` in PyTorch's own operators."""
    gate = gate if gate.dim() == 3 else gate.unsqueeze(1)
    return residual + gate.to(x.dtype) * x
