from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff import _switch, reference
from fastdiff.reference.sampler_step import StepColumn as StepColumn

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_HISTORY = 4  # kMaxHistory in csrc/common/sampler_step.h


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
    """One model call of any sampler, from a row of coefficients: each tensor is read once.

    With c the row ``coefficients[step]``, its columns named by :class:`StepColumn`, x `sample`, p `prediction` and u
    `uncond_prediction`::

        guided = u + guidance * (p - u)                      # p where there is no u
        guided = (rescale * std(p) / std(guided) + 1 - rescale) * guided
        model  = clip(model_sample * x + model_guided * guided, -clip, clip)
        result = c_sample * x + c_guided * guided + c_model * model
                 + sum_i c_history[i] * history[i] + c_noise * noise

    `model` is what a solver keeps of a call: an x0, a noise, a derivative. `result` is where the model is called next.
    The tables come from the solvers in :mod:`fastdiff.sampling`. Guidance is that of arXiv:2207.12598 and, with a
    weaker network's prediction for u, of arXiv:2406.02507; `rescale` is phi of arXiv:2305.08891, section 3.4, with the
    unbiased deviation over all elements of a sample; it needs u, and samples of more than one element.
    The noise is ``philox_normal(sample.shape, seeds, offset=step + 1)``, made inside the pass; offset 0 is the noise
    that a run starts from. Arithmetic is float32 for every dtype. Differentiable in every tensor but `seeds`.

    Args:
        sample: (N, *) float32, bfloat16 or float16. Dense tensors are read in place, whatever the order of their
            dimensions; slices are copied first, and so are other operands that do not lie in memory like sample, and
            with noise all that is not contiguous.
        prediction: the network's output, of sample's shape; any of the three dtypes, without another pass.
        coefficients: (steps, 13) float32 on sample's device. No guidance is 1 in its column, no clip infinity.
        step: the row: an int, or a () int64 tensor on sample's device, which is read there.
        uncond_prediction: the unconditional (or weaker) network's output, of prediction's shape and dtype.
        history: at most 4 tensors of sample's shape and dtype, for the columns HISTORY_0 and on.
        seeds: (N,) int64 on sample's device. None: no noise is added, whatever its column says.
        threshold: (ratio, max_value) clips dynamically in place of the column `clip`: each sample's model to
            +-s and then divides it by s, ``s = clamp(quantile(abs(model), ratio), 1, max_value)`` (Imagen,
            arXiv:2205.11487, section 2.3). At most 2**24 elements a sample.

    Returns:
        (result, model): new dense tensors of sample's shape, dtype and order of dimensions.

    Raises:
        TypeError: a dtype that is not allowed, or an argument that is not a tensor.
        ValueError: a shape, device, step or number of history tensors that does not fit.
    """
    _check(sample, prediction, coefficients, step, uncond_prediction, history, seeds, threshold)
    return reference.sampler_step(
        sample,
        prediction,
        coefficients,
        step,
        uncond_prediction=uncond_prediction,
        history=history,
        seeds=seeds,
        threshold=threshold,
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
    """:func:`sampler_step` that writes its result to `sample` and, where it is given, its model to `model_out`.

    For loops: nothing is allocated, and with a step that lives on the device a CUDA graph can replay the call.

    Args:
        sample, prediction, coefficients, step, uncond_prediction, history, seeds, threshold: as
            :func:`sampler_step` takes them.
        model_out: of sample's shape, dtype and device. It may be one of `history`, which is read before it is written.

    Raises:
        TypeError, ValueError: as :func:`sampler_step`.
        RuntimeError: a gradient is asked for, which this function does not have.
    """
    _check(sample, prediction, coefficients, step, uncond_prediction, history, seeds, threshold, model_out)
    if torch.is_grad_enabled():
        tensors = (sample, prediction, coefficients, uncond_prediction, *history)
        if any(tensor is not None and tensor.requires_grad for tensor in tensors):
            raise RuntimeError("sampler_step_ has no gradient: use sampler_step, or torch.no_grad()")
    reference.sampler_step_(
        sample,
        prediction,
        coefficients,
        step,
        uncond_prediction=uncond_prediction,
        history=history,
        seeds=seeds,
        threshold=threshold,
        model_out=model_out,
    )


def _check(
    sample, prediction, coefficients, step, uncond_prediction, history, seeds, threshold, model_out=None
) -> None:
    _check_like_sample("sample", sample, sample)
    if sample.dim() == 0:
        raise ValueError("sample must have a batch dimension, got a scalar")
    _check_like_sample("prediction", prediction, sample)
    if uncond_prediction is not None:
        _check_like_sample("uncond_prediction", uncond_prediction, sample)
        if uncond_prediction.dtype != prediction.dtype:
            raise TypeError(
                f"uncond_prediction must have prediction's dtype {prediction.dtype}, got {uncond_prediction.dtype}"
            )
    _check_coefficients(coefficients, step, sample)
    if len(history) > MAX_HISTORY:
        raise ValueError(f"history must have at most {MAX_HISTORY} tensors, got {len(history)}")
    for i, entry in enumerate(history):
        _check_kept(f"history[{i}]", entry, sample)
    if model_out is not None:
        _check_kept("model_out", model_out, sample)
    if seeds is not None:
        _check_seeds(seeds, sample)
    if threshold is not None:
        _check_threshold(threshold)


def _check_like_sample(name: str, operand, sample) -> None:
    if not isinstance(operand, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(operand).__name__}")
    if operand.dtype not in DTYPES and not (_switch.reference_depth and operand.is_floating_point()):
        raise TypeError(f"{name} must be float32, bfloat16 or float16, got {operand.dtype}")
    if operand.shape != sample.shape:
        raise ValueError(f"{name} must have sample's shape {tuple(sample.shape)}, got {tuple(operand.shape)}")
    if operand.device != sample.device:
        raise ValueError(f"{name} must be on sample's device {sample.device}, got {operand.device}")


def _check_kept(name: str, operand, sample) -> None:
    _check_like_sample(name, operand, sample)
    if operand.dtype != sample.dtype:
        raise TypeError(f"{name} must have sample's dtype {sample.dtype}, got {operand.dtype}")


def _check_coefficients(coefficients, step, sample) -> None:
    if not isinstance(coefficients, Tensor):
        raise TypeError(f"coefficients must be a tensor, got {type(coefficients).__name__}")
    if coefficients.dtype != torch.float32 and not _switch.reference_depth:
        raise TypeError(f"coefficients must be float32, got {coefficients.dtype}")
    if coefficients.dim() != 2 or coefficients.shape[1] != len(StepColumn):
        raise ValueError(f"coefficients must be (steps, {len(StepColumn)}), got {tuple(coefficients.shape)}")
    if coefficients.device != sample.device:
        raise ValueError(f"coefficients must be on sample's device {sample.device}, got {coefficients.device}")
    if isinstance(step, Tensor):
        if step.dtype != torch.int64 or step.dim() or step.device != sample.device:
            raise ValueError(
                f"step must be an int or a () int64 tensor on {sample.device}, got {tuple(step.shape)} "
                f"{step.dtype} on {step.device}"
            )
    elif not isinstance(step, int):
        raise TypeError(f"step must be an int or a tensor, got {type(step).__name__}")
    elif not 0 <= step < coefficients.shape[0]:
        raise ValueError(f"step must be from 0 to {coefficients.shape[0] - 1}, got {step}")


def _check_seeds(seeds, sample) -> None:
    if not isinstance(seeds, Tensor):
        raise TypeError(f"seeds must be a tensor, got {type(seeds).__name__}")
    if seeds.dtype != torch.int64:
        raise TypeError(f"seeds must be int64, got {seeds.dtype}")
    if seeds.shape != sample.shape[:1]:
        raise ValueError(f"seeds must have shape ({sample.shape[0]},), got {tuple(seeds.shape)}")
    if seeds.device != sample.device:
        raise ValueError(f"seeds must be on sample's device {sample.device}, got {seeds.device}")


def _check_threshold(threshold) -> None:
    ratio, max_value = threshold
    if not 0 <= ratio <= 1:
        raise ValueError(f"threshold's ratio must be from 0 to 1, got {ratio}")
    if not max_value >= 1:
        raise ValueError(f"threshold's max_value must be at least 1, got {max_value}")
