"""What the network returns, as a linear combination of x0 and eps.

Together with ``x_t = alpha * x0 + sigma * eps`` each prediction is an invertible 2x2 linear map between
(x0, eps) and (x_t, prediction), so one definition serves as training target and as conversion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """``prediction = w_x0 * x0 + w_eps * eps`` with weights that may depend on alpha and sigma."""

    name: str
    weights: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """(alpha, sigma) -> (w_x0, w_eps), float64, all of one shape."""

    def solve(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The map from what is known to what is wanted: ``(x0, eps) = M @ (x_t, prediction)``.

        Args:
            alpha, sigma: (...) float64.

        Returns:
            (..., 2, 2) float64.

        Raises:
            ValueError: the prediction does not determine x0 and eps there (epsilon at alpha = 0, sample at sigma = 0).
        """
        w_x0, w_eps = self.weights(alpha, sigma)
        determinant = alpha * w_eps - sigma * w_x0
        if not (determinant.abs() > 0).all():  # NaN, too: "edm" where alpha is 0
            raise ValueError(
                f"prediction {self.name!r} does not determine x0 and eps at alpha {alpha.tolist()}, "
                f"sigma {sigma.tolist()}"
            )
        rows = torch.stack((w_eps, -sigma, -w_x0, alpha), dim=-1) / determinant[..., None]
        return rows.unflatten(-1, (2, 2))


def _edm_weights(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    # On fastdiff.diffusion.EDM, (alpha * sigma_data)^2 + sigma^2 = 1: there is no second place to say sigma_data.
    sigma_data = (1 - sigma**2).sqrt() / alpha
    return sigma / sigma_data, -alpha * sigma_data


PREDICTIONS: dict[str, Prediction] = {
    prediction.name: prediction
    for prediction in (
        # DDPM (arXiv:2006.11239, equation 14).
        Prediction("epsilon", lambda alpha, sigma: (torch.zeros_like(alpha), torch.ones_like(sigma))),
        # The clean sample, x0.
        Prediction("sample", lambda alpha, sigma: (torch.ones_like(alpha), torch.zeros_like(sigma))),
        # Progressive distillation (arXiv:2202.00512, appendix D).
        Prediction("v", lambda alpha, sigma: (-sigma, alpha)),
        # The gradient of log p_t (arXiv:2011.13456, equation 7): its target given x0 is -eps / sigma.
        Prediction("score", lambda alpha, sigma: (torch.zeros_like(alpha), -1 / sigma)),
        # The velocity of the straight path from data to noise (arXiv:2210.02747).
        Prediction("flow", lambda alpha, sigma: (-torch.ones_like(alpha), torch.ones_like(sigma))),
        # F of EDM (arXiv:2206.00364, equation 7), for the process of the same name: D = c_skip * x + c_out * F.
        Prediction("edm", _edm_weights),
    )
}


def get_prediction(name: str) -> Prediction:
    """The entry of :data:`PREDICTIONS`; ValueError with the known names if there is none."""
    if name not in PREDICTIONS:
        raise ValueError(f"prediction must be one of {sorted(PREDICTIONS)}, got {name!r}")
    return PREDICTIONS[name]
