from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff import _switch, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def sampler_step(
    sample: Tensor,
    prediction: Tensor,
    coefficients: Sequence[float],
    *,
    uncond_prediction: Tensor | None = None,
    guidance_scale: float = 1.0,
    history: Sequence[Tensor] = (),
) -> Tensor:
    """One step of any sampler: guidance and the solver's linear combination, each tensor read once.

    ``x' = c[0] * x + c[1] * guided + sum_i c[2 + i] * h[i]``, with ``guided = u + w * (p - u)``

    where x is `sample`, p `prediction`, u `uncond_prediction` (without it guided is p), w `guidance_scale`
    (classifier-free guidance, arXiv:2207.12598; also autoguidance, arXiv:2406.02507) and h `history`: predictions or
    samples of earlier steps, or noise. The rows c come from the solvers in :mod:`fastdiff.sampling`.
    Arithmetic is float32 for every dtype.

    Args:
        sample: (N, *) float32, bfloat16 or float16.
        prediction: the network's output, of sample's shape; any of the three dtypes.
        coefficients: 2 + len(history) numbers.
        uncond_prediction: the unconditional (or weaker) network's output, like `prediction`.
        guidance_scale: 1 is no guidance, 0 the unconditional prediction.
        history: tensors of sample's shape; any of the three dtypes.

    Returns:
        A new tensor of sample's shape and dtype.

    Raises:
        TypeError: a dtype that is not one of the three, or an argument that is not a tensor.
        ValueError: a shape, device or number of coefficients that does not fit.
    """
    _check(sample, prediction, coefficients, uncond_prediction, history)
    return reference.sampler_step(
        sample,
        prediction,
        coefficients,
        uncond_prediction=uncond_prediction,
        guidance_scale=guidance_scale,
        history=history,
    )


def _check(sample, prediction, coefficients, uncond_prediction, history) -> None:
    operands = [("sample", sample), ("prediction", prediction)]
    if uncond_prediction is not None:
        operands.append(("uncond_prediction", uncond_prediction))
    operands += [(f"history[{i}]", entry) for i, entry in enumerate(history)]
    for name, operand in operands:
        if not isinstance(operand, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(operand).__name__}")
        if operand.dtype not in DTYPES and not (_switch.reference_depth and operand.is_floating_point()):
            raise TypeError(f"{name} must be float32, bfloat16 or float16, got {operand.dtype}")
        if operand.shape != sample.shape:
            raise ValueError(f"{name} must have sample's shape {tuple(sample.shape)}, got {tuple(operand.shape)}")
        if operand.device != sample.device:
            raise ValueError(f"{name} must be on sample's device {sample.device}, got {operand.device}")
    if len(coefficients) != 2 + len(history):
        raise ValueError(
            f"coefficients must have 2 + {len(history)} entries for {len(history)} tensors of history, "
            f"got {len(coefficients)}"
        )
