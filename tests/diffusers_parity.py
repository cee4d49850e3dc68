"""A module of fastdiff.nn against the one of diffusers that it replaces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def assert_same(ours: nn.Module, theirs: nn.Module, *inputs: Tensor, rtol=1e-4, atol=1e-5, **named: Tensor) -> None:
    """Same keys, and from the same weights the same results and gradients, of the inputs and of the weights."""
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)  # else norms would be ones and zeros
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    (results, gradients), (their_results, their_gradients) = (_run(m, inputs, named) for m in (ours, theirs))
    for a, b in zip((*results, *gradients), (*their_results, *their_gradients), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def _run(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> tuple[Any, Any]:
    leaves = [operand.detach().requires_grad_() for operand in inputs]
    named = {name: operand.detach().requires_grad_() for name, operand in named.items()}
    results = module(*leaves, **named)
    results = results if isinstance(results, tuple) else (results,)
    # Weights of the results that differ, so that the parts of a projection cannot be exchanged unseen.
    seeds = [torch.linspace(-1, 1 + i, y.numel(), dtype=y.dtype).reshape(y.shape) for i, y in enumerate(results)]
    return results, torch.autograd.grad(results, [*leaves, *named.values(), *module.parameters()], seeds)
