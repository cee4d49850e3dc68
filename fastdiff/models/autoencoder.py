"""What the autoencoders of latent diffusion share: slices, tiles, and the scale of latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastdiff.models.input_checks import require_feature_map
from fastdiff.models.pretrained import PretrainedModel
from fastdiff.models.tiling import tiled


class DecoderOutput(NamedTuple):
    sample: Tensor
    """(N, out_channels, H, W)"""


class Autoencoder(PretrainedModel):
    """An autoencoder whose latents are `spatial_scale_factor` times as small as the image along each axis.

    Two switches bound the memory of large batches and images. With slicing, a batch is worked out sample by sample; the
    result is the same but for the rounding of PyTorch's convolutions. With tiling, an image that is larger than a tile
    is worked out in overlapping tiles that are blended. Each tile's group norms see that tile only, so colours may
    drift a little from tile to tile.
    """

    spatial_scale_factor: int
    tile_sample_min_size: int
    """Height and width of a tile in pixels of the image."""
    tile_overlap_factor: float
    """The part of a tile that overlaps with the next."""
    use_slicing: bool = False
    use_tiling: bool = False

    def enable_slicing(self) -> None:
        """Encode and decode a batch sample by sample."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        self.use_slicing = False

    def enable_tiling(self, tile_sample_min_size: int | None = None, tile_overlap_factor: float | None = None) -> None:
        """Encode and decode large images in tiles.

        Args:
            tile_sample_min_size: height and width of a tile in pixels of the image; None leaves it as it is.
            tile_overlap_factor: the part of a tile that overlaps with the next; None leaves it as it is.

        Raises:
            ValueError: a tile smaller than one latent, or an overlap that is not from 0 to 0.9.
        """
        size = self.tile_sample_min_size if tile_sample_min_size is None else tile_sample_min_size
        overlap = self.tile_overlap_factor if tile_overlap_factor is None else tile_overlap_factor
        if size < self.spatial_scale_factor:
            raise ValueError(f"tile_sample_min_size must be {self.spatial_scale_factor} at least, got {size}")
        if not 0 <= overlap <= 0.9:
            raise ValueError(f"tile_overlap_factor must be from 0 to 0.9, got {overlap}")
        self.tile_sample_min_size, self.tile_overlap_factor, self.use_tiling = size, overlap, True

    def disable_tiling(self) -> None:
        self.use_tiling = False

    def normalize_latents(self, latents: Tensor) -> Tensor:
        """What :meth:`encode` gives, as a diffusion model sees it: about zero and of unit variance."""
        mean, std = self._latent_statistics(latents)
        return (latents - mean) / std

    def denormalize_latents(self, latents: Tensor) -> Tensor:
        """The latents of a diffusion model, as :meth:`decode` takes them."""
        mean, std = self._latent_statistics(latents)
        return latents * std + mean

    def _latent_statistics(self, latents: Tensor) -> tuple[Tensor | float, Tensor | float]:
        return self.config.shift_factor or 0.0, 1 / self.config.scaling_factor

    def _latent_size(self, pixels: int) -> int:
        return pixels // self.spatial_scale_factor

    def _encode(self, network: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        require_feature_map("sample", image, self.config.in_channels)
        size = self._latent_size(image.shape[2]), self._latent_size(image.shape[3])
        if 0 in size:
            raise ValueError(
                f"sample's height and width must make up one latent at least, of {self.spatial_scale_factor} x "
                f"{self.spatial_scale_factor} pixels, got {tuple(image.shape[2:])}"
            )
        return self._in_parts(network, image, _Geometry(size, input_step=self.spatial_scale_factor, output_step=1))

    def _decode(self, network: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
        require_feature_map("latents", latents, self.config.latent_channels)
        size = latents.shape[2], latents.shape[3]
        return self._in_parts(network, latents, _Geometry(size, input_step=1, output_step=self.spatial_scale_factor))

    def _in_parts(self, network: Callable[[Tensor], Tensor], x: Tensor, geometry: _Geometry) -> Tensor:
        if self.use_slicing and x.shape[0] > 1:
            return torch.cat([self._in_tiles(network, part, geometry) for part in x.split(1)])
        return self._in_tiles(network, x, geometry)

    def _in_tiles(self, network: Callable[[Tensor], Tensor], x: Tensor, geometry: _Geometry) -> Tensor:
        if not self.use_tiling:
            return network(x)
        tile = self.tile_sample_min_size // self.spatial_scale_factor
        overlap = min(int(tile * self.tile_overlap_factor), tile - 1)
        return tiled(network, x, tile=tile, overlap=overlap, **geometry._asdict())


class _Geometry(NamedTuple):
    size: tuple[int, int]
    """Height and width in latents."""
    input_step: int
    output_step: int
    """Pixels a latent, of what goes into the network and of what comes out."""
