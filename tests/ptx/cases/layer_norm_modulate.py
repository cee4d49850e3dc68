"""Every kernel of layer_norm_modulate: three dtypes, operands of both kinds of 16 bits, aligned and not, long rows."""

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
# Operands have code of their own for each dtype.
OPERAND_DTYPES = {"half": (torch.float16, torch.bfloat16), "bfloat16": (torch.bfloat16, torch.float16)}
NAMES = ("x", "scale", "shift", "gate", "residual", "weight", "bias")


class LayerNormModulate:
    def __init__(
        self, shape: tuple[int, int, int], dtype: torch.dtype, operand_dtypes: Sequence[torch.dtype], per_token: bool
    ) -> None:
        self.dtype = dtype
        self.rms = per_token
        batch, tokens, channels = shape
        modulation = shape if per_token else (batch, 1, channels)
        sizes = (modulation, modulation, modulation, (channels,), (channels,))
        scale, shift, gate, weight, bias = (
            torch.randn(size).to(operand_dtype)
            for size, operand_dtype in zip(sizes, itertools.cycle(operand_dtypes), strict=False)
        )
        x, residual, *self.outer = (torch.randn(shape).to(dtype) for _ in range(4))
        self.operands = [x, scale, shift, gate, residual, weight, bias]

    def run(self, ops: Any) -> Sequence[Tensor]:
        x, scale, shift, gate, residual, weight, bias = self.operands
        arguments = (x, scale, shift, gate, residual, weight, bias, 1e-6, self.rms)
        y, total, mean, rstd = ops.layer_norm_modulate(*arguments)
        gradients = ops.layer_norm_modulate_backward(
            *self.outer, x, scale, gate, total, weight, bias, mean, rstd, self.rms, [True] * 5
        )
        return [y, total, *gradients]

    def define(self, dtype: torch.dtype) -> Sequence[Tensor]:
        leaves = {n: v.to(dtype).requires_grad_() for n, v in zip(NAMES, self.operands, strict=True)}
        outputs = reference.layer_norm_modulate(**leaves, eps=1e-6, norm="rms" if self.rms else "layer")
        order = ("residual", "x", "gate", "scale", "shift", "weight", "bias")
        gradients = torch.autograd.grad(outputs, [leaves[n] for n in order], [g.to(dtype) for g in self.outer])
        return [*(output.detach() for output in outputs), *gradients]


def _cases() -> list[Case]:
    cases = []
    for dtype, operands, channels in itertools.product(DTYPES, OPERAND_DTYPES, (64, 37)):
        make = functools.partial(
            LayerNormModulate, (2, 34, channels), dtype, OPERAND_DTYPES[operands], operands == "half"
        )
        cases.append(Case(f"layer_norm_modulate-{str(dtype).removeprefix('torch.')}-{operands}-{channels}", make))
    for dtype, operands, more in itertools.product(DTYPES, OPERAND_DTYPES, (8, 5)):
        # Too long for the registers.
        channels = (8192 if dtype is torch.float32 else 16384) + more
        make = functools.partial(LayerNormModulate, (1, 2, channels), dtype, OPERAND_DTYPES[operands], False)
        cases.append(Case(f"layer_norm_modulate-{str(dtype).removeprefix('torch.')}-{operands}-long-{more}", make))
    return cases


CASES = _cases()
