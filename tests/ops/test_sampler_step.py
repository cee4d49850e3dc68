"""sampler_step against its definition, on every backend: the error may be twice that of eager PyTorch."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from typing import Any

import instruction_sets
import pytest
import torch
from accuracy import assert_as_exact, float32_noise, max_error
from backends import Backend
from torch import Tensor

import fastdiff
from fastdiff import ops, reference
from fastdiff.ops import StepColumn

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DTYPE_PAIRS = list(itertools.product(DTYPES, DTYPES))
FULL = {"guidance": 3.5, "model_sample": 1.2, "model_guided": -0.4, "clip": 1.5, "sample": 0.9, "guided": -0.3}
FULL |= {"model": 0.8, "noise": 0.25, "history_0": 0.4, "history_1": -0.2, "history_2": 0.1, "history_3": 0.7}
NAN_OF_ALL_BITS = torch.tensor(-1, dtype=torch.int32).view(torch.float32).item()


def row_of(**columns: float) -> Tensor:
    """(1, 13), without guidance and clip where they are not named."""
    row = {"guidance": 1.0, "clip": math.inf, **columns}
    return torch.tensor([[row.get(column.name.lower(), 0.0) for column in StepColumn]])


def make(count, shape, dtype, device="cpu") -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64).to(device=device, dtype=dtype) for _ in range(count)]


def converted(value: Any, dtype: torch.dtype) -> Any:
    """Floating tensors, in whatever they stand, to `dtype`."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype)
    if isinstance(value, dict):
        return {name: converted(entry, dtype) for name, entry in value.items()}
    return [converted(entry, dtype) for entry in value] if isinstance(value, list) else value


def run(backend: Backend, sample, prediction, coefficients, step=0, **options) -> tuple[Tensor, Tensor]:
    with backend.run():
        return ops.sampler_step(sample, prediction, coefficients.to(sample.device), step, **options)


def check(backend: Backend, sample, prediction, coefficients, step=0, **options) -> tuple[Tensor, Tensor]:
    """Runs the step and holds both errors against those of eager PyTorch."""
    ours = run(backend, sample, prediction, coefficients, step, **options)
    coefficients = coefficients.to(sample.device)
    eager = reference.sampler_step(sample, prediction, coefficients, step, **options)
    exact = reference.sampler_step(
        sample.double(), prediction.double(), coefficients, step, **converted(options, torch.float64)
    )
    for name, mine, theirs, true in zip(("result", "model"), ours, eager, exact, strict=True):
        assert mine.dtype == sample.dtype and mine.shape == sample.shape
        assert_as_exact(mine, theirs, true, name)
    return ours


def seeds_for(sample: Tensor) -> Tensor:
    return torch.arange(sample.shape[0], device=sample.device) * 2**33 - 7


# ---- the formula -----------------------------------------------------------------------------------------------------


def test_formula_of_every_column() -> None:
    """The docstring's formula in float64, written out here: the definition itself must be right."""
    x, p, u, *h = make(7, (3, 4, 5), torch.float32)
    seeds = torch.tensor([5, -6, 7])
    result, model = ops.sampler_step(x, p, row_of(**FULL, rescale=0.7), uncond_prediction=u, history=h, seeds=seeds)
    x, p, u, *h = (tensor.double() for tensor in (x, p, u, *h))
    guided = u + 3.5 * (p - u)
    deviations = [tensor.flatten(1).std(1)[:, None, None] for tensor in (p, guided)]
    guided = 0.7 * guided * deviations[0] / deviations[1] + 0.3 * guided
    expected = (1.2 * x - 0.4 * guided).clamp(-1.5, 1.5)
    torch.testing.assert_close(model.double(), expected, rtol=1e-5, atol=1e-5)
    expected = 0.9 * x - 0.3 * guided + 0.8 * expected + 0.4 * h[0] - 0.2 * h[1] + 0.1 * h[2] + 0.7 * h[3]
    expected += 0.25 * ops.philox_normal((3, 4, 5), seeds, offset=1)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (3, 5, 8), (2, 4, 33, 5)], ids=str)
