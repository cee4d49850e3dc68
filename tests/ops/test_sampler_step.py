"""sampler_step against its definition, on every backend: the error may be twice that of eager PyTorch."""

from __future__ import annotations

import itertools
import struct
import subprocess
import sys

import pytest
import torch
from backends import Backend
from torch import Tensor

import fastdiff
from fastdiff import ops, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COEFFICIENTS = (0.9, -1.3, 0.4, -0.2, 0.1, 0.7)
SCALE = 3.5
# As a float32, rounding to bfloat16 by addition would turn it into a zero.
NAN_OF_ALL_BITS = struct.unpack("<d", b"\xff" * 7 + b"\x7f")[0]


def make(count, shape, dtype, device="cpu") -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64).to(device=device, dtype=dtype) for _ in range(count)]


def run(
    backend: Backend, sample, prediction, uncond=None, history=(), coefficients=COEFFICIENTS, scale=SCALE
) -> Tensor:
    with backend.run():
        return backend.ops.sampler_step(
            sample, prediction, uncond, scale, list(coefficients[: 2 + len(history)]), list(history)
        )


def define(sample, prediction, uncond=None, history=(), coefficients=COEFFICIENTS, scale=SCALE, dtype=None) -> Tensor:
    def convert(tensor: Tensor) -> Tensor:
        return tensor if dtype is None else tensor.to(dtype)

    return reference.sampler_step(
        convert(sample),
        convert(prediction),
        coefficients[: 2 + len(history)],
        uncond_prediction=None if uncond is None else convert(uncond),
        guidance_scale=scale,
        history=[convert(entry) for entry in history],
    )


def max_error(a: Tensor, exact: Tensor) -> float:
    return (a.double() - exact).abs().max().item() if exact.numel() else 0.0


def assert_as_exact(backend: Backend, *operands, **options) -> Tensor:
    """Runs the step and holds its error against eager's in the same dtype. Returns the result."""
    result = run(backend, *operands, **options)
    exact = define(*operands, **options, dtype=torch.float64)
    # Of one element eager may hit the float32 result by luck; its neighbours are as good.
    luck = 1e-6 * max(1.0, exact.abs().max().item())
    allowed = 2 * max_error(define(*operands, **options), exact) + luck
    assert result.dtype == operands[0].dtype and result.shape == operands[0].shape
    assert max_error(result, exact) <= allowed, f"{max_error(result, exact):.2e} > {allowed:.2e}"
    return result


@pytest.mark.parametrize("size", [1, 7, 33, 4099, 70_001], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_combination_of_operands(device: Backend, dtype, size) -> None:
    for guided, count in itertools.product((False, True), range(5)):
        sample, prediction, uncond, *history = make(3 + count, (size,), dtype, device.device)
        assert_as_exact(device, sample, prediction, uncond if guided else None, history)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_guidance_between_close_predictions(device: Backend, dtype) -> None:
    """Late in a run both predictions are nearly equal: w * c + (1 - w) * u would lose digits in their difference."""
    sample, prediction, change = make(3, (2, 4, 33), dtype, device.device)
    prediction = 100 * prediction
    assert_as_exact(device, sample, prediction, prediction + change, scale=50.0, coefficients=(1.0, 0.01))


def test_low_precision_rounds_once(device: Backend) -> None:
    # In bfloat16 steps 256 + 1 would stay 256 before the 256 is taken away.
    sample, prediction, entry = (
        torch.full((1, 2), value, dtype=torch.bfloat16, device=device.device) for value in (256.0, 1.0, -256.0)
    )
    assert run(device, sample, prediction, history=[entry], coefficients=(1.0, 1.0, 1.0)).tolist() == [[1.0, 1.0]]


# ---- layouts ---------------------------------------------------------------------------------------------------------


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": channels_last,
    "transposed": lambda t: t.transpose(0, 2).contiguous().transpose(0, 2),
    "slice": lambda t: torch.cat([t, t], dim=3)[..., 1 : 1 + t.shape[3]],
    "step": lambda t: t.repeat_interleave(2, dim=2)[:, :, ::2],
    "expanded": lambda t: t[:, :1].expand_as(t),
    "unaligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize("others", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(device: Backend, layout, others) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        sample, *rest = make(4, (3, 5, 6, 7), dtype, device.device)
        sample = LAYOUTS[layout](sample)
        prediction, uncond, entry = (LAYOUTS[others](tensor) for tensor in rest)
        result = assert_as_exact(device, sample, prediction, uncond, [entry])
        assert result.stride() == torch.empty_like(sample).stride()
        if layout not in ("slice", "step", "expanded"):
            assert result.stride() == sample.stride()


def test_one_tensor_may_be_every_operand(device: Backend) -> None:
    (sample,) = make(1, (2, 3, 5), torch.float32, device.device)
    assert_as_exact(device, sample, sample, sample, [sample, sample])


def test_scalar_and_many_dimensions(device: Backend) -> None:
    for shape in ((), (1, 2, 1, 2, 1, 2, 3)):
        assert_as_exact(device, *make(3, shape, torch.float32, device.device))


def test_empty(device: Backend) -> None:
    for shape in ((0,), (0, 3, 2, 2), (2, 0, 4)):
        sample, prediction, uncond, entry = make(4, shape, torch.float32, device.device)
        arguments = (sample, prediction, uncond, SCALE, list(COEFFICIENTS[:3]), [entry])
        assert device.ops.sampler_step(*arguments).shape == shape  # nothing is launched


def test_inputs_are_not_changed(device: Backend) -> None:
    tensors = make(4, (3, 4, 5, 6), torch.float32, device.device)
    copies = [tensor.clone() for tensor in tensors]
    run(device, *tensors[:3], tensors[3:])
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, copies, strict=True))


