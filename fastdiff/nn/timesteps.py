from __future__ import annotations

from torch import Tensor, nn

from fastdiff import ops


class Timesteps(nn.Module):
    """The raw embedding of timesteps, :func:`fastdiff.ops.timestep_embedding`: (N,) -> float32 (N, num_channels).

    Same constructor as diffusers' ``Timesteps``; there are no parameters. ``Timesteps(256, True, 0)`` is the embedding
    of latent diffusion, SD3, FLUX and DiT's own code, ``Timesteps(256, False, 1)`` that of DDPM.
    """

    def __init__(
        self, num_channels: int, flip_sin_to_cos: bool, downscale_freq_shift: float, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.flip_sin_to_cos = flip_sin_to_cos
        self.downscale_freq_shift = downscale_freq_shift
        self.scale = scale

    def forward(self, timesteps: Tensor) -> Tensor:
        return ops.timestep_embedding(
            timesteps,
            self.num_channels,
            flip_sin_to_cos=self.flip_sin_to_cos,
            downscale_freq_shift=self.downscale_freq_shift,
            scale=self.scale,
        )
