from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff.nn.kept import Keeper
from fastdiff.nn.prepacking import may_prepack, onednn_has_faster_products, pack_matrix, packed_linear


class Linear(Keeper, nn.Linear):
    """:class:`torch.nn.Linear` that runs at the best pace of the libraries at hand, on a CPU.

    In evaluation mode, and where no gradient is asked for, the weight is laid out for oneDNN at the first call and kept
    so, as a second copy: ``F.linear`` lays a bfloat16 weight out anew at every call. In float32 that is done where a
    measurement at the first call has shown oneDNN to be faster than the library that ``F.linear`` calls; only there are
    results not ``F.linear``'s bit for bit. A change of the weight is seen as :class:`fastdiff.nn.Attention` sees it.

    >>> layer = Linear(320, 1280, dtype=torch.bfloat16).eval()
    >>> with torch.no_grad():
    ...     y = layer(torch.randn(2, 64, 320, dtype=torch.bfloat16))
    """

    def forward(self, input: Tensor) -> Tensor:
        packed = self._packed(input)
        if packed is None:
            return F.linear(input, self.matrix, self.bias)
        return packed_linear(input, packed, self.bias)

    def gelu(self, input: Tensor, approximate: str) -> Tensor:
        """GELU of the layer's result, in one pass where the weight is laid out for it."""
        packed = self._packed(input)
        if packed is None:
            return F.gelu(F.linear(input, self.matrix, self.bias), approximate=approximate)
        return packed_linear(input, packed, self.bias, approximate)

    @property
    def matrix(self) -> Tensor:
        """The weight as (out_features, in_features)."""
        return self.weight

    def _packed(self, x: Tensor) -> Tensor | None:
        fits = x.dim() > 0 and x.shape[-1] == self.in_features
        if self.training or not fits or not may_prepack(x, self.weight, self.bias):
            return None
        if x.dtype == torch.float32 and not onednn_has_faster_products():
            return None
        return self.keep((self.weight,), None, lambda: pack_matrix(self.matrix, x.numel() // self.in_features))
