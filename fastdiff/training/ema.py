from __future__ import annotations

import torch
from torch import Tensor, nn


class EMA:
    """The exponential moving average of a model's weights, which samples better than the weights themselves.

    The decay warms up as (1 + step) / (10 + step), so that the first steps, which are far off, are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            self.weights[name].lerp_(parameter, 1 - decay)
