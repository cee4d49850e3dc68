"""Every kernel of group_norm_silu: three dtypes, both layouts, aligned or not, streaming and resident."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from ptx.case import Case
from torch import Tensor

from fastdiff import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PATHS = {"streaming": (132, 0), "resident": (1, 227 * 1024)}
# Each operand has code of its own for each dtype: both kinds of 16 bits are in every case.
OPERAND_DTYPES = ((torch.float16, torch.bfloat16), (torch.bfloat16, torch.float16))
GROUPS = 4
# By channels_last and aligned: (height, width). Channels first: more than one part of a channel, and the last not full;
# lanes with four vectors, and with less. Unaligned also in size.
SIZES = {(False, True): (32, 36), (False, False): (33, 35), (True, True): (9, 8), (True, False): (9, 7)}


class GroupNormSilu:
    def __init__(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        channels_last: bool,
        aligned: bool,
        operand_dtypes: Sequence[torch.dtype],
        silu: bool = True,
    ) -> None:
        self.dtype = dtype
        self.silu = silu
        self.x = _activation(shape, dtype, channels_last, aligned)
        self.dy = _activation(shape, dtype, channels_last, aligned)
        batch, channels = shape[:2]
        sizes = [(channels,)] * 2 + [(batch, channels)] * 3
        self.operands = [
            torch.randn(size).to(operand_dtype)
            for size, operand_dtype in zip(sizes, itertools.cycle(operand_dtypes), strict=False)
        ]

    def run(self, ops: Any) -> Sequence[Tensor]:
        y, mean, rstd = ops.group_norm_silu(self.x, GROUPS, *self.operands, 1e-5, self.silu)
        gradients = ops.group_norm_silu_backward(self.dy, self.x, mean, rstd, *self.operands, self.silu, [True] * 5)
        return [y, *gradients]

    def define(self, dtype: torch.dtype) -> Sequence[Tensor]:
        if self.x.numel() == 0:  # has no statistics; its gradients are defined to be zero
            return [torch.zeros(tensor.shape) for tensor in (self.x, self.x, *self.operands)]
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in (self.x, *self.operands)]
        x, weight, bias, time_bias, scale, shift = leaves
        activation = "silu" if self.silu else "none"
        y = reference.group_norm_silu(
            x, GROUPS, weight, bias, time_bias=time_bias, scale=scale, shift=shift, activation=activation
        )
        return [y.detach(), *torch.autograd.grad(y, leaves, self.dy.to(dtype))]


def _activation(shape: Sequence[int], dtype: torch.dtype, channels_last: bool, aligned: bool) -> Tensor:
    batch, channels, height, width = shape
    values = torch.randn(shape) + 0.5
    storage = torch.zeros(values.numel() + 16, dtype=dtype)
    first = -storage.data_ptr() % 16 // storage.element_size() + (0 if aligned else 1)
    dense = storage[first : first + values.numel()]
    if channels_last:
        return dense.view(batch, height, width, channels).permute(0, 3, 1, 2).copy_(values)
    return dense.view(shape).copy_(values)


def _cases() -> list[Case]:
    cases = []
    for dtype, channels_last, aligned, path in itertools.product(DTYPES, (False, True), (True, False), PATHS):
        operand_dtypes = OPERAND_DTYPES[aligned == (path == "resident")]
        # In float32 the results must be many, as the largest of a few rounding errors is a matter of luck.
        shape = (3, 40 if dtype is torch.float32 else 16 if aligned else 12, *SIZES[channels_last, aligned])
        names = (
            str(dtype).removeprefix("torch."),
            "channels_last" if channels_last else "channels_first",
            "aligned" if aligned else "unaligned",
            path,
        )
        make = functools.partial(GroupNormSilu, shape, dtype, channels_last, aligned, operand_dtypes)
        cases.append(Case("-".join(("group_norm_silu", *names)), make, *PATHS[path]))
    plain = functools.partial(GroupNormSilu, operand_dtypes=[torch.float32], dtype=torch.float32)
    layout = {"channels_last": False, "aligned": True}
    for path in PATHS:
        make = functools.partial(plain, (3, 8, 6, 6), silu=False, **layout)
        cases.append(Case(f"group_norm_silu-no_activation-{path}", make, *PATHS[path]))
    cases.append(Case("group_norm_silu-empty", functools.partial(plain, (2, 8, 0, 3), **layout)))
    return cases


CASES = _cases()
