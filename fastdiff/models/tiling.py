"""A network of bounded reach on overlapping tiles of a large image, blended into one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Tile(NamedTuple):
    """One interval of an axis, in units of latents."""

    start: int
    stop: int
    fade_in: int
    """Length of the overlap with the tile before; 0 at the border."""
    fade_out: int


def tiles(size: int, tile: int, overlap: int) -> list[Tile]:
    """As few tiles as cover `size` with `overlap` at least, spread evenly, so that none is a sliver."""
    if size <= tile:
        return [Tile(0, size, 0, 0)]
    count = math.ceil((size - overlap) / (tile - overlap))
    starts = [round(index * (size - tile) / (count - 1)) for index in range(count)]
    shared = [before + tile - after for before, after in zip(starts, starts[1:], strict=False)]
    return [
        Tile(start, start + tile, fade_in, fade_out)
        for start, fade_in, fade_out in zip(starts, [0, *shared], [*shared, 0], strict=True)
    ]


def tiled(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    size: tuple[int, int],
    *,
    tile: int,
    overlap: int,
    input_step: int,
    output_step: int,
) -> Tensor:
    """function(x), worked out on tiles that are cross-faded where they overlap.

    No more than the result and one tile is held at a time.

    Args:
        function: (N, C, input_step * h, input_step * w) -> (N, C', output_step * h, output_step * w), for any h and w.
        x: (N, C, H, W).
        size: h and w of the whole; where input_step does not divide H or W, the last tile has what is left.
        tile, overlap: in latents, the unit of h and w; overlap is smaller than tile.
    """
    rows, columns = (tiles(length, tile, overlap) for length in size)
    if len(rows) == len(columns) == 1:
        return function(x)
    row_weights, column_weights = (_weights(axis, output_step) for axis in (rows, columns))
    result: Tensor | None = None
    for row, row_weight in zip(rows, row_weights, strict=True):
        for column, column_weight in zip(columns, column_weights, strict=True):
            part = function(x[:, :, _pixels(row, rows, input_step), _pixels(column, columns, input_step)])
            if result is None:
                result = _zeros_like(part, rows[-1].stop * output_step, columns[-1].stop * output_step)
            weight = (row_weight[:, None] * column_weight).to(part)
            place = result[:, :, _span(row, output_step), _span(column, output_step)]
            place.addcmul_(part, weight)
    assert result is not None
    return result


def _pixels(tile: Tile, axis: list[Tile], step: int) -> slice:
    return slice(tile.start * step, None if tile is axis[-1] else tile.stop * step)


def _span(tile: Tile, step: int) -> slice:
    return slice(tile.start * step, tile.stop * step)


def _zeros_like(part: Tensor, height: int, width: int) -> Tensor:
    channels_last = part.is_contiguous(memory_format=torch.channels_last) and not part.is_contiguous()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (*part.shape[:2], height, width)
    return torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=layout).zero_()


def _weights(axis: list[Tile], step: int) -> list[Tensor]:
    """Of each tile, how much each of its pixels counts, together 1 everywhere."""
    ramps = [_ramps(tile, step) for tile in axis]
    total = torch.zeros(axis[-1].stop * step, dtype=torch.float64)
    for tile, ramp in zip(axis, ramps, strict=True):
        total[_span(tile, step)] += ramp
    return [ramp / total[_span(tile, step)] for tile, ramp in zip(axis, ramps, strict=True)]


def _ramps(tile: Tile, step: int) -> Tensor:
    """1 with linear ramps in the middle half of the overlaps.

    Not all over them: near its border a tile is wrong, since the network pads it with zeros there.
    """
    position = torch.arange((tile.stop - tile.start) * step, dtype=torch.float64) + 0.5
    weight = torch.ones_like(position)
    for overlap, distance in ((tile.fade_in, position), (tile.fade_out, len(position) - position)):
        if overlap:
            weight = weight.minimum((2 * distance / (overlap * step) - 0.5).clamp(0, 1))
    return weight
