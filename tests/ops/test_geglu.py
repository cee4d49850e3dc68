"""geglu against its definition, on every backend: the error may be twice that of eager PyTorch."""

from __future__ import annotations

import math
import subprocess
import sys

import instruction_sets
import pytest
import torch
from accuracy import assert_draws_as_exact
from backends import Backend
from torch import Tensor

import fastdiff
from fastdiff import ops, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
APPROXIMATIONS = pytest.mark.parametrize("approximate", ("none", "tanh"))
SHAPES = [(2, 5, 74), (3, 2), (1, 33, 64), (14,), (2, 3, 4, 130), (7, 96)]


def results(function, x: Tensor, dy: Tensor, dtype: torch.dtype, approximate: str) -> list[Tensor]:
    """[y, dx]"""
    leaf = x.detach().to(dtype).requires_grad_()
    y = function(leaf, approximate=approximate)
    return [y.detach(), *torch.autograd.grad(y, leaf, dy.to(dtype))]


def run(device: Backend, x: Tensor, dy: Tensor, dtype: torch.dtype, approximate: str) -> list[Tensor]:
    """[y, dx]"""
    with device.run():
        ours = results(ops.geglu, x.to(device.device), dy.to(device.device), dtype, approximate)
    return [result.cpu() for result in ours]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@APPROXIMATIONS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_backward(device: Backend, dtype, approximate, shape) -> None:
    def draw():
        x = (torch.randn(shape) * 3).to(dtype)
        dy = torch.randn(*shape[:-1], shape[-1] // 2).to(dtype)
        ours = run(device, x, dy, dtype, approximate)
        assert ours[0].dtype == dtype and ours[0].is_contiguous()
        others = (results(reference.geglu, x, dy, d, approximate) for d in (dtype, torch.float64))
        return dict(zip(("y", "dx"), zip(ours, *others, strict=True), strict=True))

    assert_draws_as_exact(draw, math.prod(shape))


@APPROXIMATIONS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_argument_of_gelu(device: Backend, dtype, approximate) -> None:
    """Not only those that normal numbers reach: the tails, where GELU is small, keep their digits."""
    gate = torch.linspace(-15, 15, 20001).to(dtype)
    x = torch.stack([torch.ones_like(gate), gate], dim=1)
    dy = torch.ones(20001, 1)
    ours = torch.cat(run(device, x, dy, dtype, approximate), dim=1).double()
    eager, exact = (
        torch.cat(results(reference.geglu, x, dy, d, approximate), dim=1).double() for d in (dtype, torch.float64)
    )
    eps = torch.finfo(dtype).eps
    # Where a value crosses zero, a tenth of what rounding 1 costs, and float32's noise.
    allowed = 2 * (eager - exact).abs() + 2 * eps * exact.abs() + eps / 10 + 2e-7
    assert ((ours - exact).abs() <= allowed).all()


def test_tails_of_exact_gelu_keep_their_digits(device: Backend) -> None:
    gate = torch.linspace(-9, 0, 10001)
    x = torch.stack([torch.ones_like(gate), gate], dim=1)
    y = run(device, x, torch.ones(10001, 1), torch.float32, "none")[0][:, 0].double()
    exact = gate.double() * torch.special.erfc(-gate.double() / math.sqrt(2)) / 2
    assert ((y - exact).abs() <= 5e-6 * exact.abs()).all()


def test_special_values(device: Backend) -> None:
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 0.0, -0.0])
    x, dy = torch.stack([torch.ones_like(values), values], dim=1), torch.ones(7, 1)
    for dtype in (torch.float32, torch.bfloat16):
        for approximate in ("none", "tanh"):
            y, dx = (result.float() for result in run(device, x.to(dtype), dy, dtype, approximate))
            assert y[0].isnan()
            assert y[1] == torch.inf
            assert y[3] == values[3].to(dtype)
            assert y[4].abs() < 1e-30 and y[5] == 0 and y[6] == 0
            assert y[2].isnan() or y[2].abs() < 1e-30  # the limit; PyTorch has -infinity * 0
            assert dx[0].isnan().all() and not dx[3:].isnan().any()
            assert dx[3, 1] == 1 and dx[4, 1].abs() < 1e-30
    assert run(device, x, dy, torch.float32, "none")[0][2].abs() < 1e-30
    hidden = torch.tensor([[torch.nan, 1.0], [torch.inf, 1.0]])
    y, _ = run(device, hidden, torch.ones(2, 1), torch.float32, "none")
    assert y[0].isnan() and y[1] == torch.inf


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_layouts(device: Backend, dtype) -> None:
    wide = torch.randn(4, 6, 200).to(dtype)
    cases = [wide[..., 20:100], wide[::2, 1:4, :40], wide.transpose(0, 1), wide[..., ::2], wide.mT[..., :4]]
    for x in cases:
        dense = x.contiguous()
        dy = torch.randn(*x.shape[:-1], x.shape[-1] // 2).to(dtype)
        for dy_of_case in (dy, dy.transpose(0, 1).contiguous().transpose(0, 1), dy[..., :1].expand_as(dy)):
            ours, same = (run(device, v, dy_of_case, dtype, "none") for v in (x, dense))
            assert torch.equal(ours[0], same[0]) and torch.equal(ours[1], same[1])


def test_empty() -> None:
    for shape in ((0,), (0, 6), (3, 0), (2, 0, 4)):
        x = torch.randn(shape, requires_grad=True)
        y = ops.geglu(x)
        assert y.shape == (*shape[:-1], shape[-1] // 2)
        assert torch.autograd.grad(y.sum(), x)[0].shape == shape


def test_large_output_is_streamed_to_the_same_bits() -> None:
    for dtype in DTYPES:
        x = torch.randn(2100, 4096).to(dtype)
        y, dx = results(ops.geglu, x, torch.ones(2100, 2048), dtype, "none")
        for rows in (slice(0, 3), slice(2000, 2100)):
            part = results(ops.geglu, x[rows], torch.ones(2100, 2048)[rows], dtype, "none")
            assert torch.equal(y[rows], part[0]) and torch.equal(dx[rows], part[1])


def test_same_bits_for_any_thread_count() -> None:
    script = (
        "import hashlib, sys, torch; from fastdiff import ops;"
        "torch.set_num_threads(int(sys.argv[1])); torch.manual_seed(0);"
        "x = torch.randn(300, 514, requires_grad=True); y = ops.geglu(x); y.sum().backward();"
        "print([hashlib.sha256(v.detach().numpy().tobytes()).hexdigest() for v in (y, x.grad)])"
    )
    outputs = {subprocess.check_output([sys.executable, "-c", script, str(threads)]) for threads in (1, 2, 5)}
    assert len(outputs) == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype) -> None:
    for tanh in (False, True):
        torch.library.opcheck(torch.ops.fastdiff.geglu, (torch.randn(3, 10).to(dtype).requires_grad_(), tanh))


@APPROXIMATIONS
def test_gradcheck_of_the_definition(approximate) -> None:
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: reference.geglu(x, approximate=approximate), (x,))