# ---- NaN and infinity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity_stay_in_their_element(device: Backend, dtype) -> None:
    for operand, bad, place in itertools.product(range(4), (float("nan"), float("inf"), float("-inf")), (0, 40, 66)):
        tensors = make(4, (67,), dtype, device.device)
        clean = run(device, *tensors[:3], tensors[3:])
        tensors[operand][place] = bad
        result = run(device, *tensors[:3], tensors[3:])
        want = define(*tensors[:3], tensors[3:])
        assert not result[place].isfinite()
        torch.testing.assert_close(result[place], want[place], equal_nan=True)
        others = torch.arange(67, device=device.device) != place
        assert torch.equal(result[others], clean[others])


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_every_nan_stays_nan(device: Backend, dtype) -> None:
    for operand, bits in itertools.product(range(4), (0x7FFF, -1, 0x7FC1)):
        tensors = make(4, (67,), dtype, device.device)
        tensors[operand].view(torch.int16).fill_(bits)
        assert run(device, *tensors[:3], tensors[3:]).isnan().all()
    tensors = make(4, (67,), dtype, device.device)
    for nan in (float("nan"), NAN_OF_ALL_BITS):
        assert run(device, *tensors[:3], tensors[3:], coefficients=(1.0, 1.0, nan)).isnan().all()
        assert run(device, *tensors[:3], tensors[3:], scale=nan).isnan().all()


def test_overflow_is_infinity(device: Backend) -> None:
    for dtype in DTYPES:
        large = torch.full((35,), torch.finfo(dtype).max, dtype=dtype, device=device.device)
        assert (run(device, large, large, coefficients=(2.0, 2.0)) == float("inf")).all()


# ---- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sample_does_not_depend_on_its_batch(device: Backend, dtype) -> None:
    """Also where the samples of a batch start at addresses that no vector fits, and end within one."""
    for features in (1, 7, 33, 1030):
        tensors = make(5, (5, features), dtype, device.device)
        whole = run(device, *tensors[:3], tensors[3:])
        for i in range(5):
            one = [tensor[i : i + 1] for tensor in tensors]
            assert torch.equal(run(device, *one[:3], one[3:]), whole[i : i + 1])


def test_same_bits_for_any_thread_count() -> None:
    code = """
import sys, torch, fastdiff, hashlib
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
digest = hashlib.sha256()
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for size in (32768, 100003):
        x, p, u, h = (torch.randn(size).to(dtype) for _ in range(4))
        y = fastdiff.ops.sampler_step(x, p, [0.9, -1.3, 0.4], uncond_prediction=u, guidance_scale=3.5, history=[h])
        digest.update(y.view(torch.uint8).numpy().tobytes())
print(digest.hexdigest())
"""
    digests = {
        subprocess.run([sys.executable, "-c", code, threads], check=True, capture_output=True, text=True).stdout
        for threads in ("1", "2", "3", "5")
    }
    assert len(digests) == 1


# ---- the public function ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_formula(dtype) -> None:
    """The docstring's formula in float64, written out here: the definition itself must be right."""
    sample, prediction, uncond, *history = make(6, (3, 4, 5, 6), dtype)
    result = ops.sampler_step(
        sample, prediction, COEFFICIENTS[:5], uncond_prediction=uncond, guidance_scale=SCALE, history=history
    )
    x, c, u, *h = (tensor.double() for tensor in (sample, prediction, uncond, *history))
    expected = 0.9 * x - 1.3 * (u + SCALE * (c - u)) + 0.4 * h[0] - 0.2 * h[1] + 0.1 * h[2]
    # One rounding to the dtype at the end; float32 arithmetic on numbers of at most some tens before.
    torch.testing.assert_close(result.double(), expected, rtol=torch.finfo(dtype).eps, atol=2e-5)