@pytest.mark.parametrize(("dtype", "prediction_dtype"), DTYPE_PAIRS, ids=str)
def test_every_combination_of_operands(device: Backend, dtype, prediction_dtype, shape) -> None:
    for guided, count, noisy in itertools.product((False, True), range(5), (False, True)):
        sample, *history = make(1 + count, shape, dtype, device.device)
        prediction, uncond = make(2, shape, prediction_dtype, device.device)
        options = {"history": history, "seeds": seeds_for(sample) if noisy else None}
        check(device, sample, prediction, row_of(**FULL), uncond_prediction=uncond if guided else None, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_samples(device: Backend, dtype) -> None:
    """More than a chunk of a thread, a part of a block and a round of the grid; with and without what tells samples
    apart."""
    shape = (2, 3, 110, 131) if device.elements > 1e6 else (2, 20_001)
    sample, entry, prediction, uncond = make(4, shape, dtype, device.device)
    row = row_of(**FULL, rescale=0.7)
    check(device, sample, prediction, row, uncond_prediction=uncond, history=[entry], seeds=seeds_for(sample))
    check(device, sample, prediction, row)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_guidance_between_close_predictions(device: Backend, dtype) -> None:
    """Late in a run both predictions are nearly equal: w * c + (1 - w) * u would lose digits in their difference."""
    sample, prediction, change = make(3, (2, 4, 33), dtype, device.device)
    row = row_of(guidance=50, sample=1, guided=0.01)
    check(device, sample, 100 * prediction, row, uncond_prediction=100 * prediction + change)


def test_low_precision_rounds_once(device: Backend) -> None:
    # In bfloat16 steps 256 + 1 would stay 256 before the 256 is taken away.
    sample, prediction, entry = (
        torch.full((1, 2), value, dtype=torch.bfloat16, device=device.device) for value in (256.0, 1.0, -256.0)
    )
    result, _ = run(device, sample, prediction, row_of(sample=1, guided=1, history_0=1), history=[entry])
    assert result.tolist() == [[1.0, 1.0]]


def test_step_picks_the_row_and_may_be_on_the_device(device: Backend) -> None:
    sample, prediction = make(2, (2, 33), torch.float32, device.device)
    rows = torch.cat([row_of(sample=1.0, guided=factor, noise=0.1) for factor in (0.5, -2.0, 3.0)]).to(device.device)
    seeds = seeds_for(sample)
    for step in range(3):
        result, model = check(device, sample, prediction, rows, step, seeds=seeds)
        on_device = run(device, sample, prediction, rows, torch.tensor(step, device=device.device), seeds=seeds)
        assert torch.equal(on_device[0], result) and torch.equal(on_device[1], model)
    for step in (-1, 3, 2**40):
        for tensor in run(device, sample, prediction, rows, torch.tensor(step, device=device.device)):
            assert tensor.isnan().all()


# ---- rescaling and thresholds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_dtype", DTYPES, ids=str)
def test_rescaled_guidance(device: Backend, prediction_dtype) -> None:
    """Also far from zero, where the sum of squares has no digit of the variance, and where nothing is rescaled."""
    far_and_near = ((0.0, 7.5), (300.0, 7.5), (300.0, 1.0))
    spread = 1 if prediction_dtype == torch.float32 else 8  # or nine numbers near 300 might be one and the same
    for shape, (mean, guidance), rescale in itertools.product(
        [(3, 9), (2, 4, 37), (2, 9_000)], far_and_near, (0.0, 0.7, 1.0)
    ):
        (sample,) = make(1, shape, torch.float32, device.device)
        prediction, uncond = (spread * t + mean for t in make(2, shape, prediction_dtype, device.device))
        row = row_of(guidance=guidance, rescale=rescale, model_guided=1, sample=0.5, guided=0.5)
        check(device, sample, prediction, row, uncond_prediction=uncond)
    if prediction_dtype == torch.float32:
        sample, prediction, uncond = make(3, (5, 1), torch.float32, device.device)
        check(device, sample, prediction, row_of(guidance=2, rescale=0.7, guided=1), uncond_prediction=uncond)


@pytest.mark.parametrize("count", [6, 64, 20_001])
def test_constant_predictions_are_rescaled_only_on_request(device: Backend, count) -> None:
    """The deviations are then 0 for any number of elements, and their ratio is NaN."""
    sample, (number,) = torch.zeros(1, count, device=device.device), make(1, (1, 1), torch.float32, device.device)
    for value, (rescale, scale) in itertools.product((number, 0.1 + 0 * number), ((0.0, 3.0), (0.5, math.nan))):
        constant = value.expand(1, count)
        row = row_of(guidance=2, rescale=rescale, guided=3)
        result, _ = run(device, sample, constant, row, uncond_prediction=constant.clone())
        torch.testing.assert_close(result, scale * constant, equal_nan=True)


@pytest.mark.parametrize("count", [9, 37, 20_001])
def test_nearly_constant_predictions_are_rescaled_as_all_others(device: Backend, count) -> None:
    """The variance is some 1e-15 of the mean square: hardly a digit of it is in a float64 sum of squares.

    The numbers are near 2^15 on the grid of float32 there, and guidance stays on it: all but the deviations is exact.
    """
    grid = 2.0**-8
    prediction, uncond = torch.full((2, 2, count), 2.0**15, device=device.device)
    prediction[:, ::2] += grid
    uncond[:, 1::3] -= grid
    row, options = row_of(guidance=2, rescale=1, guided=1), {"uncond_prediction": uncond}
    result, _ = run(device, torch.zeros_like(prediction), prediction, row, **options)
    exact, _ = reference.sampler_step(result.double(), prediction, row.to(device.device), **options)
    assert max_error(result, exact) <= float32_noise(exact)


def test_dynamic_threshold(device: Backend) -> None:
    scale = torch.tensor([0.1, 2.0, 30.0], device=device.device)[:, None, None]
    for dtype, (ratio, max_value) in itertools.product(DTYPES, ((0.9, 5.0), (0.5, 1.0), (1.0, 1e6))):
        sample, prediction, uncond = make(3, (3, 4, 33), dtype, device.device)
        row = row_of(guidance=2, model_sample=1, model_guided=-0.5, clip=0.01, model=0.7, sample=0.1)
        threshold = (ratio, max_value)
        _, model = check(device, sample * scale.to(dtype), prediction, row, threshold=threshold)
        assert model.abs().max() <= 1
        check(device, sample * scale.to(dtype), prediction, row, threshold=threshold, uncond_prediction=uncond)


def test_dynamic_threshold_is_that_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=2.5)
    sample = torch.randn(4, 3, 8, 8) * torch.tensor([0.1, 1.0, 2.0, 30.0])[:, None, None, None]
    _, model = ops.sampler_step(sample, torch.zeros_like(sample), row_of(model_sample=1), threshold=(0.9, 2.5))
    torch.testing.assert_close(model, scheduler._threshold_sample(sample))


