from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff.nn import bfloat16_products, split_products, tile_unit
from fastdiff.nn.bfloat16_products import PackedWeight
from fastdiff.nn.kept import Keeper
from fastdiff.nn.prepacking import may_prepack, onednn_has_faster_products, pack_matrix, packed_linear
from fastdiff.nn.split_products import SplitWeight


class Linear(Keeper, nn.Linear):
    """:class:`torch.nn.Linear` that runs faster, on a CPU.

    In evaluation mode, and where no gradient is asked for, the weight is laid out at the first call and kept so, as a
    second copy:

    * in bfloat16, on a processor with a tile unit (AMX), and for at least 1024 inputs, for a product of our own, see
      ``fastdiff.nn.bfloat16_products``.
    * in float32, on a processor with a tile unit (AMX), for a weight of at least 32768 numbers and at least 32 rows, as
      three parts in bfloat16, 1.5 times the size of the weight: their products are as accurate as float32's and mostly
      1.5 to 1.9 times as fast on cores that no other thread shares, see ``fastdiff.nn.split_products``.
    * else in bfloat16 for oneDNN, as ``F.linear`` lays the weight out anew at every call. So in float32 on a processor
      without a tile unit, where a measurement at the first call has shown oneDNN to be faster than the library that
      ``F.linear`` calls.

    Results may differ from ``F.linear``'s in their last bits. A change of the weight is seen as
    :class:`fastdiff.nn.Attention` sees it.

    >>> layer = Linear(320, 1280, dtype=torch.bfloat16).eval()
    >>> with torch.no_grad():
    ...     y = layer(torch.randn(2, 64, 320, dtype=torch.bfloat16))
    """

    def forward(self, input: Tensor) -> Tensor:
        return self._linear(input, self._packed(input))

    def gelu(self, input: Tensor, approximate: str) -> Tensor:
        """GELU of the layer's result, in one pass where the weight is laid out in bfloat16 or for oneDNN."""
        packed = self._packed(input)
        if isinstance(packed, PackedWeight):
            return bfloat16_products.linear(input, packed, self.bias, approximate)
        if isinstance(packed, Tensor):
            return packed_linear(input, packed, self.bias, approximate)
        return F.gelu(self._linear(input, packed), approximate=approximate)

    @property
    def matrix(self) -> Tensor:
        """The weight as (out_features, in_features)."""
        return self.weight

    def _linear(self, x: Tensor, packed: Tensor | PackedWeight | SplitWeight | None) -> Tensor:
        if packed is None:
            return F.linear(x, self.matrix, self.bias)
        if isinstance(packed, PackedWeight):
            return bfloat16_products.linear(x, packed, self.bias)
        if isinstance(packed, SplitWeight):
            return split_products.linear(x, packed, self.matrix, self.bias)
        return packed_linear(x, packed, self.bias)

    def _packed(self, x: Tensor) -> Tensor | PackedWeight | SplitWeight | None:
        weight = self.weight
        fits = x.dim() > 0 and x.shape[-1] == self.in_features
        if self.training or not fits or not may_prepack(x, weight, self.bias):
            return None
        rows = x.numel() // self.in_features
        if x.dtype == torch.float32 and tile_unit.available():
            # With too few rows, not oneDNN's layout either: it would take the place of what is kept for more rows.
            if weight.numel() < split_products.LEAST_NUMBERS or rows < split_products.LEAST_ROWS:
                return None
            return self.keep((weight,), "split", lambda: split_products.pack(self.matrix[None]))
        long = self.in_features >= bfloat16_products.LEAST_TERMS
        if x.dtype == torch.bfloat16 and long and tile_unit.available():
            return self.keep((weight,), "bfloat16", lambda: bfloat16_products.pack(self.matrix))
        if x.dtype == torch.float32 and not onednn_has_faster_products():
            return None
        return self.keep((weight,), "onednn", lambda: pack_matrix(self.matrix, rows))
