from __future__ import annotations

import torch
from torch import Tensor

from fastdiff import _dispatch, _extension, _switch, reference
from fastdiff.ops import _tokens

NORMS = ("layer", "rms")


def layer_norm_modulate(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    norm: str = "layer",
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gated residual, normalisation over the channels and modulation, in one pass over memory.

    ``total = residual + gate * x`` (x alone without a residual), then
    ``y = (norm(total) * weight + bias) * (1 + scale) + shift``.

    The seam between two branches of a transformer block with adaptive layer normalisation (adaLN-Zero, Scalable
    Diffusion Models with Transformers, arXiv:2212.09748, figure 3). Statistics and arithmetic are float32 for every
    dtype; the variance is that around the mean. Results do not depend on the number of threads or on the other samples
    of the batch. A NaN or infinity in a token makes that token NaN, as in PyTorch.

    It stays one operation under `torch.compile`. On a CPU, what Inductor makes of the definition takes 1.2 to 2.4 times
    as long by itself, and about as long with elementwise work on both sides to fuse with (0.8 to 1.1 times; with the
    backward pass 0.9 to 1.4).

    Args:
        x: (N, L, C), float32, bfloat16 or float16. Any strides; read in place where the last one is 1.
        scale, shift: of one shape: (N, C), the same for all tokens, or (N, L, C) or (N, 1, C); any of the three dtypes.
        gate: (N, C), (N, L, C) or (N, 1, C), of any of the three dtypes; needs a residual. None is ones.
        residual: like x.
        eps: added to the variance, or to the mean square.
        norm: "layer" (arXiv:1607.06450) or "rms" (arXiv:1910.07467).
        weight, bias: (C,), any of the three dtypes; None is 1 and 0.

    Returns:
        y and total, both (N, L, C) of x's dtype. Without a residual, total is x itself. Under autocast x and residual
        may have two dtypes; the results are of the wider.

    Raises:
        TypeError: a dtype that is not one of the three or not x's, or an argument that is not a tensor.
        ValueError: a shape, device or norm that does not fit, or a gate without a residual.
    """
    x, residual = _tokens.promoted_under_autocast(x, residual)
    _tokens.check_activations(x, residual=residual)
    scale, shift = _tokens.per_token(x, scale=scale, shift=shift)
    if shift.shape != scale.shape:
        raise ValueError(f"shift must have scale's shape {tuple(scale.shape)}, got {tuple(shift.shape)}")
    _tokens.check_parameters(x, weight=weight, bias=bias)
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {NORMS}, got {norm!r}")
    if gate is not None:
        if residual is None:
            raise ValueError("gate needs a residual to add gate * x to, got residual=None")
        gate = _tokens.per_token(x, gate=gate)[0]
    if _switch.reference_depth:
        return reference.layer_norm_modulate(
            x, scale, shift, gate=gate, residual=residual, eps=eps, norm=norm, weight=weight, bias=bias
        )
    _extension.require()
    arguments = (x, scale, shift, gate, residual, weight, bias, float(eps), norm == "rms")
    y, total, _, _ = _dispatch.call(torch.ops.fastdiff.layer_norm_modulate.default, *arguments)
    return y, x if residual is None else total


def _fake_forward(x, scale, shift, gate, residual, weight, bias, eps, rms):
    total = x.new_empty((0,) if residual is None else x.shape)
    mean = x.new_empty(x.shape[:2], dtype=torch.float32)
    return x.new_empty(x.shape), total, mean, torch.empty_like(mean)


def _fake_backward(dy, dtotal, x, scale, gate, total, weight, bias, mean, rstd, rms, wanted):
    def gradient(operand, is_wanted):
        here = is_wanted and operand is not None
        return x.new_empty(operand.shape if here else (0,), dtype=torch.float32)

    dx = x.new_empty((0,) if gate is None else x.shape)
    operands = (gate, scale, scale, weight, bias)
    return x.new_empty(x.shape), dx, *(gradient(o, w) for o, w in zip(operands, wanted, strict=True))


def _setup_context(ctx, inputs, output) -> None:
    x, scale, shift, gate, residual, weight, bias, _, ctx.rms = inputs
    _, total, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    if residual is None:
        ctx.mark_non_differentiable(total)
    ctx.set_materialize_grads(False)
    ctx.has_residual = residual is not None
    ctx.shift_dtype = shift.dtype
    # x itself is needed for what multiplies it: the gate, and the norm where nothing is added before.
    needs_x = gate is not None or residual is None
    ctx.save_for_backward(
        x if needs_x else None, total if ctx.has_residual else None, scale, gate, weight, bias, mean, rstd
    )


def _backward(ctx, dy, dtotal, _dmean, _drstd):
    x, total, scale, gate, weight, bias, mean, rstd = ctx.saved_tensors
    x = total if x is None else x
    dy = torch.zeros_like(x) if dy is None else dy
    # Inputs are (x, scale, shift, gate, residual, weight, bias, eps, rms).
    needs = ctx.needs_input_grad
    wanted = [needs[3], needs[1], needs[2], needs[5], needs[6]]
    dresidual, dx, *gradients = _dispatch.call(
        torch.ops.fastdiff.layer_norm_modulate_backward.default,
        *(dy, dtotal, x, scale, gate, total, weight, bias, mean, rstd, ctx.rms, wanted),
    )
    dtypes = [o.dtype if o is not None else None for o in (gate, scale, scale, weight, bias)]
    dtypes[2] = ctx.shift_dtype
    dgate, dscale, dshift, dweight, dbias = (
        g.to(dtype) if w else None for g, dtype, w in zip(gradients, dtypes, wanted, strict=True)
    )
    dx = dresidual if gate is None else dx
    return dx, dscale, dshift, dgate, dresidual if ctx.has_residual else None, dweight, dbias, None, None


if _extension._C is not None:
    torch.library.register_fake("fastdiff::layer_norm_modulate", _fake_forward)
    torch.library.register_fake("fastdiff::layer_norm_modulate_backward", _fake_backward)
    torch.library.register_autograd("fastdiff::layer_norm_modulate", _backward, setup_context=_setup_context)
