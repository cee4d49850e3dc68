from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff import _dispatch, _extension, _switch, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_HISTORY = 4  # kMaxHistory in csrc/common/sampler_step.h


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
    Arithmetic is float32 for every dtype. Differentiable in every tensor.

    Args:
        sample: (N, *) float32, bfloat16 or float16. Dense tensors are read in place, whatever the order of their
            dimensions; slices are copied first, and so are other operands that do not lie in memory like sample.
        prediction: the network's output, of sample's shape; any of the three dtypes. Operands of several dtypes are
            converted to float32 first, which takes another pass over them.
        coefficients: 2 + len(history) numbers.
        uncond_prediction: the unconditional (or weaker) network's output, like `prediction`.
        guidance_scale: 1 is no guidance, 0 the unconditional prediction.
        history: at most 4 tensors of sample's shape; any of the three dtypes.

    Returns:
        A new dense tensor of sample's shape, order of dimensions and dtype, under autocast too.

    Raises:
        TypeError: a dtype that is not one of the three, or an argument that is not a tensor.
        ValueError: a shape, device or number of coefficients or of history tensors that does not fit.
    """
    _check(sample, prediction, coefficients, uncond_prediction, history)
    if _switch.reference_depth:
        return reference.sampler_step(
            sample,
            prediction,
            coefficients,
            uncond_prediction=uncond_prediction,
            guidance_scale=guidance_scale,
            history=history,
        )
    _extension.require()
    dtype = sample.dtype
    others = (prediction, *history) if uncond_prediction is None else (prediction, uncond_prediction, *history)
    mixed = any(operand.dtype != dtype for operand in others)
    if mixed:
        sample, prediction, *history = (operand.float() for operand in (sample, prediction, *history))
        uncond_prediction = None if uncond_prediction is None else uncond_prediction.float()
    arguments = (sample, prediction, uncond_prediction, guidance_scale, list(coefficients), list(history))
    result = _dispatch.call(torch.ops.fastdiff.sampler_step.default, *arguments)
    return result.to(dtype) if mixed else result  # a conversion to the same dtype would still take 4 us


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
    if len(history) > MAX_HISTORY:
        raise ValueError(f"history must have at most {MAX_HISTORY} tensors, got {len(history)}")
    if len(coefficients) != 2 + len(history):
        raise ValueError(
            f"coefficients must have 2 + {len(history)} entries for {len(history)} tensors of history, "
            f"got {len(coefficients)}"
        )


def _fake(sample, prediction, uncond_prediction, guidance_scale, coefficients, history):
    return torch.empty_like(sample)


def _setup_context(ctx, inputs, output) -> None:
    _, _, uncond_prediction, guidance_scale, coefficients, _ = inputs
    of_sample, of_guided, *of_history = coefficients
    of_prediction = of_guided if uncond_prediction is None else of_guided * guidance_scale
    # The result is linear in the tensors: these factors are all there is to its gradient.
    ctx.factors = (of_sample, of_prediction, of_guided * (1 - guidance_scale), of_history)


def _backward(ctx, gradient):
    of_sample, of_prediction, of_uncond, of_history = ctx.factors
    wants_sample, wants_prediction, wants_uncond, _, _, wants_history = ctx.needs_input_grad

    def scaled(factor: float, wanted: bool) -> Tensor | None:
        return factor * gradient if wanted else None

    return (
        scaled(of_sample, wants_sample),
        scaled(of_prediction, wants_prediction),
        scaled(of_uncond, wants_uncond),
        None,
        None,
        [scaled(factor, wanted) for factor, wanted in zip(of_history, wants_history, strict=True)],
    )


if _extension._C is not None:
    torch.library.register_fake("fastdiff::sampler_step", _fake)
    torch.library.register_autograd("fastdiff::sampler_step", _backward, setup_context=_setup_context)