# ---- layouts and writing in place ------------------------------------------------------------------------------------


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


LAYOUTS = {
    "contiguous": lambda t: t.clone(),
    "channels_last": channels_last,
    "transposed": lambda t: t.transpose(0, 2).contiguous().transpose(0, 2),
    "slice": lambda t: torch.cat([t, t], dim=3)[..., 1 : 1 + t.shape[3]],
    "step": lambda t: t.repeat_interleave(2, dim=2)[:, :, ::2],
    "expanded": lambda t: t[:, :1].expand_as(t),
    "unaligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


def lying_like(tensor: Tensor) -> Tensor:
    return tensor.new_zeros(2000).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


@pytest.mark.parametrize("others", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(device: Backend, layout, others) -> None:
    """Flat, by samples, and with noise, whose order is that of indices and not of memory."""
    sample, entry, prediction, uncond = make(4, (3, 5, 4, 6), torch.float32, device.device)
    sample, (entry, prediction, uncond) = LAYOUTS[layout](sample), map(LAYOUTS[others], (entry, prediction, uncond))
    for options in ({}, {"uncond_prediction": uncond}, {"seeds": seeds_for(sample)}):
        result, model = check(device, sample, prediction, row_of(**FULL, rescale=0.7), history=[entry], **options)
        assert result.stride() == model.stride() == torch.empty_like(sample).stride()
        if "expanded" in (layout, others):
            continue  # PyTorch does not write to one element for several
        written, model_out = lying_like(sample).copy_(sample), lying_like(prediction)
        with device.run():
            coefficients = row_of(**FULL, rescale=0.7).to(device.device)
            ops.sampler_step_(written, prediction, coefficients, 0, history=[entry], model_out=model_out, **options)
        assert torch.equal(written, result) and torch.equal(model_out, model)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_model_may_be_written_to_the_history_it_is_made_of(device: Backend, dtype) -> None:
    sample, first, second, prediction, uncond = make(5, (2, 3, 35), dtype, device.device)
    options = {"uncond_prediction": uncond, "seeds": seeds_for(sample)}
    result, model = run(device, sample, prediction, row_of(**FULL), history=[first, second], **options)
    with device.run():
        coefficients, ring = row_of(**FULL).to(device.device), [first, second]
        ops.sampler_step_(sample, prediction, coefficients, 0, history=ring, model_out=second, **options)
    assert torch.equal(sample, result) and torch.equal(second, model)


def test_one_tensor_may_be_every_operand(device: Backend) -> None:
    (sample,) = make(1, (2, 3, 5), torch.float32, device.device)
    options = {"uncond_prediction": sample, "history": [sample, sample]}
    result, _ = check(device, sample, sample, row_of(**FULL), **options)
    with device.run():
        ops.sampler_step_(sample, sample, row_of(**FULL).to(device.device), 0, **options)
    assert torch.equal(sample, result)


def test_empty(device: Backend) -> None:
    for shape in ((0,), (0, 3, 2, 2), (2, 0, 4)):
        sample, prediction, uncond, entry = make(4, shape, torch.float32, device.device)
        options = {"uncond_prediction": uncond, "history": [entry], "seeds": seeds_for(sample)}
        for threshold in (None, (0.9, 2.0)):
            row = row_of(**FULL).to(device.device)
            result, model = ops.sampler_step(sample, prediction, row, threshold=threshold, **options)
            assert result.shape == model.shape == shape
        ops.sampler_step_(sample, prediction, row, 0, **options)


def test_in_place_step_is_a_new_version(device: Backend) -> None:
    """Else autograd and the keys and values that nn.Attention keeps would take it for the same tensor."""
    sample, prediction, model = make(3, (2, 6), torch.float32, device.device)
    weight = torch.ones(2, 6, device=device.device, requires_grad=True)
    product = (weight * sample).sum()
    versions = sample._version, model._version
    with torch.no_grad(), device.run():
        ops.sampler_step_(sample, prediction, row_of(sample=0.5).to(device.device), 0, model_out=model)
    assert sample._version > versions[0] and model._version > versions[1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    with pytest.raises(ValueError, match="model_out must be another tensor"):
        ops.sampler_step_(sample, prediction, row_of(sample=0.5).to(device.device), 0, model_out=sample)


def test_inputs_are_not_changed(device: Backend) -> None:
    tensors = make(4, (3, 4, 5, 6), torch.float32, device.device)
    copies = [tensor.clone() for tensor in tensors]
    sample, prediction, uncond, entry = tensors
    run(device, sample, prediction, row_of(**FULL), uncond_prediction=uncond, history=[entry])
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, copies, strict=True))


def test_large_outputs_are_streamed_to_the_same_bits() -> None:
    for dtype, prediction_dtype in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)):
        sample, entry = make(2, (3, 1_500_000), dtype)
        (prediction,) = make(1, sample.shape, prediction_dtype)
        whole = ops.sampler_step(sample, prediction, row_of(**FULL), history=[entry])
        for i, part in itertools.product(range(3), range(0, 1_500_000, 500_000)):
            piece = (slice(i, i + 1), slice(part, part + 500_000))
            parts = ops.sampler_step(sample[piece], prediction[piece], row_of(**FULL), history=[entry[piece]])
            assert all(torch.equal(a, b[piece]) for a, b in zip(parts, whole, strict=True))


