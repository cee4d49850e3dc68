"""gate_residual against its definition, on every backend: the error may be twice that of eager PyTorch."""

from __future__ import annotations

import itertools
import math

import instruction_sets
import pytest
import torch
from accuracy import assert_draws_as_exact
from backends import Backend
from torch import Tensor

import fastdiff
from fastdiff import ops, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(2, 5, 37), (3, 130, 64), (1, 7, 16), (2, 1, 3)]
NAMES = ("x", "gate", "residual")


def make(shape, dtype=torch.float32, per_token=False) -> list[Tensor]:
    sizes = (shape, shape if per_token else (shape[0], shape[2]), shape)
    return [torch.randn(size).to(dtype) for size in sizes]


def results(function, operands, dtotal, dtype=None, learning=(0, 1, 2)) -> list[Tensor]:
    """[total, dx, dgate, dresidual], of the gradients those of the operands that learn."""
    leaves = [operand.detach().to(dtype or operand.dtype) for operand in operands]
    wanted = [leaves[index].requires_grad_() for index in learning]
    total = function(*leaves)
    return [total.detach(), *torch.autograd.grad(total, wanted, dtotal.to(total.dtype))]


def run(device: Backend, operands, dtotal) -> list[Tensor]:
    """[total, dx, dgate, dresidual]"""
    with device.run():
        ours = results(ops.gate_residual, [o.to(device.device) for o in operands], dtotal.to(device.device))
    return [result.cpu() for result in ours]


