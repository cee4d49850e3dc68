"""Pictures as tokens, and back. Attribute names are diffusers' state_dict keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdiff import ops
from fastdiff.models.input_checks import require_feature_map, require_multiples
from fastdiff.nn import Conv2d


class PatchEmbed(nn.Module):
    """Square patches of a picture, projected, plus the embedding of their place: (N, in_channels, H, W) -> (N, L, C).

    Args:
        in_channels: of the picture.
        channels: C, a multiple of 4.
        patch_size: side of a patch.
        base_size: patches on a side of the picture that the positions count from 0 to base_size for.
        max_size: None stretches the positions of any picture to that range (DiT). Otherwise there is a table of
            max_size x max_size places, part of the checkpoint, and a picture takes its middle (SD3).
    """

    def __init__(
        self, in_channels: int, channels: int, patch_size: int, base_size: int, max_size: int | None = None
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.base_size = base_size
        self.max_size = max_size
        self.proj = Conv2d(in_channels, channels, patch_size, stride=patch_size)
        self.pos_embed: Tensor | None
        table = None if max_size is None else position_table(channels, max_size, max_size, base_size).flatten(0, 1)
        self.register_buffer("pos_embed", None if table is None else table[None])  # (1, max_size ** 2, C)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.proj(x)  # (N, C, H / patch_size, W / patch_size)
        tokens = patches.flatten(2).transpose(1, 2)
        positions = self._positions(patches).flatten(0, 1)
        return (tokens + positions).to(tokens.dtype).contiguous()

    def _positions(self, patches: Tensor) -> Tensor:
        """(H, W, C) of a grid of patches (N, C, H, W)."""
        _, channels, height, width = patches.shape
        if self.pos_embed is None or self.max_size is None:
            return position_table(channels, height, width, self.base_size, device=patches.device)
        if max(height, width) > self.max_size:
            raise ValueError(
                f"height and width must be at most pos_embed_max_size {self.max_size} patches of "
                f"{self.patch_size} x {self.patch_size}, got {height} x {width} patches"
            )
        top, left = (self.max_size - height) // 2, (self.max_size - width) // 2
        table = self.pos_embed[0].unflatten(0, (self.max_size, self.max_size))
        return table[top : top + height, left : left + width]


def position_table(
    channels: int, height: int, width: int, base_size: int, *, device: torch.device | None = None
) -> Tensor:
    """Sines and cosines of each place of a grid, float32 (height, width, channels): the column first, then the row."""
    rows, columns = (_embed_places(channels // 2, size, base_size, device) for size in (height, width))
    return torch.cat((columns.expand(height, -1, -1), rows[:, None].expand(-1, width, -1)), dim=-1)


def _embed_places(channels: int, size: int, base_size: int, device: torch.device | None) -> Tensor:
    # float32 as in diffusers, for the same last digits; float64 afterwards because the definition of the op then works
    # in it, as the op always does.
    places = torch.arange(size, dtype=torch.float32, device=device) / (size / base_size)
    return ops.timestep_embedding(places.double(), channels, downscale_freq_shift=0)


def unpatchify(tokens: Tensor, height: int, width: int, patch_size: int) -> Tensor:
    """(N, height * width, patch_size ** 2 * C) -> the picture (N, C, height * patch_size, width * patch_size)."""
    patches = tokens.unflatten(1, (height, width)).unflatten(-1, (patch_size, patch_size, -1))
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def grid_size(name: str, x: Tensor, in_channels: int, patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches of a picture, which must be (N, in_channels, H, W) of whole patches."""
    require_feature_map(name, x, in_channels)
    require_multiples(name, x, patch_size)
    return x.shape[2] // patch_size, x.shape[3] // patch_size
