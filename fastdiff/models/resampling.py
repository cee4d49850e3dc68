"""Feature maps (N, C, H, W) at half or double the resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def double(x: Tensor) -> Tensor:
    """Every pixel four times."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def halve(x: Tensor) -> Tensor:
    """The mean of every four pixels."""
    return F.avg_pool2d(x, 2)


def resample(
    x: Tensor, mode: str | None, taps: Sequence[float], kernel: Tensor | None = None, *, padded: bool = True
) -> Tensor:
    """A feature map (N, C, H, W) at half ("down") or double ("up") the resolution, by a separable filter.

    Args:
        taps: the filter along one axis, of an even length and any sum: it is divided by that. Two equal ones are the
            mean of four pixels on the way down, and the nearest neighbour on the way up.
        kernel: what :func:`filter_kernel` makes of the taps, where it is at hand.
        padded: with zeros, so that the resolution is exactly half.
    """
    if mode is None:
        return x
    if len(taps) == 2 and taps[0] == taps[1]:
        return halve(x) if mode == "down" else double(x)
    work = _workable(x)
    kernel = filter_kernel(taps, x.device) if kernel is None else kernel
    kernel = kernel.to(work.dtype).expand(x.shape[1], -1, -1, -1)
    padding = (len(taps) - 1) // 2 if padded else 0
    if mode == "down":
        return F.conv2d(work, kernel, stride=2, padding=padding, groups=x.shape[1]).to(x.dtype)
    return F.conv_transpose2d(work, 4 * kernel, stride=2, padding=padding, groups=x.shape[1]).to(x.dtype)


def filter_kernel(taps: Sequence[float], device: torch.device | None = None) -> Tensor:
    """(1, 1, k, k), of the sum 1; filled in on the device, so that nothing waits for a copy to it."""
    line = torch.stack([torch.full((), tap, dtype=torch.float32, device=device) for tap in taps])
    return (torch.outer(line, line) / line.sum() ** 2)[None, None]


def _workable(x: Tensor) -> Tensor:
    # On a CPU the transposed convolution of single channels, which is also the gradient of the other, takes twenty
    # times as long in half precision.
    return x.float() if x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16) else x
