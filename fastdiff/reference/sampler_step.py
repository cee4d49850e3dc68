from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sampler_step(
    sample: Tensor,
    prediction: Tensor,
    coefficients: Sequence[float],
    *,
    uncond_prediction: Tensor | None = None,
    guidance_scale: float = 1.0,
    history: Sequence[Tensor] = (),
) -> Tensor:
    """Definition of :func:`fastdiff.ops.sampler_step` in PyTorch's own operators."""
    dtype = torch.promote_types(sample.dtype, torch.float32)
    guided = prediction.to(dtype)
    if uncond_prediction is not None:
        uncond = uncond_prediction.to(dtype)
        guided = uncond + guidance_scale * (guided - uncond)
    result = coefficients[0] * sample.to(dtype) + coefficients[1] * guided
    for coefficient, entry in zip(coefficients[2:], history, strict=True):
        result = result + coefficient * entry.to(dtype)
    return result.to(sample.dtype)
