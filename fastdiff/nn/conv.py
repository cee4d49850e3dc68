from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdiff.nn.kept import Keeper
from fastdiff.nn.prepacking import may_prepack


class Conv2d(Keeper, nn.Conv2d):
    """:class:`torch.nn.Conv2d` with the same results, to the bit, that does not lay its weight out at every call.

    On a CPU, in evaluation mode and where no gradient is asked for, the weight is laid out for oneDNN at the first call
    of a channels-last input and kept so, as a second copy. Where the map is small that took longer than the sums. A
    change of the weight is seen as :class:`fastdiff.nn.Attention` sees it.

    >>> layer = Conv2d(320, 640, 3, padding=1).eval().to(memory_format=torch.channels_last)
    >>> with torch.no_grad():
    ...     y = layer(torch.randn(2, 320, 16, 16).contiguous(memory_format=torch.channels_last))
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self._prepacks(input):
            return super().forward(input)
        arrangement = (self.padding, self.stride, self.dilation, self.groups)
        pack = torch.ops.mkldnn._reorder_convolution_weight
        weight = self.keep((self.weight,), None, lambda: pack(self.weight, *arrangement, input.shape))
        return torch.ops.mkldnn._convolution_pointwise(input, weight, self.bias, *arrangement, "none", [], "")

    def _prepacks(self, x: Tensor) -> bool:
        return (
            not self.training
            and may_prepack(x, self.weight, self.bias)
            and x.dim() == 4
            and x.is_contiguous(memory_format=torch.channels_last)
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
        )
