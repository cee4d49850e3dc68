"""add_noise against its definition, on every backend: the error may be twice that of eager PyTorch."""

from __future__ import annotations

import itertools
import math

import instruction_sets
import pytest
import torch
from accuracy import assert_as_exact
from backends import Backend
from torch import Tensor

import fastdiff
from fastdiff import ops, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(1,), (5, 1), (3, 7), (2, 3, 5, 33), (2, 20_001)]


def make(shape, dtype, device="cpu", factors=torch.float64) -> list[Tensor]:
    """clean, noise and the four coefficients."""
    samples = [torch.randn(shape, dtype=torch.float64).to(device=device, dtype=dtype) for _ in range(2)]
    return [*samples, *(torch.randn(shape[0], dtype=torch.float64).to(device, factors) for _ in range(4))]


def run(device: Backend, *arguments) -> tuple[Tensor, Tensor]:
    with device.run():
        return ops.add_noise(*arguments)


def check(device: Backend, clean, noise, *factors) -> tuple[Tensor, Tensor]:
    ours = run(device, clean, noise, *factors)
    eager = reference.add_noise(clean, noise, *factors)
    exact = reference.add_noise(clean.double(), noise.double(), *factors)
    for name, mine, theirs, true in zip(("noisy", "target"), ours, eager, exact, strict=True):
        assert mine.dtype == clean.dtype and mine.stride() == torch.empty_like(clean).stride()
        assert_as_exact(mine, theirs, true, name)
    return ours


@pytest.mark.parametrize("factors", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shapes(device: Backend, dtype, factors) -> None:
    for shape in SHAPES:
        check(device, *make(shape, dtype, device.device, factors))


def test_formula() -> None:
    clean, noise, *factors = make((3, 2, 5), torch.float32)
    noisy, target = ops.add_noise(clean, noise, *factors)
    a, b, c, d = (factor[:, None, None] for factor in factors)
    torch.testing.assert_close(noisy.double(), a * clean + b * noise)
    torch.testing.assert_close(target.double(), c * clean + d * noise)


LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1),
    "batch_inside": lambda t: t.transpose(0, 2).contiguous().transpose(0, 2),
    "slice": lambda t: torch.cat([t, t], dim=3)[..., 1 : 1 + t.shape[3]],
    "expanded": lambda t: t[:, :1].expand_as(t),
    "unaligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize("others", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(device: Backend, layout, others) -> None:
    clean, noise, *factors = make((3, 5, 4, 6), torch.bfloat16, device.device)
    strided = [torch.stack([factor, factor], dim=1)[:, 0] for factor in factors]
    check(device, LAYOUTS[layout](clean), LAYOUTS[others](noise), *strided)


def test_empty() -> None:
    for shape in ((0,), (0, 3), (2, 0, 4)):
        assert [tensor.shape for tensor in ops.add_noise(*make(shape, torch.float32))] == [shape, shape]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity_stay_in_their_element(device: Backend, dtype) -> None:
    for operand, bad, place in itertools.product((0, 1), (math.nan, math.inf), (0, 40, 66)):
        arguments = make((1, 67), dtype, device.device)
        clean_run = run(device, *arguments)
        arguments[operand][0, place] = bad
        others = torch.arange(67, device=device.device) != place
        for mine, before in zip(run(device, *arguments), clean_run, strict=True):
            assert not mine[0, place].isfinite()
            assert torch.equal(mine[:, others], before[:, others])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_nan_stays_nan(device: Backend, dtype) -> None:
    for operand, bits in itertools.product((0, 1), (0x7FFF, -1)):
        arguments = make((2, 67), dtype, device.device)
        arguments[operand].view(torch.int16).fill_(bits)
        assert all(tensor.isnan().all() for tensor in run(device, *arguments))
    for factors, bits in ((torch.float32, torch.int32), (torch.float64, torch.int64)):
        arguments = make((2, 67), dtype, device.device, factors)
        for factor in arguments[2:]:
            factor.view(bits).fill_(-1)
        assert all(tensor.isnan().all() for tensor in run(device, *arguments))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sample_does_not_depend_on_its_batch(device: Backend, dtype) -> None:
    for features in (1, 7, 33, 1030):
        arguments = make((4, features), dtype, device.device)
        whole = run(device, *arguments)
        for i in range(4):
            alone = run(device, *(argument[i : i + 1] for argument in arguments))
            assert all(torch.equal(a, b[i : i + 1]) for a, b in zip(alone, whole, strict=True))


