from __future__ import annotations

import torch
from torch import Tensor

from fastdiff import _dispatch, _extension, _switch, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LENGTH_DTYPES = (torch.int32, torch.int64)
MAX_CUDA_HEAD_DIM = 256  # the widest head of any kernel in csrc/cuda


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    kv_lengths: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention, ``softmax(scale * query @ key.T) @ value``, self and cross.

    The scores never reach memory (FlashAttention, arXiv:2205.14135); they and their sums are float32 for every dtype.
    Results do not depend on the number of threads or on the other samples of the batch, and gradients are the same in
    every run.

    On a GPU PyTorch's own `scaled_dot_product_attention` does what it can, since it is faster; it promises neither:

    ===================================  ===========================================================================
    on a GPU                             kernel
    ===================================  ===========================================================================
    head_dim above 256                   PyTorch's
    with kv_lengths                      ours: PyTorch's fast kernels know no padding
    `use_deterministic_algorithms`       ours: PyTorch's gradients depend on the order of the blocks
    otherwise                            PyTorch's
    ===================================  ===========================================================================

    On devices that are neither it is PyTorch's, too.

    Results too small for a normal number may be zero.

    A NaN in a query or in a key or value that counts makes the queries that meet it NaN, as in PyTorch. A query whose
    scores are all -infinity is NaN, too. What lies beyond `kv_lengths` is never read.

    Args:
        query: (N, Lq, heads, D); float32, bfloat16 or float16. Any strides; read in place where the
            last one is 1, so slices of a fused projection are not copied.
        key, value: (N, Lkv, kv_heads, D), with kv_heads a divisor of heads: each key head serves heads / kv_heads
            consecutive query heads.
        scale: None is D ** -0.5.
        kv_lengths: (N,) int32 or int64, how many of the first keys of each sample count; None is all. A sample with
            none has output 0 (and gradients 0), not NaN.

    Returns:
        (N, Lq, heads, D) of query's dtype. Under autocast, of autocast's dtype.

    Raises:
        TypeError: a dtype that is not one of the three or not the same for all, or an argument that is not a tensor.
        ValueError: a shape, device or length that does not fit.
    """
    query, key, value = _autocast(query, key, value)
    _check(query, key, value, kv_lengths)
    if scale is None:
        scale = query.shape[-1] ** -0.5
    padded = kv_lengths is not None
    if _switch.reference_depth or _is_pytorchs(query.device.type, query.shape[-1], padded):
        if scale < 0:  # PyTorch's kernels of GPUs answer NaN
            query, scale = -query, -scale
        return reference.attention(query, key, value, scale=scale, kv_lengths=kv_lengths)
    _extension.require()
    lengths = None if kv_lengths is None else kv_lengths.to(torch.int32)
    return _dispatch.call(torch.ops.fastdiff.attention.default, query, key, value, lengths, float(scale))[0]


def _is_pytorchs(device_type: str, head_dim: int, padded: bool) -> bool:
    """The table in the docstring of `attention`."""
    if device_type == "cpu":
        return False
    if device_type != "cuda" or head_dim > MAX_CUDA_HEAD_DIM:
        return True
    return not padded and not torch.are_deterministic_algorithms_enabled()


def _autocast(*tensors):
    """What autocast does to `scaled_dot_product_attention`."""
    if not all(isinstance(t, Tensor) for t in tensors):
        return tensors
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(t.to(torch.get_autocast_dtype(device)) if t.is_floating_point() else t for t in tensors)


def _check(query, key, value, kv_lengths) -> None:
    for name, operand in (("query", query), ("key", key), ("value", value)):
        if not isinstance(operand, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(operand).__name__}")
        if operand.dim() != 4:
            raise ValueError(f"{name} must be (batch, tokens, heads, head_dim), got shape {tuple(operand.shape)}")
        if operand.dtype not in DTYPES and not (_switch.reference_depth and operand.is_floating_point()):
            raise TypeError(f"{name} must be float32, bfloat16 or float16, got {operand.dtype}")
        if operand.dtype != query.dtype:
            raise TypeError(f"{name} must have query's dtype {query.dtype}, got {operand.dtype}")
        if operand.device != query.device:
            raise ValueError(f"{name} must be on query's device {query.device}, got {operand.device}")
    batch, _, heads, head_dim = query.shape
    if head_dim == 0:
        raise ValueError("query must have at least one element a head, got head_dim 0")
    if key.shape[0] != batch or key.shape[3] != head_dim:
        raise ValueError(f"key must be ({batch}, tokens, heads, {head_dim}) to fit query, got {tuple(key.shape)}")
    if value.shape != key.shape:
        raise ValueError(f"value must have key's shape {tuple(key.shape)}, got {tuple(value.shape)}")
    if key.shape[2] < 1 or heads % key.shape[2]:
        raise ValueError(f"the heads of key must divide query's {heads}, got {key.shape[2]}")
    if kv_lengths is not None:
        _check_lengths(kv_lengths, query, key)


def _check_lengths(kv_lengths, query, key) -> None:
    if not isinstance(kv_lengths, Tensor):
        raise TypeError(f"kv_lengths must be a tensor or None, got {type(kv_lengths).__name__}")
    if kv_lengths.dtype not in LENGTH_DTYPES:
        raise TypeError(f"kv_lengths must be int32 or int64, got {kv_lengths.dtype}")
    if kv_lengths.shape != query.shape[:1]:
        raise ValueError(f"kv_lengths must have shape ({query.shape[0]},), got {tuple(kv_lengths.shape)}")
    if kv_lengths.device != query.device:
        raise ValueError(f"kv_lengths must be on query's device {query.device}, got {kv_lengths.device}")
    # Values are looked at only where that costs nothing: on a GPU it would wait for all work before it.
    if kv_lengths.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = kv_lengths[(kv_lengths < 0) | (kv_lengths > key.shape[1])]
    if wrong.numel():
        raise ValueError(f"kv_lengths must be 0 to {key.shape[1]}, the tokens of key, got {wrong[0].item()}")


def _fake_forward(query, key, value, kv_lengths, scale):
    batch, length, heads, _ = query.shape
    output = query.new_empty(query.shape)
    return output, query.new_empty((batch, heads, length), dtype=torch.float32)


def _fake_backward(doutput, query, key, value, output, logsumexp, kv_lengths, scale):
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _setup_context(ctx, inputs, output) -> None:
    query, key, value, kv_lengths, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, kv_lengths, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # would make zeros for the logsumexp


def _backward(ctx, doutput, _dlogsumexp):
    query, key, value, kv_lengths, output, logsumexp = ctx.saved_tensors
    gradients = _dispatch.call(
        torch.ops.fastdiff.attention_backward.default,
        *(doutput, query, key, value, output, logsumexp, kv_lengths, ctx.scale),
    )
    return *gradients, None, None


if _extension._C is not None:
    torch.library.register_fake("fastdiff::attention", _fake_forward)
    torch.library.register_fake("fastdiff::attention_backward", _fake_backward)
    torch.library.register_autograd("fastdiff::attention", _backward, setup_context=_setup_context)