def test_without_guidance_and_history() -> None:
    sample, prediction = make(2, (3, 4, 5, 6), torch.float32)
    torch.testing.assert_close(ops.sampler_step(sample, prediction, [0.5, 2.0]), 0.5 * sample + 2.0 * prediction)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operands_may_have_other_dtypes(dtype) -> None:
    sample, prediction, uncond, entry = make(4, (3, 4, 5, 6), torch.float32)
    sample, prediction, uncond = sample.to(dtype), prediction.bfloat16(), uncond.half()
    result = ops.sampler_step(
        sample, prediction, [1.0, 1.0, 1.0], uncond_prediction=uncond, guidance_scale=SCALE, history=[entry]
    )
    expected = define(sample, prediction, uncond, [entry], (1.0, 1.0, 1.0), dtype=torch.float64)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), expected, rtol=torch.finfo(dtype).eps, atol=2e-6)


def test_reference_switch_and_float64() -> None:
    sample, prediction = make(2, (3, 4), torch.float64)
    with fastdiff.use_reference():
        result = ops.sampler_step(sample, prediction, [0.1, 0.3])
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, 0.1 * sample + 0.3 * prediction, rtol=1e-15, atol=1e-15)
    assert torch.equal(result, reference.sampler_step(sample, prediction, [0.1, 0.3]))


def test_kernel_runs_outside_the_reference_switch(monkeypatch) -> None:
    monkeypatch.setattr(reference, "sampler_step", None)
    sample, prediction = make(2, (3, 4), torch.float32)
    assert ops.sampler_step(sample, prediction, [1.0, 0.0]).equal(sample)


def test_missing_extension_is_told(monkeypatch) -> None:
    monkeypatch.setattr(fastdiff._extension, "_C", None)
    sample, prediction = make(2, (3, 4), torch.float32)
    with pytest.raises(ImportError, match="compiled extension could not be loaded"):
        ops.sampler_step(sample, prediction, [1.0, 0.0])
    with fastdiff.use_reference():
        ops.sampler_step(sample, prediction, [1.0, 0.0])


# ---- gradients -------------------------------------------------------------------------------------------------------