@pytest.mark.parametrize("per_token", (False, True), ids=("per_sample", "per_token"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_backward(device: Backend, dtype, shape, per_token) -> None:
    def draw():
        operands, dtotal = make(shape, dtype, per_token), torch.randn(shape).to(dtype)
        ours = run(device, operands, dtotal)
        assert ours[0].dtype == dtype and ours[0].is_contiguous()
        others = (results(reference.gate_residual, operands, dtotal, d) for d in (dtype, torch.float64))
        return dict(zip(("total", *(f"d{n}" for n in NAMES)), zip(ours, *others, strict=True), strict=True))

    assert_draws_as_exact(draw, math.prod(shape))


def test_gate_of_another_dtype(device: Backend) -> None:
    for dtype, gate_dtype in itertools.product(DTYPES, DTYPES):
        operands = make((2, 9, 40), dtype)
        operands[1] = torch.randn(2, 40).to(gate_dtype)
        ones = torch.ones(2, 9, 40, dtype=dtype)
        total, _, dgate, _ = run(device, operands, ones)
        x, gate, residual = (operand.double() for operand in operands)
        torch.testing.assert_close(total, (residual + gate.unsqueeze(1) * x).to(dtype), rtol=0.01, atol=0.01)
        assert dgate.dtype == gate_dtype
        torch.testing.assert_close(dgate, x.sum(1).to(gate_dtype), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_expanded_gate(device: Backend, dtype) -> None:
    """Of one value for all tokens, each of which has a gradient of its own."""
    x, gate, residual = make((2, 9, 24), dtype)
    expanded = [x, gate.unsqueeze(1).expand_as(x), residual]
    dtotal = torch.randn(2, 9, 24).to(dtype)
    ours, same = (run(device, [x, g, residual], dtotal) for g in (expanded[1], expanded[1].contiguous()))
    assert all(map(torch.equal, ours, same))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_layouts(device: Backend, dtype) -> None:
    wide = torch.randn(3, 7, 96).to(dtype)
    gate = torch.randn(3, 240).to(dtype).chunk(6, dim=1)[2]
    for x in (
        wide[..., 9:49],
        wide.transpose(0, 1)[:3, :, :40],
        wide[..., ::2][..., :40],
        wide[..., :1].expand(-1, -1, 40),
    ):
        operands, dtotal = [x, gate, x.flip(1)], torch.randn(x.mT.shape).to(dtype).mT
        ours = run(device, operands, dtotal)
        same = run(device, [operand.contiguous() for operand in operands], dtotal.contiguous())
        for a, b in zip(ours, same, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan(device: Backend, dtype) -> None:
    for index in range(3):
        operands = make((2, 3, 40), dtype)
        operands[index][1, ..., 7] = torch.nan
        total = run(device, operands, torch.ones(2, 3, 40))[0]
        assert total[1, :, 7].isnan().all()
        assert total.isnan().sum() == 3


def test_empty() -> None:
    for shape in ((0, 3, 8), (2, 0, 8), (2, 3, 0)):
        total, dx, dgate, _ = results(ops.gate_residual, make(shape), torch.randn(shape))
        assert total.shape == dx.shape == shape
        assert torch.equal(dgate, torch.zeros(shape[0], shape[2]))
    transposed = torch.empty(0).as_strided((0, 3, 8), (24, 1, 3))
    assert ops.gate_residual(transposed, torch.zeros(0, 8), transposed).shape == (0, 3, 8)


def test_large_output_is_streamed_to_the_same_bits() -> None:
    for dtype in DTYPES:
        x, gate, residual = make((1, 4400, 1024), dtype)
        total = ops.gate_residual(x, gate, residual)
        for tokens in (slice(0, 3), slice(4300, 4400)):
            assert torch.equal(total[:, tokens], ops.gate_residual(x[:, tokens], gate, residual[:, tokens]))


def test_sample_does_not_depend_on_its_batch(device: Backend) -> None:
    operands, dtotal = make((5, 70, 40)), torch.randn(5, 70, 40)
    whole = run(device, operands, dtotal)
    alone = run(device, [operand[3:4] for operand in operands], dtotal[3:4])
    assert all(torch.equal(of_all[3:4], one) for of_all, one in zip(whole, alone, strict=True))


def test_thread_count_and_batch_do_not_matter() -> None:
    operands, dtotal = make((5, 200, 96)), torch.randn(5, 200, 96)
    threads, outputs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            outputs.append(results(ops.gate_residual, operands, dtotal))
    finally:
        torch.set_num_threads(threads)
    outputs.append(
        [
            torch.cat(parts)
            for parts in zip(
                *(results(ops.gate_residual, [o[i : i + 1] for o in operands], dtotal[i : i + 1]) for i in range(5)),
                strict=True,
            )
        ]
    )
    for other in outputs[1:]:
        for a, b in zip(outputs[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype) -> None:
    for tokens in (1, 3):
        operands = [torch.randn(2, n, 10).to(dtype).requires_grad_() for n in (3, tokens, 3)]
        torch.library.opcheck(torch.ops.fastdiff.gate_residual, tuple(operands))


def test_gradcheck_of_the_definition() -> None:
    operands = [operand.double().requires_grad_() for operand in make((2, 3, 5))]
    assert torch.autograd.gradcheck(reference.gate_residual, operands)


@pytest.mark.parametrize("learning", ((0, 1, 2), (0, 2)), ids=("gate_learns", "gate_is_given"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_compiled_is_as_exact(dtype, learning) -> None:
    """The op where the gate learns, otherwise Inductor's fusion of the definition: for three sizes."""

    def block(x, gate, residual):
        return ops.gate_residual(x * 2, gate, residual)

    def exact(x, gate, residual):
        return reference.gate_residual(x * 2, gate, residual)

    compiled = torch.compile(block, fullgraph=True)
    names = ("total", *(f"d{NAMES[index]}" for index in learning))
    for tokens in (300, 500, 800):

        def draw(shape=(2, tokens, 64)):
            operands, dtotal = make(shape, dtype), torch.randn(shape).to(dtype)
            ours = results(compiled, operands, dtotal, learning=learning)
            others = (results(exact, operands, dtotal, d, learning) for d in (dtype, torch.float64))
            return dict(zip(names, zip(ours, *others, strict=True), strict=True))

        # As many draws as the gate's 128 sums ask for: the largest error of one is a matter of luck.
        assert_draws_as_exact(draw, 2 * 64)


def test_reference_switch_and_float64() -> None:
    operands = [operand.double() for operand in make((2, 3, 8))]
    with pytest.raises(TypeError, match="x must be float32, bfloat16 or float16, got torch.float64"):
        ops.gate_residual(*operands)
    with fastdiff.use_reference():
        assert ops.gate_residual(*operands).dtype == torch.float64


@pytest.mark.parametrize(
    "error, message, index, wrong",
    [
        (TypeError, "x must be a tensor, got int", 0, 1),
        (ValueError, r"x must be \(batch, tokens, channels\), got shape \(3, 8\)", 0, torch.ones(3, 8)),
        (
            ValueError,
            r"gate must have shape \(2, 8\), \(2, 1, 8\) or \(2, 3, 8\) to fit x, got \(8,\)",
            1,
            torch.ones(8),
        ),
        (ValueError, r"residual must have x's shape \(2, 3, 8\), got \(2, 3, 7\)", 2, torch.ones(2, 3, 7)),
        (TypeError, "residual must have x's dtype torch.float32, got torch.float16", 2, torch.ones(2, 3, 8).half()),
    ],
)
def test_wrong_arguments(error, message, index, wrong) -> None:
    operands = make((2, 3, 8))
    operands[index] = wrong
    with pytest.raises(error, match=message):
        ops.gate_residual(*operands)


@pytest.mark.parametrize("isa", fastdiff.build_info().get("cpu_isas_built", []))
def test_every_instruction_set(isa) -> None:
    instruction_sets.run_tests(isa, __file__, "forward or layouts or nan or dtype")
