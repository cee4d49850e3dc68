from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdiff.nn import winograd
from fastdiff.nn.kept import Keeper
from fastdiff.nn.prepacking import may_prepack


class Conv2d(Keeper, nn.Conv2d):
    """:class:`torch.nn.Conv2d` that runs channels-last maps fast, on a CPU.

    In evaluation mode, and where no gradient is asked for, what the weight becomes is worked out at the first call and
    kept, as a second copy:

    * oneDNN's own layout of it, in place of a new one at every call, which for small maps takes longer than the sums.
      Results are the same, to the bit.
    * In float32, for 3x3 convolutions of unit stride, the 16 parts of minimal filtering, F(2x2, 3x3)
      (arXiv:1509.09308), with 16 multiplications in place of 36: 1.4 to 2.5 times as fast as oneDNN's channels-last
      convolution, with a third of its error (that of the contiguous map is smaller yet). The copy has 16/9 the size of
      the weight. What is infinite or NaN reaches one pixel further, and an infinity makes NaN. On a processor with a
      tile unit (AMX) that multiplies the parts, see ``fastdiff.nn.split_products``: faster again, with a copy of 8/3
      the size, and samples with an infinity or NaN get the plain sum.

    A change of the weight is seen as :class:`fastdiff.nn.Attention` sees it.

    >>> layer = Conv2d(320, 640, 3, padding=1).eval().to(memory_format=torch.channels_last)
    >>> with torch.no_grad():
    ...     y = layer(torch.randn(2, 320, 16, 16).contiguous(memory_format=torch.channels_last))
    """

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if not self._prepacks(input, weight, bias):
            return super().forward(input)
        if self._filters_3x3() and winograd.suits(input, self.out_channels):
            return self._filter(input, weight, bias)
        arrangement = (self.padding, self.stride, self.dilation, self.groups)
        pack = torch.ops.mkldnn._reorder_convolution_weight.default
        packed = self.keep((weight,), "direct", lambda: pack(weight, *arrangement, input.shape))
        convolve = torch.ops.mkldnn._convolution_pointwise.default
        return convolve(input, packed, bias, *arrangement, "none", [], "")

    def _filter(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        parts = self.keep((weight,), "winograd", lambda: winograd.pack(weight))
        result, reliable = winograd.convolve(x, parts, bias, self.out_channels)
        if not reliable:
            samples = ~result.isfinite().flatten(1).all(1)
            result[samples] = super().forward(x[samples])
        return result

    def _filters_3x3(self) -> bool:
        """Whether every pixel becomes a weighted sum of its neighbourhood, over all channels."""
        units = (self.stride, self.padding, self.dilation)
        return self.kernel_size == (3, 3) and units == ((1, 1),) * 3 and self.groups == 1

    def _prepacks(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        return (
            not self.training
            and may_prepack(x, weight, bias)
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
            and x.dim() == 4
            and x.is_contiguous(memory_format=torch.channels_last)
            and not x.is_contiguous()  # which a map of one channel is, too
            and x.shape[1] == self.in_channels
            and all(
                size + 2 * padding >= dilation * (kernel - 1) + 1
                for size, padding, dilation, kernel in zip(
                    x.shape[2:], self.padding, self.dilation, self.kernel_size, strict=True
                )
            )
        )
