"""Products of float32 matrices on the bfloat16 tile unit (AMX) of a processor, with the accuracy of float32.

A float32 number is the sum of three of bfloat16. Six of the nine products of such parts are summed, the others being
smaller than what float32 rounds away (Henry, Tang, Heinecke, Leveraging the bfloat16 Artificial Intelligence Datatype
For Higher-Precision Computations, arXiv:1904.06376). Of sums of many terms the root mean square of the errors is about
half that of MKL, the largest error no larger. A row's result is the same, to the bit, whatever other rows there are and
on any number of threads.

On cores to themselves, those of an Emerald Rapids Xeon, most products of models' sizes are 1.5 to 1.9 times as fast as
in MKL, on one thread and on two. While the second hardware thread of a core is busy too, with whatever program, the
tile unit's instructions are no longer worked on at the same time: then they are 0.8 to 0.9 times as fast, and 0.8 to
1.0 times on two threads of which that is so for one.

The unit reads and writes subnormal numbers as zero: results below 1.2e-38 are zero, and operands below about 1e-33 lose
digits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST_ROWS = 32
"""Of a linear layer's input. With fewer, reading the weight, half as large again as the plain one, takes longer than
the multiplications."""

LEAST_NUMBERS = 2**15
"""Of a linear layer's weight. With fewer, the call takes longer than the multiplications saved."""

_TOO_LARGE = float.fromhex("0x1.ffp127")
"""What rounds to infinity in bfloat16."""


class SplitWeight(NamedTuple):
    """The parts of weights (products, out, in) as the tile unit wants them, 1.5 times the size of these."""

    packed: Tensor
    out_features: int


def pack(weights: Tensor) -> SplitWeight | None:
    """Weights (products, out, in) laid out for :func:`multiply`; None if a number is not finite or too large."""
    if weights.numel() == 0:
        return None
    least, greatest = (extreme.item() for extreme in torch.aminmax(weights))
    if not max(-least, greatest) < _TOO_LARGE:  # which NaN is not, either
        return None
    return SplitWeight(torch.ops.fastdiff.split_weight.default(weights.contiguous()), weights.shape[1])


def multiply(x: Tensor, weight: SplitWeight, bias: Tensor | None = None) -> tuple[Tensor, bool]:
    """x (products, rows, in) times the weights: (products, rows, out), and whether all of that is finite.

    What is not finite may differ from the result in float32: that of a row with infinities, or numbers above 3.38e38.
    """
    y = x.new_empty(*x.shape[:2], weight.out_features)
    return y, torch.ops.fastdiff.split_product.default(x.contiguous(), weight.packed, bias, y)


def linear(x: Tensor, split: SplitWeight, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` of a weight (out, in) and what :func:`pack` has made of it, as weights of one product."""
    rows = x.reshape(1, -1, x.shape[-1])
    y, finite = multiply(rows, split, bias)
    if not finite:
        wrong = ~y.isfinite().all(-1)
        y[wrong] = F.linear(rows[wrong], weight, bias)
    return y.view(*x.shape[:-1], split.out_features)