# ---- NaN and infinity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "prediction_dtype"), DTYPE_PAIRS[::2], ids=str)
def test_nan_and_infinity_stay_in_their_element(device: Backend, dtype, prediction_dtype) -> None:
    for operand, bad, place in itertools.product(range(4), (math.nan, math.inf, -math.inf), (0, 40, 66)):
        tensors = [*make(2, (1, 67), dtype, device.device), *make(2, (1, 67), prediction_dtype, device.device)]

        def step(function, tensors=tensors):
            sample, entry, prediction, uncond = tensors
            row = row_of(**FULL).to(sample.device)
            return function(sample, prediction, row, uncond_prediction=uncond, history=[entry])

        with device.run():
            clean = step(ops.sampler_step)
            tensors[operand][0, place] = bad
            found = step(ops.sampler_step)
        others = torch.arange(67, device=device.device) != place
        for mine, before, want in zip(found, clean, step(reference.sampler_step), strict=True):
            torch.testing.assert_close(mine[:, place], want[:, place], equal_nan=True)
            assert torch.equal(mine[:, others], before[:, others])


@pytest.mark.parametrize(("dtype", "prediction_dtype"), DTYPE_PAIRS, ids=str)
def test_every_nan_stays_nan(device: Backend, dtype, prediction_dtype) -> None:
    for operand, bits in itertools.product(range(4), (0x7FFF, -1, 0x7FC1)):
        tensors = [*make(2, (2, 67), dtype, device.device), *make(2, (2, 67), prediction_dtype, device.device)]
        tensors[operand].view(torch.int16).fill_(bits)  # of float32 both halves
        sample, entry, prediction, uncond = tensors
        result, _ = run(device, sample, prediction, row_of(**FULL), uncond_prediction=uncond, history=[entry])
        assert result.isnan().all()
    tensors = [*make(2, (2, 67), dtype, device.device), *make(2, (2, 67), prediction_dtype, device.device)]
    sample, entry, prediction, uncond = tensors
    for column, nan in itertools.product(FULL, (math.nan, NAN_OF_ALL_BITS)):
        if column in ("history_1", "history_2", "history_3"):
            continue
        row = row_of(**{**FULL, column: nan})
        options = {"uncond_prediction": uncond, "history": [entry], "seeds": seeds_for(sample)}
        result, _ = run(device, sample, prediction, row, **options)
        assert result.isnan().all(), column


