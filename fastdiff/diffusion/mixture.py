"""A data distribution whose diffusion is known in closed form: the perfect network to test a sampler with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.diffusion.predictions import get_prediction
from fastdiff.diffusion.processes import Process


@dataclass(frozen=True)
class GaussianMixture:
    """``p(x0) = sum_k weights[k] * N(means[k], deviations[k]^2 * I)``.

    Noised, it is a mixture again: the component k of x_t is N(alpha * mean, (alpha * deviation)^2 + sigma^2), so the
    score, E[x0 | x_t] and every prediction have a closed form.

    Args:
        means: (K, D) float64.
        deviations, weights: (K,) float64; the weights sum to 1.
    """

    means: Tensor
    deviations: Tensor
    weights: Tensor

    @classmethod
    def ring(cls, components: int = 8, radius: float = 1.0, deviation: float = 0.2) -> GaussianMixture:
        """Equal components on a circle in the plane."""
        angles = torch.arange(components, dtype=torch.float64) * (2 * math.pi / components)
        means = radius * torch.stack((angles.cos(), angles.sin()), dim=1)
        ones = torch.ones(components, dtype=torch.float64)
        return cls(means, deviation * ones, ones / components)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, D) float64 draws of x0."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[component] + self.deviations[component, None] * noise

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and covariance (D, D) of x0."""
        mean = self.weights @ self.means
        spread = self.means - mean
        within = self.weights @ self.deviations**2
        return mean, spread.T @ (self.weights[:, None] * spread) + within * torch.eye(len(mean), dtype=mean.dtype)

    def log_density(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(N,) log p_t(x) of x (N, D), with alpha and sigma () or (N,)."""
        return self._log_joint(x, alpha, sigma).logsumexp(1)

    def denoised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(N, D) E[x0 | x_t = x], with alpha and sigma () or (N,)."""
        responsibility = self._log_joint(x, alpha, sigma).softmax(1)[..., None]  # (N, K, 1)
        alpha, sigma = (factor.reshape(-1, 1, 1) for factor in (alpha, sigma))
        variance = self.deviations[:, None] ** 2  # (K, 1)
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return (responsibility * (self.means + gain * (x[:, None] - alpha * self.means))).sum(1)

    def denoiser(self, process: Process, prediction: str) -> Callable[[Tensor, Tensor], Tensor]:
        """The perfect network: (x (N, D), timestep (N,)) -> E[prediction | x_t = x], in x's dtype."""
        weights = get_prediction(prediction).weights

        def predict(x: Tensor, timestep: Tensor) -> Tensor:
            time = process.time_of_timestep(timestep.double())
            alpha, sigma = process.alpha(time), process.sigma(time)
            of_x0, of_epsilon = (weight[:, None] for weight in weights(alpha, sigma))
            x0 = self.denoised(x.double(), alpha, sigma)
            epsilon = (x.double() - alpha[:, None] * x0) / sigma[:, None]
            return (of_x0 * x0 + of_epsilon * epsilon).to(x.dtype)

        return predict

    def _log_joint(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(N, K) log of weight times density of each component of x_t."""
        alpha, sigma = (factor.reshape(-1, 1) for factor in (alpha, sigma))
        variance = (alpha * self.deviations) ** 2 + sigma**2  # (N or 1, K)
        distance = (x[:, None] - alpha[..., None] * self.means).square().sum(2)
        dimensions = x.shape[1]
        return self.weights.log() - 0.5 * (distance / variance + dimensions * torch.log(2 * math.pi * variance))
