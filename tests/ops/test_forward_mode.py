"""Forward-mode derivatives: kernels have none and must say so, since torch would take them to be zero."""

from __future__ import annotations

import pytest
import torch
from op_calls import OPS, op_call
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

import fastdiff
from fastdiff import ops

WITHOUT_FLOATS = {"philox_normal", "philox_uniform"}
DIFFERENTIABLE = [op for op in OPS if op not in WITHOUT_FLOATS]


def tangents(op: str) -> list[torch.Tensor | None]:
    """Those of the results, where the first operand has one."""
    (first, *others), kwargs = op_call(op)
    with forward_ad.dual_level():
        results = getattr(ops, op)(forward_ad.make_dual(first, torch.rand_like(first)), *others, **kwargs)
        return [forward_ad.unpack_dual(result).tangent for result in pytree.tree_leaves(results)]


@pytest.mark.parametrize("gradients", (True, False))
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_kernels_refuse(op, gradients) -> None:
    with torch.set_grad_enabled(gradients), pytest.raises(NotImplementedError, match=f"{op} has no forward-mode"):
        tangents(op)


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_the_reference_has_them(op) -> None:
    """PyTorch's flash attention has none either: its plain one has."""
    with fastdiff.use_reference(), sdpa_kernel(SDPBackend.MATH):
        assert any(tangent is not None and tangent.any() for tangent in tangents(op))


def test_jvp_refuses_too() -> None:
    x = torch.randn(2, 16)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(ops.geglu, (x,), (x,))


def test_jvp_of_a_gradient_refuses_too() -> None:
    x = torch.randn(2, 16)

    def gradient(t):
        return torch.func.grad(lambda scale: (ops.geglu(t) * scale).sum())(torch.ones(()))

    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(gradient, (x,), (x,))


def test_gradients_pass_through_transforms() -> None:
    """Inside of one, a tensor does not tell that a gradient is asked for outside."""
    x = torch.randn(3, 8, requires_grad=True)
    (want,) = torch.autograd.grad(ops.geglu(x).sum(), x)
    (of_gradient,) = torch.autograd.grad(torch.func.grad(lambda s: (ops.geglu(x) * s).sum())(torch.ones(())), x)
    assert torch.equal(of_gradient, want)
    (of_vmap,) = torch.autograd.grad(torch.vmap(ops.geglu)(x[:, None]).sum(), x)
    assert torch.equal(of_vmap, want)