def test_nan_in_a_sample_reaches_all_of_it_through_its_statistics(device: Backend) -> None:
    sample, prediction, uncond = make(3, (3, 70), torch.float32, device.device)
    prediction[1, 3] = math.nan
    row = row_of(guidance=2, rescale=0.5, guided=1, model_guided=1)
    result, _ = run(device, sample, prediction, row, uncond_prediction=uncond)
    assert result.isnan().all(1).tolist() == [False, True, False]
    _, model = run(device, sample, prediction, row, threshold=(0.9, 2.0))
    assert model.isnan().all(1).tolist() == [False, True, False]


def test_overflow_is_infinity(device: Backend) -> None:
    for dtype in DTYPES:
        large = torch.full((1, 35), torch.finfo(dtype).max, dtype=dtype, device=device.device)
        assert (run(device, large, large, row_of(sample=2, guided=2))[0] == math.inf).all()


# ---- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "prediction_dtype"), DTYPE_PAIRS[::2], ids=str)
def test_sample_does_not_depend_on_its_batch(device: Backend, dtype, prediction_dtype) -> None:
    """Also where the samples of a batch start at addresses that no vector fits, and end within one."""
    for features, rescale in itertools.product((1, 7, 33, 1030), (0.0, 0.7)):
        sample, entry = make(2, (4, features), dtype, device.device)
        prediction, uncond = make(2, (4, features), prediction_dtype, device.device)
        row, seeds = row_of(**FULL, rescale=rescale), seeds_for(sample)
        whole = run(
            device, sample, prediction, row, uncond_prediction=uncond, history=[entry], seeds=seeds, threshold=(0.9, 2)
        )
        for i in range(4):
            of_sample = [tensor[i : i + 1] for tensor in (sample, prediction, uncond, entry, seeds)]
            options = {"uncond_prediction": of_sample[2], "history": of_sample[3:4], "seeds": of_sample[4]}
            alone = run(device, *of_sample[:2], row, threshold=(0.9, 2), **options)
            assert all(torch.equal(a, b[i : i + 1]) for a, b in zip(alone, whole, strict=True))


def test_noise_is_that_of_philox_normal(device: Backend) -> None:
    for dtype, shape, step in itertools.product(DTYPES, ((3, 2, 5), (2, 1030)), (0, 2)):
        (zero,) = (torch.zeros(shape, dtype=dtype, device=device.device),)
        seeds, rows = seeds_for(zero), row_of(noise=1).repeat(3, 1)
        result, _ = run(device, zero, zero, rows, step, seeds=seeds)
        with device.run():
            assert torch.equal(result, ops.philox_normal(shape, seeds, offset=step + 1, dtype=dtype))


def test_same_bits_for_any_thread_count() -> None:
    code = """
import sys, torch, fastdiff, hashlib
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
row = torch.tensor([[3.5, 0.7, 1.2, -0.4, 1.5, 0.9, -0.3, 0.8, 0.25, 0.4, 0, 0, 0]])
digest = hashlib.sha256()
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for size in (32768, 100003):
        x, h, p, u = (torch.randn(2, size).to(dtype) for _ in range(4))
        seeds = torch.tensor([1, 2])
        for tensor in fastdiff.ops.sampler_step(x, p, row, uncond_prediction=u, history=[h], seeds=seeds):
            digest.update(tensor.view(torch.uint8).numpy().tobytes())
print(digest.hexdigest())
"""
    digests = {
        subprocess.run([sys.executable, "-c", code, threads], check=True, capture_output=True, text=True).stdout
        for threads in ("1", "2", "3")
    }
    assert len(digests) == 1