def test_large_outputs_are_streamed_to_the_same_bits() -> None:
    for dtype in DTYPES:
        clean, noise, *factors = make((2, 1 << 22), dtype)
        whole = ops.add_noise(clean, noise, *factors)
        for part in (slice(0, 1000), slice(-1000, None)):
            parts = ops.add_noise(clean[:, part], noise[:, part], *factors)
            assert all(torch.equal(a, b[:, part]) for a, b in zip(parts, whole, strict=True))


# ---- gradients and torch's own contracts -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients(dtype) -> None:
    clean, noise, *factors = make((2, 3, 5), dtype)
    cotangents = [torch.randn(2, 3, 5).to(dtype) for _ in range(2)]

    def gradients(leaf_dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [tensor.to(leaf_dtype).requires_grad_() for tensor in (clean, noise)]
        return torch.autograd.grad(
            ops.add_noise(*leaves, *factors), leaves, [cotangent.to(leaf_dtype) for cotangent in cotangents]
        )

    ours = gradients(dtype)
    with fastdiff.use_reference():
        eager, exact = gradients(dtype), gradients(torch.float64)
    for mine, theirs, true in zip(ours, eager, exact, strict=True):
        assert_as_exact(mine, theirs, true)


def test_second_derivative_and_gradcheck_of_the_definition() -> None:
    clean, noise, *factors = make((2, 3), torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (clean, noise)]
    assert torch.autograd.gradcheck(lambda *t: reference.add_noise(*t, *factors), leaves)
    x = clean.detach().float().requires_grad_()
    noisy, _ = ops.add_noise(x, noise.detach().float(), *factors)
    (first,) = torch.autograd.grad(noisy.pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(second, (6 * noisy * factors[0][:, None].float().square()).detach())


def test_opcheck_and_compile() -> None:
    arguments = make((2, 3, 4, 5), torch.float32)
    clean, noise = (tensor.requires_grad_() for tensor in arguments[:2])
    torch.library.opcheck(torch.ops.fastdiff.add_noise, (clean, noise, *arguments[2:]))

    def batch(clean, noise, *factors):
        noisy, target = ops.add_noise(clean * 2, noise, *factors)
        return (noisy - target).square().sum()

    losses = [function(*arguments) for function in (batch, torch.compile(batch, fullgraph=True))]
    torch.testing.assert_close(*losses)
    for a, b in zip(*(torch.autograd.grad(loss, (clean, noise)) for loss in losses), strict=True):
        torch.testing.assert_close(a, b)


def test_reference_switch_and_float64() -> None:
    arguments = make((2, 3), torch.float64)
    with pytest.raises(TypeError, match="clean must be float32, bfloat16 or float16, got torch.float64"):
        ops.add_noise(*arguments)
    with fastdiff.use_reference():
        assert ops.add_noise(*arguments)[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("error", "message", "position", "value"),
    [
        (TypeError, "clean must be a tensor, got list", 0, [1.0]),
        (ValueError, "clean must have a batch dimension, got a scalar", 0, torch.tensor(1.0)),
        (TypeError, "noise must have clean's dtype torch.float32, got torch.float16", 1, torch.ones(2, 3).half()),
        (ValueError, r"noise must have clean's shape \(2, 3\), got \(2, 4\)", 1, torch.ones(2, 4)),
        (ValueError, "noise must be on clean's device cpu, got meta", 1, torch.ones(2, 3, device="meta")),
        (TypeError, "alpha must be float32 or float64 like alpha, got torch.float16", 2, torch.ones(2).half()),
        (TypeError, "sigma must be float32 or float64 like alpha, got torch.float32", 3, torch.ones(2)),
        (ValueError, r"target_noise must have shape \(2,\), got \(3,\)", 5, torch.ones(3).double()),
    ],
)
def test_wrong_arguments(error, message, position, value) -> None:
    arguments: list = make((2, 3), torch.float32)
    arguments[position] = value
    with pytest.raises(error, match=message):
        ops.add_noise(*arguments)


def test_wrong_arguments_to_the_raw_op_raise() -> None:
    clean, noise, *factors = make((2, 3), torch.float32)
    op = torch.ops.fastdiff.add_noise
    with pytest.raises(RuntimeError, match="noise must have the shape of the others"):
        op(clean, noise[:1], *factors)
    with pytest.raises(RuntimeError, match="the coefficients must be float32 or float64"):
        op(clean, noise, *(factor.half() for factor in factors))
    with pytest.raises(RuntimeError, match=r"the coefficients must be \(batch\) of one dtype"):
        op(clean, noise, *factors[:3], factors[3][:1])


@pytest.mark.parametrize("isa", fastdiff.build_info().get("cpu_isas_built", []))
def test_every_instruction_set(isa) -> None:
    instruction_sets.run_tests(isa, __file__, "shapes or layouts or nan or batch or streamed")
