from __future__ import annotations

import torch
from torch import Tensor

from fastdiff import _dispatch, _extension, _switch, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def qk_norm_rope(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float = 1e-6,
    interleaved: bool = True,
    text_tokens: int = 0,
) -> tuple[Tensor, Tensor]:
    """RMS normalisation of the queries and keys of an attention, and their rotary embedding, in one pass over each.

    ``z = x / sqrt(mean(x ** 2) + eps) * weight`` over each head (arXiv:1910.07467, equation 4), then every pair is
    turned by its token's angle (RoFormer, arXiv:2104.09864, equation 34):
    ``y[i] = z[i] * cos[i] - z[j] * sin[i]``, ``y[j] = z[j] * cos[j] + z[i] * sin[j]``.

    Arithmetic is float32 for every dtype, rounded once. Results do not depend on the number of threads or on the other
    samples of the batch. A NaN in a head makes that head of that token NaN; an infinity makes it NaN and 0, as in
    PyTorch. Differentiable in query, key and the weights.

    It stays one operation under `torch.compile`: on a CPU, what Inductor makes of the definition takes 1.8 to 4.8 times
    as long, with elementwise work on both sides to fuse with.

    Args:
        query: (N, L, heads, D); float32, bfloat16 or float16. Any strides; read in place where the last one is 1, so
            slices of a fused projection are not copied.
        key: (N, L, key_heads, D) of query's dtype.
        query_weight, key_weight: (D,), any of the three dtypes, independent of query's; None is ones.
        cos, sin: (L - text_tokens, R) or (N, L - text_tokens, R), any of the three dtypes; with a number for each
            *element*, as diffusers lays them out, not for each pair. R is even and at most D: the elements from R on
            are not rotated (partial rotary embedding). Where a text and an image are projected apart, give each its
            rows of the joint table: they need not be copied.
        eps: added to the mean square.
        interleaved: pairs are (2k, 2k + 1), as in FLUX; else (k, k + R / 2).
        text_tokens: how many of the first tokens are normalised and not rotated.

    Returns:
        The new query and key: contiguous, of the shapes and dtype of the old, under autocast too.

    Raises:
        TypeError: a dtype that is not one of the three or not query's, or an argument that is not a tensor.
        ValueError: a shape, device or number of tokens that does not fit; a cos or sin that requires a gradient.
    """
    _check(query, key, query_weight, key_weight, cos, sin, text_tokens)
    if _switch.reference_depth:
        return reference.qk_norm_rope(
            query,
            key,
            query_weight,
            key_weight,
            cos,
            sin,
            eps=eps,
            interleaved=interleaved,
            text_tokens=text_tokens,
        )
    _extension.require()
    weights_and_tables = (query_weight, key_weight, cos.float(), sin.float())
    arguments = (query, key, *weights_and_tables, text_tokens, float(eps), bool(interleaved))
    return _dispatch.call(torch.ops.fastdiff.qk_norm_rope.default, *arguments)


def _check(query, key, query_weight, key_weight, cos, sin, text_tokens) -> None:
    weights = [(n, w) for n, w in (("query_weight", query_weight), ("key_weight", key_weight)) if w is not None]
    tables = [("cos", cos), ("sin", sin)]
    for name, operand in [("query", query), ("key", key), *weights, *tables]:
        if not isinstance(operand, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(operand).__name__}")
        if operand.dtype not in DTYPES and not (_switch.reference_depth and operand.is_floating_point()):
            raise TypeError(f"{name} must be float32, bfloat16 or float16, got {operand.dtype}")
        if operand.device != query.device:
            raise ValueError(f"{name} must be on query's device {query.device}, got {operand.device}")
    for name, operand in (("query", query), ("key", key)):
        if operand.dim() != 4:
            raise ValueError(f"{name} must be (batch, tokens, heads, head_dim), got shape {tuple(operand.shape)}")
    batch, tokens, _, head_dim = query.shape
    if head_dim == 0:
        raise ValueError("query must have at least one element a head, got head_dim 0")
    if key.dtype != query.dtype:
        raise TypeError(f"key must have query's dtype {query.dtype}, got {key.dtype}")
    if key.shape[:2] != query.shape[:2] or key.shape[3] != head_dim:
        raise ValueError(f"key must be ({batch}, {tokens}, heads, {head_dim}) to fit query, got {tuple(key.shape)}")
    for name, weight in weights:
        if weight.shape != (head_dim,):
            raise ValueError(f"{name} must have shape ({head_dim},), the elements of a head, got {tuple(weight.shape)}")
    if not 0 <= text_tokens <= tokens:
        raise ValueError(f"text_tokens must be 0 to {tokens}, the tokens of query, got {text_tokens}")
    _check_tables(tables, batch, tokens - text_tokens, head_dim)


def _check_tables(tables, batch, rows, head_dim) -> None:
    for name, table in tables:
        if table.dim() not in (2, 3) or table.shape[-2] != rows or table.shape[:-2] not in ((), (batch,)):
            raise ValueError(
                f"{name} must be ({rows}, R) or ({batch}, {rows}, R), a row for each rotated token, "
                f"got shape {tuple(table.shape)}"
            )
        if table.shape[-1] % 2 or table.shape[-1] > head_dim:
            raise ValueError(
                f"the last size of {name} must be even and at most {head_dim}, the elements of a head, "
                f"got {table.shape[-1]}"
            )
        if _dispatch.asks_for_gradient((table,)) and not _switch.reference_depth:
            raise ValueError(f"{name} must not require a gradient: detach it, or run fastdiff.use_reference()")
    (_, cos), (_, sin) = tables
    if sin.shape[-1] != cos.shape[-1]:
        raise ValueError(f"sin must be as wide as cos, {cos.shape[-1]}, got {sin.shape[-1]}")


def _fake_forward(query, key, query_weight, key_weight, cos, sin, text_tokens, eps, interleaved):
    return query.new_empty(query.shape), key.new_empty(key.shape)


def _fake_backward(
    drotated_query, drotated_key, query, key, query_weight, key_weight, cos, sin, text_tokens, eps, interleaved
):
    shapes = [(0,) if weight is None else weight.shape for weight in (query_weight, key_weight)]
    dweights = [query.new_empty(shape, dtype=torch.float32) for shape in shapes]
    return query.new_empty(query.shape), key.new_empty(key.shape), *dweights


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.text_tokens, ctx.eps, ctx.interleaved = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, drotated_query, drotated_key):
    tensors = ctx.saved_tensors
    *gradients, dquery_weight, dkey_weight = _dispatch.call(
        torch.ops.fastdiff.qk_norm_rope_backward.default,
        *(drotated_query, drotated_key, *tensors, ctx.text_tokens, ctx.eps, ctx.interleaved),
    )
    dweights = [
        None if weight is None else dweight.to(weight.dtype)
        for weight, dweight in zip(tensors[2:4], (dquery_weight, dkey_weight), strict=True)
    ]
    return *gradients, *dweights, None, None, None, None, None


if _extension._C is not None:
    torch.library.register_fake("fastdiff::qk_norm_rope", _fake_forward)
    torch.library.register_fake("fastdiff::qk_norm_rope_backward", _fake_backward)
    torch.library.register_autograd("fastdiff::qk_norm_rope", _backward, setup_context=_setup_context)
