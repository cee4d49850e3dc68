from __future__ import annotations

import torch
from torch import Tensor

from fastdiff import _dispatch, _extension, _switch, reference

ACTIVATIONS = ("silu", "identity")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    time_bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "silu",
) -> Tensor:
    """Timestep-conditioned group normalisation and SiLU in one kernel.

    ``y = act((GroupNorm(x + time_bias) * weight + bias) * (1 + scale) + shift)``

    This is the head of every U-Net residual block: ``time_bias`` is the additive time embedding of DDPM
    (arXiv:2006.11239), ``scale`` and ``shift`` are adaptive group normalisation (arXiv:2105.05233, section 3).
    Statistics and arithmetic are float32 for every dtype. Results do not depend on the number of threads or on
    the other samples of the batch. NaN or infinity in a group makes that group NaN, as in PyTorch.

    Args:
        x: (N, C, *spatial) with one to three spatial dimensions; float32, bfloat16 or float16. Contiguous and
            channels-last layouts (slices too) are read in place; any other strides are copied first.
        num_groups: number of groups; must divide C.
        weight, bias: (C,), any of the three dtypes, independent of x's; None is 1 and 0.
        eps: added to the variance.
        time_bias: (N, C), added to x before the statistics.
        scale, shift: (N, C), applied after weight and bias and before the activation.
        activation: "silu" or "identity".

    Returns:
        A tensor of x's shape and dtype, under autocast too, dense, channels-last if x is.

    Raises:
        TypeError: a dtype that is not one of the three, or an argument that is not a tensor.
        ValueError: a shape, device, group count or activation that does not fit.
    """
    _check(x, num_groups, weight, bias, time_bias, scale, shift, activation)
    if _switch.reference_depth:
        return reference.group_norm_silu(
            x,
            num_groups,
            weight,
            bias,
            eps=eps,
            time_bias=time_bias,
            scale=scale,
            shift=shift,
            activation=activation,
        )
    _extension.require()
    arguments = (x, num_groups, weight, bias, time_bias, scale, shift, eps, activation == "silu")
    return _dispatch.call(torch.ops.fastdiff.group_norm_silu.default, *arguments)[0]


def _check(x, num_groups, weight, bias, time_bias, scale, shift, activation) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if not 3 <= x.dim() <= 5:
        raise ValueError(f"x must be (N, C, *spatial) with 3 to 5 dimensions, got shape {tuple(x.shape)}")
    if x.dtype not in DTYPES and not (_switch.reference_depth and x.is_floating_point()):
        raise TypeError(f"x must be float32, bfloat16 or float16, got {x.dtype}")
    batch, channels = x.shape[0], x.shape[1]
    if num_groups <= 0 or channels % num_groups:
        raise ValueError(f"num_groups must divide the {channels} channels of x, got {num_groups}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    for name, operand, shape in (
        ("weight", weight, (channels,)),
        ("bias", bias, (channels,)),
        ("time_bias", time_bias, (batch, channels)),
        ("scale", scale, (batch, channels)),
        ("shift", shift, (batch, channels)),
    ):
        if operand is None:
            continue
        if not isinstance(operand, Tensor):
            raise TypeError(f"{name} must be a tensor or None, got {type(operand).__name__}")
        if operand.shape != shape:
            raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(operand.shape)}")
        if operand.dtype not in DTYPES and operand.dtype != x.dtype:
            raise TypeError(f"{name} must be float32, bfloat16 or float16, got {operand.dtype}")
        if operand.device != x.device:
            raise ValueError(f"{name} must be on x's device {x.device}, got {operand.device}")


def _dense_strides(x: Tensor) -> list[int]:
    """Strides of a dense tensor of x's shape in x's layout; the rule of `layout_of` in csrc/bindings/layout.h."""
    shape = list(x.shape)
    spatial = 1
    for size in shape[2:]:
        spatial *= size
    channels_last = not x.is_contiguous() and shape[1] > 1 and spatial > 1 and x.stride(1) == 1
    order = [1, *range(x.dim() - 1, 1, -1), 0] if channels_last else list(range(x.dim() - 1, -1, -1))
    strides, step = [0] * x.dim(), 1
    for dim in order:
        strides[dim] = step
        step *= max(shape[dim], 1)
    return strides


def _fake_forward(x, num_groups, weight, bias, time_bias, scale, shift, eps, silu):
    y = torch.empty_strided(x.shape, _dense_strides(x), dtype=x.dtype, device=x.device)
    mean = x.new_empty((x.shape[0], num_groups), dtype=torch.float32)
    return y, mean, torch.empty_like(mean)


def _fake_backward(dy, x, mean, rstd, weight, bias, time_bias, scale, shift, silu, wanted):
    dx = torch.empty_strided(x.shape, _dense_strides(x), dtype=x.dtype, device=x.device)
    batch, channels = x.shape[0], x.shape[1]
    shapes = [(channels,), (channels,), (batch, channels), (batch, channels), (batch, channels)]
    grads = [x.new_empty(s if w else (0,), dtype=torch.float32) for s, w in zip(shapes, wanted, strict=True)]
    return dx, *grads


def _setup_context(ctx, inputs, output) -> None:
    x, _, weight, bias, time_bias, scale, shift, _, silu = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, mean, rstd, weight, bias, time_bias, scale, shift)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)  # would make zeros for mean and rstd
    ctx.silu = silu


def _backward(ctx, dy, _dmean, _drstd):
    x, mean, rstd, *operands = ctx.saved_tensors
    # Inputs are (x, num_groups, weight, bias, time_bias, scale, shift, eps, silu).
    wanted = [ctx.needs_input_grad[i] for i in range(2, 7)]
    dx, *grads = _dispatch.call(
        torch.ops.fastdiff.group_norm_silu_backward.default, dy, x, mean, rstd, *operands, ctx.silu, wanted
    )
    grads = [g.to(o.dtype) if w else None for g, o, w in zip(grads, operands, wanted, strict=True)]
    return dx, None, *grads, None, None


if _extension._C is not None:
    torch.library.register_fake("fastdiff::group_norm_silu", _fake_forward)
    torch.library.register_fake("fastdiff::group_norm_silu_backward", _fake_backward)
    torch.library.register_autograd("fastdiff::group_norm_silu", _backward, setup_context=_setup_context)
