from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff import _dispatch, _extension, _switch, reference
from fastdiff.reference.sampler_step import StepColumn as StepColumn
from fastdiff.reference.sampler_step import dynamic_threshold, step_within_limits

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_HISTORY = 4  # kMaxHistory in csrc/common/sampler_step.h
HISTORY_NAMES = tuple(f"history[{i}]" for i in range(MAX_HISTORY))
COLUMNS = len(StepColumn)


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
        step: the row: an int, or a () int64 tensor on sample's device, which is read there. A tensor whose value is
            no row gives NaN.
        uncond_prediction: the unconditional (or weaker) network's output, of prediction's shape and dtype.
        history: at most 4 tensors of sample's shape and dtype, for the columns HISTORY_0 and on.
        seeds: (N,) int64 on sample's device. None: no noise is added, whatever its column says.
        threshold: (ratio, max_value) clips dynamically in place of the column `clip`: each sample's model to
            +-s and then divides it by s, ``s = clamp(quantile(abs(model), ratio), 1, max_value)`` (Imagen,
            arXiv:2205.11487, section 2.3). At most 2**24 elements a sample.

    Returns:
        (result, model): new dense tensors of sample's shape, order of dimensions and dtype, under autocast too.

    Raises:
        TypeError: a dtype that is not allowed, or an argument that is not a tensor.
        ValueError: a shape, device, step or number of history tensors that does not fit.
    """
    _check(sample, prediction, coefficients, step, uncond_prediction, history, seeds, threshold)
    if _switch.reference_depth:
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
    arguments = _raw_arguments(sample, prediction, coefficients, step, uncond_prediction, history, seeds, threshold)
    return _dispatch.call(torch.ops.fastdiff.sampler_step.default, *arguments)


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

    For loops: nothing of sample's size is allocated where no operand has to be copied, and with a step that lives on
    the device a CUDA graph can replay the call.

    Args:
        sample, prediction, coefficients, step, uncond_prediction, history, seeds, threshold: as
            :func:`sampler_step` takes them.
        model_out: of sample's shape, dtype and device. It may be one of `history`, which is read before it is written.

    Raises:
        TypeError, ValueError: as :func:`sampler_step`; ValueError if model_out is sample itself.
        RuntimeError: a gradient is asked for, which this function does not have.
    """
    _check(sample, prediction, coefficients, step, uncond_prediction, history, seeds, threshold, model_out)
    if model_out is sample:
        raise ValueError("model_out must be another tensor than sample, which takes the result")
    if _dispatch.asks_for_gradient((sample, prediction, coefficients, uncond_prediction, *history)):
        raise RuntimeError("sampler_step_ has no gradient: use sampler_step, or torch.no_grad()")
    if _switch.reference_depth:
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
        return
    arguments = _raw_arguments(sample, prediction, coefficients, step, uncond_prediction, history, seeds, threshold)
    _dispatch.call(torch.ops.fastdiff.sampler_step_.default, *arguments, model_out)
    if not torch.compiler.is_compiling():
        # Autograd and what is kept of a tensor tell by its version whether it is still the same.
        torch.autograd.graph.increment_version([sample] if model_out is None else [sample, model_out])


def _raw_arguments(sample, prediction, coefficients, step, uncond_prediction, history, seeds, threshold) -> tuple:
    """Those of the custom op: a step that is a tensor or an int, and limits in place of the threshold."""
    _extension.require()
    limits = None
    if threshold is not None:
        limits = dynamic_threshold(sample, prediction, coefficients, step, uncond_prediction, threshold)
    step_tensor, step_value = (step, 0) if isinstance(step, Tensor) else (None, step)
    return sample, prediction, coefficients, step_tensor, step_value, uncond_prediction, list(history), seeds, limits


def _check(
    sample, prediction, coefficients, step, uncond_prediction, history, seeds, threshold, model_out=None
) -> None:
    """The kernel takes 2 us, so every check is one comparison; what was wrong is put in words after it."""
    if not isinstance(sample, Tensor):
        raise TypeError(f"sample must be a tensor, got {type(sample).__name__}")
    shape, device, kept = sample.shape, sample.device, (sample.dtype,)
    _check_operand("sample", sample, DTYPES, shape, device)
    if not shape:
        raise ValueError("sample must have a batch dimension, got a scalar")
    _check_operand("prediction", prediction, DTYPES, shape, device)
    if uncond_prediction is not None:
        _check_operand("uncond_prediction", uncond_prediction, (prediction.dtype,), shape, device)
    if len(history) > MAX_HISTORY:
        raise ValueError(f"history must have at most {MAX_HISTORY} tensors, got {len(history)}")
    for name, entry in zip(HISTORY_NAMES, history, strict=False):
        _check_operand(name, entry, kept, shape, device)
    if model_out is not None:
        _check_operand("model_out", model_out, kept, shape, device)
    _check_coefficients(coefficients, step, device)
    if seeds is not None:
        _check_seeds(seeds, sample)
    if threshold is not None:
        _check_threshold(threshold)


