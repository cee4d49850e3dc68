"""When a weight is laid out for oneDNN ahead of time, and not at every call."""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff import _switch
from fastdiff.nn.kept import may_keep

_CLEARLY_FASTER = 1.2
"""More than the noise of a machine: which of two libraries is called, and so the last bits, must not be luck."""


def may_prepack(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN's own operators take these tensors, and what is made of the weight may be kept.

    Products of our own ask the same, so that what turns oneDNN off turns them off, too.
    """
    return (
        may_keep(weight)
        and x.is_cpu
        and weight.is_cpu
        and type(weight) in (Tensor, nn.Parameter)
        and x.dtype in _dtypes()
        and x.dtype == weight.dtype
        and (bias is None or (bias.dtype == x.dtype and bias.is_contiguous()))  # oneDNN reads no strides of it
        and x.numel() > 0
        and type(x) is Tensor
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and not _switch.reference_depth
    )


@functools.lru_cache(maxsize=1)
def _dtypes() -> tuple[torch.dtype, ...]:
    """What oneDNN computes in, natively, on this machine. Other processors than x86 have not been measured."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return ()
    bfloat16 = (torch.bfloat16,) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ()
    return (torch.float32, *bfloat16)


@functools.lru_cache(maxsize=1)
def onednn_has_faster_products() -> bool:
    """Whether oneDNN beats what `F.linear` calls in float32, by a measurement of some 40 ms on this machine.

    PyTorch calls MKL, which is half as fast on some processors and as fast as oneDNN on others.
    """
    # No draw from the generator of the process, and not of its default dtype or device.
    x, weight = (torch.ones(rows, 640, dtype=torch.float32, device="cpu") for rows in (256, 640))
    theirs, ours = [], []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other, and so for what else the machine has to do
    try:
        packed = pack_matrix(weight, len(x))
        for _ in range(10):
            theirs.append(_processor_seconds(lambda: F.linear(x, weight)))
            ours.append(_processor_seconds(lambda: packed_linear(x, packed, None)))
    finally:
        torch.set_num_threads(threads)
    # The shortest: the first call of each has its code to choose, and caches are shared with others.
    return min(theirs) > _CLEARLY_FASTER * min(ours)


def _processor_seconds(call: Callable[[], object]) -> float:
    """Of this thread, while it runs."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def pack_matrix(weight: Tensor, rows: int) -> Tensor:
    """The weight of a linear layer (out, in) as oneDNN wants it for an input of that many rows; others may come."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, rows)


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None, gelu: str | None = None) -> Tensor:
    """`F.linear`, and GELU of that approximation ("none", "tanh") in the same pass."""
    name, algorithm = ("none", "") if gelu is None else ("gelu", gelu)
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, name, [], algorithm)