def public_step(sample, prediction, uncond, *history) -> Tensor:
    return ops.sampler_step(
        sample,
        prediction,
        COEFFICIENTS[: 2 + len(history)],
        uncond_prediction=uncond,
        guidance_scale=SCALE,
        history=history,
    )


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients(dtype, guided) -> None:
    sample, prediction, uncond, *history = (t.requires_grad_() for t in make(5, (2, 3, 5), dtype))
    leaves = [sample, prediction, *([uncond] if guided else []), *history]
    (g,) = make(1, (2, 3, 5), dtype)

    def gradients() -> tuple[Tensor, ...]:
        result = public_step(sample, prediction, uncond if guided else None, *history)
        return torch.autograd.grad(result, leaves, g)

    ours = gradients()
    with fastdiff.use_reference():
        want = gradients()
    for a, b in zip(ours, want, strict=True):
        torch.testing.assert_close(a, b, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_gradients_of_some_operands_only() -> None:
    sample, prediction, uncond, first, second = make(5, (2, 3), torch.float32)
    leaves = [uncond.requires_grad_(), second.requires_grad_()]
    grads = torch.autograd.grad(public_step(sample, prediction, uncond, first, second).sum(), leaves)
    torch.testing.assert_close(grads[0], torch.full((2, 3), -1.3 * (1 - SCALE)))
    torch.testing.assert_close(grads[1], torch.full((2, 3), -0.2))


def test_gradient_through_a_chain_of_steps() -> None:
    """Of a loss at the end with respect to the noise at the start; the second derivative too."""
    (noise,) = make(1, (2, 6), torch.float32)
    noise.requires_grad_()

    def loss() -> Tensor:
        x, previous = noise, None
        for _ in range(3):
            prediction = torch.tanh(x)
            x = ops.sampler_step(x, prediction, [0.9, -0.5, 0.2], history=[x if previous is None else previous])
            previous = prediction
        return x.square().sum()

    def derivatives() -> tuple[Tensor, Tensor]:
        (first,) = torch.autograd.grad(loss(), noise, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), noise)
        return first, second

    ours = derivatives()
    with fastdiff.use_reference():
        want = derivatives()
    for a, b in zip(ours, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gradcheck_of_the_definition() -> None:
    operands = [t.requires_grad_() for t in make(5, (2, 3), torch.float64)]
    assert torch.autograd.gradcheck(lambda x, c, u, *h: define(x, c, u, h), operands)


# ---- torch's own contracts -------------------------------------------------------------------------------------------


def test_opcheck() -> None:
    sample, prediction, uncond, *history = (t.requires_grad_() for t in make(5, (2, 3, 4, 5), torch.float32))
    op = torch.ops.fastdiff.sampler_step
    torch.library.opcheck(op, (sample, prediction, uncond, SCALE, list(COEFFICIENTS[:4]), history))
    torch.library.opcheck(op, (channels_last(sample.detach()), prediction, None, 1.0, [0.5, 0.5], []))
    torch.library.opcheck(op, (sample.detach()[:, :2, ::2], prediction.detach()[:, 1:, ::2], None, 1.0, [0.5, 0.5], []))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice"])
def test_compile_has_no_graph_break(layout) -> None:
    @torch.compile(fullgraph=True)
    def step(sample, prediction, uncond, *history):
        return public_step(sample * 1, torch.tanh(prediction), uncond, *history) + 1

    for shape in ((2, 4, 6, 6), (2, 4, 10, 10)):
        operands = [LAYOUTS[layout](tensor).requires_grad_() for tensor in make(4, shape, torch.float32)]
        sample, prediction, *rest = operands
        want = public_step(sample, torch.tanh(prediction), *rest) + 1
        got = step(*operands)
        torch.testing.assert_close(got, want)
        assert got.stride() == want.stride()
        for a, b in zip(*(torch.autograd.grad(y.sum(), operands) for y in (got, want)), strict=True):
            torch.testing.assert_close(a, b)


def test_inference_mode_and_no_grad() -> None:
    operands = [t.requires_grad_() for t in make(4, (2, 3), torch.float32)]
    want = public_step(*operands)
    assert want.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            result = public_step(*operands)
        assert not result.requires_grad
        assert torch.equal(result, want)


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_wrong_arguments() -> None:
    sample, prediction, other = make(3, (3, 4, 5, 6), torch.float32)
    with pytest.raises(TypeError, match="prediction must be a tensor, got list"):
        ops.sampler_step(sample, [1.0], [1.0, 1.0])
    with pytest.raises(TypeError, match="sample must be float32, bfloat16 or float16, got torch.float64"):
        ops.sampler_step(sample.double(), prediction, [1.0, 1.0])
    with pytest.raises(TypeError, match=r"history\[0\] must be float32.*int64"):
        ops.sampler_step(sample, prediction, [1.0, 1.0, 1.0], history=[other.long()])
    with pytest.raises(ValueError, match="uncond_prediction must have sample's shape"):
        ops.sampler_step(sample, prediction, [1.0, 1.0], uncond_prediction=other[:1])
    with pytest.raises(ValueError, match="prediction must be on sample's device cpu, got meta"):
        ops.sampler_step(sample, prediction.to("meta"), [1.0, 1.0])
    with pytest.raises(ValueError, match="history must have at most 4 tensors, got 5"):
        ops.sampler_step(sample, prediction, [1.0] * 7, history=[other] * 5)
    for coefficients in ([1.0], [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match="coefficients must have 2 \\+ 0 entries"):
            ops.sampler_step(sample, prediction, coefficients)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": torch.ones(2, 3, dtype=torch.float64)}, "sample must be float32, bfloat16 or float16"),
        ({"prediction": torch.ones(3, 2)}, "prediction must have the shape of sample"),
        ({"uncond_prediction": torch.ones(2, 3).half()}, "uncond_prediction must have the dtype of sample"),
        ({"coefficients": [1.0, 2.0]}, "coefficients must have two entries more than history"),
        ({"coefficients": [1.0] * 7, "history": [torch.ones(2, 3)] * 5}, "history must have at most 4 tensors"),
        ({"history": [torch.ones(2)]}, "history must have the shape of sample"),
    ],
)
def test_wrong_arguments_to_the_raw_op_raise(change, message) -> None:
    arguments = {
        "sample": torch.ones(2, 3),
        "prediction": torch.ones(2, 3),
        "uncond_prediction": None,
        "guidance_scale": 1.0,
        "coefficients": [1.0, 1.0, 1.0],
        "history": [torch.ones(2, 3)],
    }
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastdiff.sampler_step(**{**arguments, **change})