def test_compile_has_no_graph_break() -> None:
    def feed(x):
        return ops.geglu(x * 2) + 1

    compiled = torch.compile(feed, fullgraph=True)
    for rows in (3, 5, 8):
        x = torch.randn(2, rows, 12)
        torch.testing.assert_close(compiled(x), feed(x))


def test_reference_switch_and_float64() -> None:
    x = torch.randn(2, 6, dtype=torch.float64)
    with pytest.raises(TypeError, match="x must be float32, bfloat16 or float16, got torch.float64"):
        ops.geglu(x)
    with fastdiff.use_reference():
        assert ops.geglu(x).dtype == torch.float64


@pytest.mark.parametrize(
    "error, message, x, options",
    [
        (TypeError, "x must be a tensor, got list", [1.0], {}),
        (TypeError, "x must be float32, bfloat16 or float16, got torch.int64", torch.ones(2, dtype=torch.int64), {}),
        (ValueError, r"the last size of x must be even, hidden and gate, got shape \(3, 5\)", torch.ones(3, 5), {}),
        (ValueError, r"the last size of x must be even, hidden and gate, got shape \(\)", torch.tensor(1.0), {}),
        (ValueError, "approximate must be one of .*'none', 'tanh'.*, got 'erf'", torch.ones(2), {"approximate": "erf"}),
    ],
)
def test_wrong_arguments(error, message, x, options) -> None:
    with pytest.raises(error, match=message):
        ops.geglu(x, **options)


def test_wrong_arguments_to_the_raw_op_raise() -> None:
    with pytest.raises(RuntimeError, match="x must be"):
        torch.ops.fastdiff.geglu(torch.ones(2, 3), False)
    with pytest.raises(RuntimeError, match="dy must be"):
        torch.ops.fastdiff.geglu_backward(torch.ones(2, 3), torch.ones(2, 4), False)


@pytest.mark.parametrize("isa", fastdiff.build_info().get("cpu_isas_built", []))
def test_every_instruction_set(isa) -> None:
    instruction_sets.run_tests(isa, __file__, "forward or argument_of or tails or special or layouts")
