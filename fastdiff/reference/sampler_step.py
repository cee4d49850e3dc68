from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from fastdiff.reference.philox import philox_normal


class StepColumn(IntEnum):
    """The columns of a row of coefficients of :func:`fastdiff.ops.sampler_step`; see its formula."""

    GUIDANCE = 0
    RESCALE = 1
    MODEL_SAMPLE = 2
    MODEL_GUIDED = 3
    CLIP = 4
    SAMPLE = 5
    GUIDED = 6
    MODEL = 7
    NOISE = 8
    HISTORY_0 = 9
    HISTORY_1 = 10
    HISTORY_2 = 11
    HISTORY_3 = 12


def sampler_step(
    sample: Tensor,
    prediction: Tensor,
    coefficients: Tensor,
    step: int | Tensor = 0,
    *,
    uncond_prediction: Tensor | None = None,
    history: Sequence[Tensor] = (),
    seeds: Tensor | None = None,
    threshold: tuple[float, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Definition of :func:`fastdiff.ops.sampler_step` in PyTorch's own operators."""
    limits = None
    if threshold is not None:
        limits = dynamic_threshold(sample, prediction, coefficients, step, uncond_prediction, threshold)
    return step_within_limits(
        sample, prediction, coefficients, step, uncond_prediction, history=history, seeds=seeds, limits=limits
    )


def sampler_step_(
    sample: Tensor,
    prediction: Tensor,
    coefficients: Tensor,
    step: int | Tensor,
    *,
    uncond_prediction: Tensor | None = None,
    history: Sequence[Tensor] = (),
    seeds: Tensor | None = None,
    threshold: tuple[float, float] | None = None,
    model_out: Tensor | None = None,
) -> None:
    """Definition of :func:`fastdiff.ops.sampler_step_` in PyTorch's own operators."""
    result, model = sampler_step(
        sample,
        prediction,
        coefficients,
        step,
        uncond_prediction=uncond_prediction,
        history=history,
        seeds=seeds,
        threshold=threshold,
    )
    sample.copy_(result)
    if model_out is not None:
        model_out.copy_(model)


def row_of(coefficients: Tensor, step: int | Tensor) -> Tensor:
    """Row `step`, without asking the device for the step's value."""
    if isinstance(step, int):
        return coefficients[step]
    return coefficients.index_select(0, step.reshape(1)).squeeze(0)


def guided_prediction(prediction: Tensor, uncond_prediction: Tensor | None, row: Tensor) -> Tensor:
    """Guidance (arXiv:2207.12598) and its rescaling (arXiv:2305.08891, section 3.4), in the row's dtype."""
    p = prediction.to(row.dtype)
    if uncond_prediction is None:
        return p
    u = uncond_prediction.to(row.dtype)
    guided = u + row[StepColumn.GUIDANCE] * (p - u)
    if p.numel() <= p.shape[0]:
        return guided  # one element has no deviation
    rescale = row[StepColumn.RESCALE]

    def deviation(prediction: Tensor) -> Tensor:
        variance = prediction.flatten(1).var(dim=1).view(-1, *[1] * (prediction.dim() - 1))
        # Where none is asked for, a variance of zero must not reach the result or its gradient.
        return torch.where(rescale == 0, 1, variance).sqrt()

    return (rescale * (deviation(p) / deviation(guided)) + (1 - rescale)) * guided


def unclipped_model(x: Tensor, guided: Tensor, row: Tensor) -> Tensor:
    return row[StepColumn.MODEL_SAMPLE] * x + row[StepColumn.MODEL_GUIDED] * guided


def dynamic_threshold(
    sample: Tensor,
    prediction: Tensor,
    coefficients: Tensor,
    step: int | Tensor,
    uncond_prediction: Tensor | None,
    threshold: tuple[float, float],
) -> Tensor:
    """(N,): what a sample's model is clipped to and divided by (Imagen, arXiv:2205.11487, section 2.3), at least 1."""
    ratio, max_value = threshold
    x, row = _in_arithmetic_dtype(sample, coefficients, step)
    if x.numel() == 0:
        return x.new_ones(x.shape[0])
    model = unclipped_model(x, guided_prediction(prediction, uncond_prediction, row), row)
    return model.abs().flatten(1).quantile(ratio, dim=1).clamp(1, max_value)


def step_within_limits(
    sample: Tensor,
    prediction: Tensor,
    coefficients: Tensor,
    step: int | Tensor,
    uncond_prediction: Tensor | None,
    *,
    history: Sequence[Tensor],
    seeds: Tensor | None,
    limits: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """:func:`sampler_step` once the limits (N,) of dynamic thresholding are known."""
    x, row = _in_arithmetic_dtype(sample, coefficients, step)
    guided = guided_prediction(prediction, uncond_prediction, row)
    model = unclipped_model(x, guided, row)
    if limits is None:
        model = model.clamp(-row[StepColumn.CLIP], row[StepColumn.CLIP])
    else:
        limit = limits.view(-1, *[1] * (x.dim() - 1))
        model = model.clamp(-limit, limit) / limit
    result = row[StepColumn.SAMPLE] * x + row[StepColumn.GUIDED] * guided + row[StepColumn.MODEL] * model
    for i, entry in enumerate(history):
        result = result + row[StepColumn.HISTORY_0 + i] * entry.to(x.dtype)
    if seeds is not None:
        noise = philox_normal(x.shape, seeds, offset=step + 1, dtype=x.dtype)
        result = result + row[StepColumn.NOISE] * noise
    return result.to(sample.dtype), model.to(sample.dtype)


def _in_arithmetic_dtype(sample: Tensor, coefficients: Tensor, step: int | Tensor) -> tuple[Tensor, Tensor]:
    """The sample and its row."""
    dtype = torch.promote_types(sample.dtype, torch.float32)
    return sample.to(dtype), row_of(coefficients, step).to(dtype)
