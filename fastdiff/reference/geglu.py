from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def geglu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """Definition of :func:`fastdiff.ops.geglu` in PyTorch's own operators."""
    hidden, gate = x.chunk(2, dim=-1)
    return hidden * F.gelu(gate, approximate=approximate)
