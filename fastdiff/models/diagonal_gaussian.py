from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff import ops


class DiagonalGaussianDistribution:
    """Independent normal distributions, one for each number of a latent: what a variational encoder gives.

    Args:
        parameters: (N, 2 * channels, H, W), means and then the logarithms of the variances, which are clamped to
            -30 ... 20.
    """

    def __init__(self, parameters: Tensor) -> None:
        self.parameters = parameters
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Tensor:
        return torch.exp(self.logvar)

    def mode(self) -> Tensor:
        return self.mean

    def sample(
        self,
        generator: torch.Generator | None = None,
        *,
        seeds: Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        """A draw, (N, channels, H, W), differentiable in the parameters (arXiv:1312.6114, section 2.4).

        Args:
            generator: PyTorch's generator, as in diffusers; None is the global one.
            seeds: N integers, one a sample, for noise that depends on a sample's own seed alone, the same on every
                device (:func:`fastdiff.ops.philox_normal`).

        Raises:
            ValueError: both are given, or not one seed for each sample.
        """
        shape, dtype, device = self.mean.shape, self.mean.dtype, self.mean.device
        if seeds is None:
            drawn_on = device if generator is None else generator.device
            noise = torch.randn(shape, generator=generator, device=drawn_on, dtype=dtype).to(device)
        elif generator is None:
            noise = ops.philox_normal(shape, seeds, dtype=dtype, device=device)
        else:
            raise ValueError("seeds and generator must not both be given")
        return self.mean + self.std * noise

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> Tensor:
        """(N,) the Kullback-Leibler divergence in nats from `other`, or from the standard normal distribution."""
        if other is None:
            return 0.5 * (self.mean**2 + self.var - 1.0 - self.logvar).sum(dim=(1, 2, 3))
        # The exponent of a difference, since one variance divided by another may be 0 / 0.
        relative = (self.mean - other.mean) ** 2 / other.var + torch.exp(self.logvar - other.logvar)
        return 0.5 * (relative - 1.0 - self.logvar + other.logvar).sum(dim=(1, 2, 3))

    def nll(self, sample: Tensor) -> Tensor:
        """(N,) the negative logarithm of the density at `sample`, in nats."""
        squares = (sample - self.mean) ** 2 / self.var
        return 0.5 * (math.log(2 * math.pi) + self.logvar + squares).sum(dim=(1, 2, 3))