def _check_operand(name: str, operand, dtypes, shape, device) -> None:
    if not isinstance(operand, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(operand).__name__}")
    if operand.dtype not in dtypes and not (_switch.reference_depth and operand.is_floating_point()):
        allowed = "float32, bfloat16 or float16" if dtypes is DTYPES else f"{dtypes[0]} like its counterpart"
        raise TypeError(f"{name} must be {allowed}, got {operand.dtype}")
    if operand.shape != shape:
        raise ValueError(f"{name} must have sample's shape {tuple(shape)}, got {tuple(operand.shape)}")
    if operand.device != device:
        raise ValueError(f"{name} must be on sample's device {device}, got {operand.device}")


def _check_coefficients(coefficients, step, device) -> None:
    if not isinstance(coefficients, Tensor):
        raise TypeError(f"coefficients must be a tensor, got {type(coefficients).__name__}")
    if coefficients.dtype != torch.float32 and not _switch.reference_depth:
        raise TypeError(f"coefficients must be float32, got {coefficients.dtype}")
    shape = coefficients.shape
    if len(shape) != 2 or shape[1] != COLUMNS:
        raise ValueError(f"coefficients must be (steps, {COLUMNS}), got {tuple(shape)}")
    if coefficients.device != device:
        raise ValueError(f"coefficients must be on sample's device {device}, got {coefficients.device}")
    if isinstance(step, int):
        if not 0 <= step < shape[0]:
            raise ValueError(f"step must be from 0 to {shape[0] - 1}, got {step}")
    elif not isinstance(step, Tensor):
        raise TypeError(f"step must be an int or a tensor, got {type(step).__name__}")
    elif step.dtype != torch.int64 or step.dim() or step.device != device:
        raise ValueError(
            f"step must be a () int64 tensor on {device}, got {tuple(step.shape)} {step.dtype} on {step.device}"
        )


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


def _fake(sample, prediction, coefficients, step, step_value, uncond_prediction, history, seeds, limits):
    return torch.empty_like(sample), torch.empty_like(sample)


def _fake_in_place(*arguments) -> None:
    return None


def _setup_context(ctx, inputs, output) -> None:
    sample, prediction, coefficients, step, ctx.step_value, uncond_prediction, history, seeds, limits = inputs
    ctx.save_for_backward(sample, prediction, coefficients, uncond_prediction, limits, step, seeds, *history)


def _backward(ctx, d_result, d_model):
    """The definition's own gradient: the step is linear but for clip and rescaling, and its backward is rarely run."""
    *differentiable, step, seeds = ctx.saved_tensors[:7]
    step = ctx.step_value if step is None else step
    leaves = [*differentiable, *ctx.saved_tensors[7:]]
    # How the saved tensors hang together, as a prediction on its sample, is none of this step's gradient.
    with torch.enable_grad():
        aliases = [None if leaf is None else leaf.view_as(leaf) for leaf in leaves]
        sample, prediction, coefficients, uncond_prediction, limits, *history = aliases
        outputs = step_within_limits(
            sample, prediction, coefficients, step, uncond_prediction, history=history, seeds=seeds, limits=limits
        )
    wanted = [alias for alias in aliases if alias is not None and alias.requires_grad]
    found = iter(
        torch.autograd.grad(
            outputs, wanted, (d_result, d_model), create_graph=torch.is_grad_enabled(), materialize_grads=True
        )
    )
    gradients = [next(found) if alias is not None and alias.requires_grad else None for alias in aliases]
    d_sample, d_prediction, d_coefficients, d_uncond, d_limits, *d_history = gradients
    return d_sample, d_prediction, d_coefficients, None, None, d_uncond, d_history, None, d_limits


if _extension._C is not None:
    torch.library.register_fake("fastdiff::sampler_step", _fake)
    torch.library.register_autograd("fastdiff::sampler_step", _backward, setup_context=_setup_context)
    torch.library.register_fake("fastdiff::sampler_step_", _fake_in_place)
