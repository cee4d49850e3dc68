"""qk_norm_rope against its definition, on every backend: the error may be twice that of eager PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from backends import Backend, backend
from torch import Tensor

import fastdiff
from fastdiff import ops, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=("cpu",))
def device(request: pytest.FixtureRequest) -> Backend:
    return backend(request.param)


# (batch, tokens, heads, key heads, head_dim, rotary_dim, text tokens)
SHAPES = [
    (2, 9, 3, 3, 128, 128, 0),
    (1, 12, 4, 2, 64, 64, 5),
    (3, 3, 2, 1, 64, 32, 0),
    (1, 5, 2, 2, 40, 40, 2),
    (1, 7, 1, 1, 33, 10, 1),
    (2, 2, 2, 2, 72, 72, 0),
    (1, 3, 2, 2, 80, 18, 0),
    (1, 3, 1, 2, 256, 256, 1),
    (1, 2, 1, 1, 600, 600, 0),
    (2, 5, 2, 2, 2, 2, 0),
    (2, 4, 3, 1, 8, 8, 4),
    (1, 4, 2, 2, 16, 0, 0),
    (4, 1, 2, 2, 1, 0, 0),
]


@dataclass(frozen=True)
class Problem:
    query: Tensor
    key: Tensor
    query_weight: Tensor | None
    key_weight: Tensor | None
    cos: Tensor
    sin: Tensor
    interleaved: bool = True
    text_tokens: int = 0
    eps: float = 1e-6

    @property
    def operands(self) -> tuple[Tensor | None, ...]:
        return self.query, self.key, self.query_weight, self.key_weight, self.cos, self.sin

    @property
    def options(self) -> dict[str, object]:
        return {"interleaved": self.interleaved, "text_tokens": self.text_tokens, "eps": self.eps}


def make(shape, dtype=torch.float32, interleaved=True, device="cpu", weight_dtype=None) -> Problem:
    batch, tokens, heads, key_heads, head_dim, rotary_dim, text_tokens = shape

    def randn(*size: int) -> Tensor:
        return torch.randn(size, device=device)

    # Not real cosines and sines, and another one for each element: all that the formula allows.
    table = (tokens - text_tokens, rotary_dim)
    return Problem(
        randn(batch, tokens, heads, head_dim).to(dtype),
        randn(batch, tokens, key_heads, head_dim).mul(3).to(dtype),
        randn(head_dim).to(weight_dtype or dtype),
        randn(head_dim).to(weight_dtype or dtype),
        randn(*table),
        randn(*table),
        interleaved,
        text_tokens,
    )


def run(device: Backend, problem: Problem) -> tuple[Tensor, Tensor]:
    with device.run():
        return device.ops.qk_norm_rope(*problem.operands, problem.text_tokens, problem.eps, problem.interleaved)


def define(problem: Problem, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    operands = [operand if dtype is None or operand is None else operand.to(dtype) for operand in problem.operands]
    return reference.qk_norm_rope(*operands, **problem.options)


def max_error(a: Tensor, exact: Tensor) -> float:
    return (a.double() - exact).abs().max().item() if exact.numel() else 0.0


def assert_as_exact(ours: Tensor, eager: Tensor, exact: Tensor, name: str) -> None:
    """The floor is a few float32 roundings of the largest values, below which eager's error is a matter of luck."""
    allowed = 2 * max_error(eager, exact) + 1e-6 * max(1.0, exact.abs().max().item() if exact.numel() else 0.0)
    assert ours.shape == exact.shape
    assert max_error(ours, exact) <= allowed, f"{name}: {max_error(ours, exact):.2e} > {allowed:.2e}"


def assert_right(device: Backend, problem: Problem) -> tuple[Tensor, Tensor]:
    results = run(device, problem)
    for name, *triple in zip(("query", "key"), results, define(problem), define(problem, torch.float64), strict=True):
        assert triple[0].dtype == problem.query.dtype and triple[0].is_contiguous()
        assert_as_exact(*triple, name)
    return results


@pytest.mark.parametrize("interleaved", (True, False), ids=("interleaved", "half_split"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward(device: Backend, dtype, shape, interleaved) -> None:
    assert_right(device, make(shape, dtype, interleaved, device.device))


@pytest.mark.parametrize("interleaved", (True, False), ids=("interleaved", "half_split"))
def test_definition_is_the_formula(interleaved) -> None:
    """Written out pair by pair in float64: the definition itself must be right."""
    problem = make((2, 5, 3, 1, 12, 8, 2), torch.float64, interleaved)
    ours = reference.qk_norm_rope(*problem.operands, **problem.options)
    pairs = [(2 * k, 2 * k + 1) for k in range(4)] if interleaved else [(k, k + 4) for k in range(4)]
    sides = ((problem.query, problem.query_weight), (problem.key, problem.key_weight))
    for got, (x, weight) in zip(ours, sides, strict=True):
        z = x / (x.square().mean(-1, keepdim=True) + problem.eps).sqrt() * weight
        want = z.clone()
        for token in range(2, 5):
            cos, sin = problem.cos[token - 2], problem.sin[token - 2]
            for i, j in pairs:
                want[:, token, :, i] = z[:, token, :, i] * cos[i] - z[:, token, :, j] * sin[i]
                want[:, token, :, j] = z[:, token, :, j] * cos[j] + z[:, token, :, i] * sin[j]
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_kernel_runs_outside_the_reference_switch(monkeypatch) -> None:
    monkeypatch.setattr(reference, "qk_norm_rope", None)
    problem = replace(make((1, 2, 1, 1, 8, 8, 0)))
    query, _ = ops.qk_norm_rope(*problem.operands)
    assert query.shape == problem.query.shape


def test_reference_switch_and_float64() -> None:
    problem = make((1, 2, 1, 1, 8, 8, 0), torch.float64)
    with fastdiff.use_reference():
        query, key = ops.qk_norm_rope(*problem.operands)
    assert query.dtype == key.dtype == torch.float64
    assert torch.equal(query, reference.qk_norm_rope(*problem.operands)[0])