# ---- gradients -------------------------------------------------------------------------------------------------------


def full_step(sample, prediction, uncond, *history, coefficients=None, threshold=None):
    row = row_of(**FULL, rescale=0.7) if coefficients is None else coefficients
    options = {"uncond_prediction": uncond, "history": history, "threshold": threshold}
    return ops.sampler_step(sample, prediction, row, seeds=torch.tensor([3, 4]), **options)


@pytest.mark.parametrize("threshold", [None, (0.7, 1.4)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_those_of_the_definition(dtype, threshold) -> None:
    leaves = [t.requires_grad_() for t in (*make(5, (2, 3, 5), dtype), row_of(**FULL, rescale=0.7))]
    cotangents = make(2, (2, 3, 5), dtype)

    def gradients() -> tuple[Tensor, ...]:
        outputs = full_step(*leaves[:-1], coefficients=leaves[-1], threshold=threshold)
        return torch.autograd.grad(outputs, leaves, cotangents)

    ours = gradients()
    with fastdiff.use_reference():
        want = gradients()
    for a, b in zip(ours, want, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_of_some_operands_only() -> None:
    sample, prediction, uncond, first, second = make(5, (2, 3), torch.float32)
    leaves = [uncond.requires_grad_(), second.requires_grad_()]
    row = row_of(guidance=3.5, guided=-1.3, history_0=0.4, history_1=-0.2)
    result, _ = ops.sampler_step(sample, prediction, row, uncond_prediction=uncond, history=[first, second])
    grads = torch.autograd.grad(result.sum(), leaves)
    torch.testing.assert_close(grads[0], torch.full((2, 3), -1.3 * (1 - 3.5)))
    torch.testing.assert_close(grads[1], torch.full((2, 3), -0.2))


def test_single_elements_have_gradients() -> None:
    """Their deviation is not defined, and must not be asked for."""
    sample, prediction, uncond = (t.requires_grad_() for t in make(3, (4, 1), torch.float32))
    result, _ = ops.sampler_step(sample, prediction, row_of(guidance=2, guided=3), uncond_prediction=uncond)
    (gradient,) = torch.autograd.grad(result.sum(), prediction)
    torch.testing.assert_close(gradient, torch.full((4, 1), 6.0))


def test_gradient_through_a_chain_of_steps() -> None:
    """Of a loss at the end with respect to the noise at the start; the second derivative too."""
    (noise,) = make(1, (2, 6), torch.float32)
    noise.requires_grad_()
    row = row_of(sample=0.9, guided=-0.5, history_0=0.2, model_guided=1.0, model=0.1, clip=2.0)

    def loss() -> Tensor:
        x, previous = noise, None
        for _ in range(3):
            prediction = torch.tanh(x)
            x, previous = ops.sampler_step(x, prediction, row, history=[x if previous is None else previous])
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


@pytest.mark.parametrize("threshold", [None, (0.6, 1.3)])
def test_gradcheck_of_the_definition(threshold) -> None:
    operands = [t.requires_grad_() for t in make(5, (2, 3), torch.float64)]
    row, seeds = row_of(**FULL, rescale=0.7).double().requires_grad_(), torch.tensor([3, 4])

    def step(row, sample, prediction, uncond, *history):
        options = {"uncond_prediction": uncond, "history": history, "threshold": threshold}
        return reference.sampler_step(sample, prediction, row, seeds=seeds, **options)

    assert torch.autograd.gradcheck(step, (row, *operands))


def test_in_place_has_no_gradient() -> None:
    sample, prediction = make(2, (2, 3), torch.float32)
    prediction.requires_grad_()
    with pytest.raises(RuntimeError, match="sampler_step_ has no gradient: use sampler_step, or torch.no_grad()"):
        ops.sampler_step_(sample, prediction, row_of(), 0)
    with torch.no_grad():
        ops.sampler_step_(sample, prediction, row_of(guided=1), 0)
    assert torch.equal(sample, prediction)


# ---- torch's own contracts -------------------------------------------------------------------------------------------


def test_opcheck() -> None:
    sample, prediction, uncond, *history = make(5, (2, 3, 4, 5), torch.float32)
    seeds, limits, step = torch.tensor([1, 2]), torch.tensor([1.0, 1.5]), torch.tensor(0)
    full = (row_of(**FULL), step, 0, uncond, history, seeds, limits)
    plain = (row_of(**FULL), None, 0, None, [], None, None)
    for of_sample in (sample, channels_last(sample), sample[:, :2, ::2]):
        of_prediction = prediction[:, : of_sample.shape[1], : of_sample.shape[2]]
        torch.library.opcheck(torch.ops.fastdiff.sampler_step, (of_sample, of_prediction, *plain))
        torch.library.opcheck(torch.ops.fastdiff.sampler_step_, (of_sample.clone(), of_prediction, *plain, None))
    torch.library.opcheck(torch.ops.fastdiff.sampler_step_, (sample, prediction, *full, torch.empty_like(sample)))
    leaves = [tensor.clone().requires_grad_() for tensor in (sample, prediction)]
    torch.library.opcheck(torch.ops.fastdiff.sampler_step, (*leaves, *full))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compile_has_no_graph_break(layout) -> None:
    @torch.compile(fullgraph=True)
    def step(sample, prediction, uncond, *history):
        result, model = full_step(sample * 1, torch.tanh(prediction), uncond, *history)
        return result + 1, model

    operands = [LAYOUTS[layout](tensor).requires_grad_() for tensor in make(4, (2, 4, 6, 6), torch.float32)]
    sample, prediction, *rest = operands
    want = full_step(sample, torch.tanh(prediction), *rest)
    want = want[0] + 1, want[1]
    got = step(*operands)
    torch.testing.assert_close(got, want)
    assert got[0].stride() == want[0].stride()
    for a, b in zip(*(torch.autograd.grad([y.sum() for y in ys], operands) for ys in (got, want)), strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def test_compile_of_a_loop_in_place() -> None:
    """With a step that the loop counts on the device, and a ring of history."""
    rows = torch.cat([row_of(**FULL), row_of(**FULL, rescale=0.5), row_of(sample=1, guided=0.3)])

    def loop(sample, step, ring):
        for _ in range(3):
            options = {"seeds": torch.tensor([3, 4]), "uncond_prediction": torch.sin(sample), "history": ring}
            ops.sampler_step_(sample, torch.tanh(sample), rows, step, model_out=ring[1], **options)
            step += 1
        return sample + 1

    tensors = make(3, (2, 4, 6), torch.float32)
    results = []
    for run_loop in (loop, torch.compile(loop, fullgraph=True)):
        sample, *ring = (tensor.clone() for tensor in tensors)
        step = torch.tensor(0)
        results.append((run_loop(sample, step, ring), sample, *ring, step))
    for mine, want in zip(*results, strict=True):
        torch.testing.assert_close(mine, want)
    assert results[0][-1] == 3


def test_inference_mode_and_no_grad() -> None:
    operands = [t.requires_grad_() for t in make(4, (2, 3), torch.float32)]
    want = full_step(*operands)
    assert want[0].requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            result = full_step(*operands)
        assert not result[0].requires_grad
        assert torch.equal(result[0], want[0])


# ---- the public function ---------------------------------------------------------------------------------------------


def test_reference_switch_and_float64() -> None:
    sample, prediction = make(2, (3, 4), torch.float64)
    with fastdiff.use_reference():
        result, model = ops.sampler_step(sample, prediction, row_of(sample=0.5, guided=0.25, model_sample=1))
        assert result.dtype == torch.float64
        torch.testing.assert_close(result, 0.5 * sample + 0.25 * prediction, rtol=1e-15, atol=1e-15)
        assert torch.equal(model, sample)
        ops.sampler_step_(sample, prediction, row_of(sample=0.5, guided=0.25), 0)
    assert torch.equal(sample, result)


def test_missing_extension_is_told(monkeypatch) -> None:
    monkeypatch.setattr(fastdiff._extension, "_C", None)
    sample, prediction = make(2, (3, 4), torch.float32)
    with pytest.raises(ImportError, match="compiled extension could not be loaded"):
        ops.sampler_step(sample, prediction, row_of())
    with fastdiff.use_reference():
        ops.sampler_step(sample, prediction, row_of())


OTHER = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, "sample must be a tensor, got list", {"sample": [1.0]}),
        (TypeError, "prediction must be a tensor, got list", {"prediction": [1.0]}),
        (TypeError, "sample must be float32, bfloat16 or float16, got torch.float64", {"sample": OTHER.double()}),
        (TypeError, "prediction must be float32.*got torch.int64", {"prediction": OTHER.long()}),
        (TypeError, "uncond_prediction must be torch.float32 like.*float16", {"uncond_prediction": OTHER.half()}),
        (TypeError, r"history\[1\] must be torch.float32 like.*float16", {"history": [OTHER, OTHER.half()]}),
        (ValueError, "sample must have a batch dimension", {"sample": torch.tensor(1.0)}),
        (ValueError, r"uncond_prediction must have sample's shape \(3, 4\)", {"uncond_prediction": OTHER[:1]}),
        (ValueError, "prediction must be on sample's device cpu, got meta", {"prediction": OTHER.to("meta")}),
        (ValueError, "history must have at most 4 tensors, got 5", {"history": [OTHER] * 5}),
        (TypeError, "coefficients must be a tensor, got list", {"coefficients": [1.0]}),
        (TypeError, "coefficients must be float32, got torch.float64", {"coefficients": row_of().double()}),
        (ValueError, r"coefficients must be \(steps, 13\), got \(13,\)", {"coefficients": row_of()[0]}),
        (ValueError, "coefficients must be on sample's device cpu, got meta", {"coefficients": row_of().to("meta")}),
        (TypeError, "step must be an int or a tensor, got float", {"step": 0.0}),
        (ValueError, "step must be from 0 to 0, got 1", {"step": 1}),
        (ValueError, "step must be from 0 to 0, got -1", {"step": -1}),
        (ValueError, r"step must be a \(\) int64 tensor on cpu, got \(1,\)", {"step": torch.tensor([0])}),
        (TypeError, "seeds must be a tensor, got list", {"seeds": [1, 2, 3]}),
        (TypeError, "seeds must be int64, got torch.int32", {"seeds": torch.ones(3, dtype=torch.int32)}),
        (ValueError, r"seeds must have shape \(3,\), got \(2,\)", {"seeds": torch.tensor([1, 2])}),
        (ValueError, "threshold's ratio must be from 0 to 1, got 2", {"threshold": (2, 1)}),
        (ValueError, "threshold's max_value must be at least 1, got 0.5", {"threshold": (0.9, 0.5)}),
    ],
)
def test_wrong_arguments(error, message, change) -> None:
    arguments = {"sample": OTHER, "prediction": OTHER, "coefficients": row_of(), "step": 0, **change}
    for function in (ops.sampler_step, ops.sampler_step_):
        with pytest.raises(error, match=message):
            function(**arguments)


def test_wrong_model_out() -> None:
    with pytest.raises(ValueError, match="model_out must have sample's shape"):
        ops.sampler_step_(OTHER, OTHER, row_of(), 0, model_out=OTHER[:2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": torch.ones(2, 3, dtype=torch.float64)}, "sample must be float32, bfloat16 or float16"),
        ({"prediction": torch.ones(3, 2)}, "prediction must have the shape of the others"),
        ({"uncond_prediction": torch.ones(2, 3).half()}, "uncond_prediction must have the dtype of its kind"),
        ({"coefficients": torch.ones(1, 12)}, r"coefficients must be \(steps, 13\) float32"),
        ({"step": torch.ones(1).long()}, r"step must be \(\) int64"),
        ({"seeds": torch.ones(3).long()}, r"seeds must be \(batch\) int64"),
        ({"limits": torch.ones(1)}, r"limits must be \(batch\) float32"),
        ({"history": [torch.ones(2, 3)] * 5}, "history must have at most 4 tensors"),
        ({"history": [torch.ones(2)]}, "history must have the shape of the others"),
    ],
)
def test_wrong_arguments_to_the_raw_op_raise(change, message) -> None:
    arguments = {
        "sample": torch.ones(2, 3),
        "prediction": torch.ones(2, 3),
        "coefficients": row_of(),
        "step": None,
        "step_value": 0,
        "uncond_prediction": None,
        "history": [torch.ones(2, 3)],
        "seeds": None,
        "limits": None,
    }
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastdiff.sampler_step(**{**arguments, **change})


@pytest.mark.parametrize("isa", fastdiff.build_info().get("cpu_isas_built", []))
def test_every_instruction_set(isa) -> None:
    instruction_sets.run_tests(isa, __file__, "combination or large or layouts or nan or rescaled or batch or noise")
