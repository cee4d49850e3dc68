"""Every op under autocast, where linear layers give bfloat16 beside weights and residuals of float32."""

from __future__ import annotations

import pytest
import torch
from op_calls import OPS, op_call
from torch import Tensor
from torch.utils import _pytree as pytree

import fastdiff
from fastdiff import ops

CASTS = {"attention"}  # as PyTorch's own


def leaves(op: str, call) -> list[Tensor]:
    args, kwargs = call
    return pytree.tree_leaves(getattr(ops, op)(*args, **kwargs))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("op", OPS)
def test_result_is_that_without_autocast(op, dtype) -> None:
    call = op_call(op, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        got = leaves(op, call)
    if op in CASTS:
        call = pytree.tree_map_only(lambda o: isinstance(o, Tensor) and o.is_floating_point(), Tensor.bfloat16, call)
    want = leaves(op, call)
    assert all(map(torch.equal, got, want))
    assert {result.dtype for result in got} == {torch.bfloat16 if op in CASTS else dtype}


@pytest.mark.parametrize("dtypes", ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)), ids=str)
@pytest.mark.parametrize("op", ("gate_residual", "layer_norm_modulate"))
def test_branch_and_residual_of_two_dtypes(op, dtypes) -> None:
    """As `residual + gate * x` in PyTorch: the sum is of the wider dtype, the gradients of each operand's own."""
    x, gate, residual = torch.randn(2, 5, 16), torch.randn(2, 16), torch.randn(2, 5, 16)
    x, residual = (operand.to(dtype).requires_grad_() for operand, dtype in zip((x, residual), dtypes, strict=True))

    def run(x, residual):
        if op == "gate_residual":
            return (ops.gate_residual(x, gate, residual),)
        return ops.layer_norm_modulate(x, gate, gate, gate=gate, residual=residual)

    with pytest.raises(TypeError, match="residual must have x's dtype"):
        run(x, residual)
    with torch.autocast("cpu", torch.bfloat16):
        got = run(x, residual)
        with fastdiff.use_reference():
            definition = run(x, residual)
    want = run(x.float(), residual.float())
    for a, b, c in zip(got, want, definition, strict=True):
        assert a.dtype == c.dtype == torch.float32
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c)
    for a, operand in zip(torch.autograd.grad(sum(y.sum() for y in got), (x, residual)), (x, residual), strict=True):
        assert a.dtype == operand.dtype


def test_compiled_under_autocast() -> None:
    x, gate, residual = torch.randn(2, 5, 16), torch.randn(2, 16), torch.randn(2, 5, 16)
    linear, linear_of_half = torch.nn.Linear(16, 16), torch.nn.Linear(8, 16)

    def branch(x, gate, residual):
        y, total = ops.layer_norm_modulate(linear(x), gate, gate, gate=gate, residual=residual)
        return ops.gate_residual(linear_of_half(ops.geglu(linear(y))), gate, total)

    with torch.autocast("cpu", torch.bfloat16):
        want = branch(x, gate, residual)
        got = torch.compile(branch, fullgraph=True, backend="aot_eager")(x, gate, residual)
    assert got.dtype == want.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)
