"""3x3 convolutions of float32 maps on a CPU with 16 multiplications for 4 results, where the sum takes 36.

Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks,
arXiv:1509.09308, section 4.1). Tiles of the map are split into 16 parts, which a library or the tile unit of the
processor multiplies with those of the weight, and the products are merged into results. Of larger tiles, F(4x4, 3x3)
has errors several times those of the sum; those of these are about a third of those of oneDNN's channels-last
convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff import _extension
from fastdiff.nn import split_products, tile_unit
from fastdiff.nn.prepacking import onednn_has_faster_products, pack_matrix, packed_linear
from fastdiff.nn.split_products import SplitWeight

_CHUNK_TILES = 128
"""Worked on at a time, so that parts and products stay in the cache."""
_LEAST_TILES = 16
"""With fewer, reading the weight, larger than the plain one, takes longer than the multiplications saved."""
_LEAST_CHANNELS = 128
"""With fewer, splitting and merging does. Both are of one sample: its result must not depend on the others."""
_CHANNELS = 16  # they come in multiples of this

Parts = SplitWeight | Tensor | list[Tensor]
"""For the tile unit, or for the library that is the faster."""


def suits(x: Tensor, out_channels: int) -> bool:
    """Whether a 3x3 convolution of x (N, C, H, W) of unit stride and padding can be done so, and is faster."""
    channels = x.shape[1]
    return (
        _extension._C is not None
        and x.dtype == torch.float32
        and channels % _CHANNELS == out_channels % _CHANNELS == 0
        and min(channels, out_channels) >= _LEAST_CHANNELS
        and _tiles(x[:1]) >= _LEAST_TILES
    )


def pack(weight: Tensor) -> Parts:
    """The 16 parts G w G^T of a weight (O, C, 3, 3), as :func:`convolve` takes them."""
    out_channels, channels = weight.shape[:2]
    rows = [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]
    g = torch.tensor(rows, dtype=weight.dtype, device=weight.device)
    pixels = weight.permute(2, 3, 0, 1).reshape(9, -1)
    parts = (torch.kron(g, g) @ pixels).view(16, out_channels, channels)
    packed = split_products.pack(parts) if tile_unit.available() else None
    if packed is not None:
        return packed
    if onednn_has_faster_products():
        return [pack_matrix(part, _CHUNK_TILES) for part in parts]
    return parts.transpose(1, 2)


def convolve(x: Tensor, parts: Parts, bias: Tensor | None, out_channels: int) -> tuple[Tensor, bool]:
    """x (N, C, H, W) with a weight from :func:`pack`: (N, O, H, W). Both maps are channels-last.

    With it comes whether that can be relied on: where the tile unit has come upon infinities, NaN or numbers so large
    that they are as good as infinite, it cannot.
    """
    pixels = x.permute(0, 2, 3, 1)
    result = x.new_empty(*pixels.shape[:3], out_channels)
    tiles, reliable = _tiles(x), True
    for first in range(0, tiles, _CHUNK_TILES):
        split = torch.ops.fastdiff.winograd_input.default(pixels, first, min(_CHUNK_TILES, tiles - first))
        if isinstance(parts, SplitWeight):
            product, finite = split_products.multiply(split, parts)
            products, reliable = list(product), reliable and finite
        elif isinstance(parts, Tensor):
            products = list(torch.bmm(split, parts))
        else:
            products = [packed_linear(part, weight, None) for part, weight in zip(split, parts, strict=True)]
        torch.ops.fastdiff.winograd_output.default(products, bias, result, first)
    return result.permute(0, 3, 1, 2), reliable


def _tiles(x: Tensor) -> int:
    """Of 2x2 results, in a map (N, C, H, W)."""
    batch, _, height, width = x.shape
    return batch * ((height + 1) // 2) * ((width + 1) // 2)
