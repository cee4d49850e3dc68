from __future__ import annotations

import pytest
import torch

import fastdiff
from fastdiff import ops, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def operands(dtype=torch.float32, shape=(3, 4, 5, 6), count=4):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


def formula(sample, prediction, uncond, scale, coefficients, history):
    """The docstring's formula in float64."""
    sample, prediction, uncond, *history = (t.double() for t in (sample, prediction, uncond, *history))
    guided = uncond + scale * (prediction - uncond)
    return (
        coefficients[0] * sample
        + coefficients[1] * guided
        + sum(c * h for c, h in zip(coefficients[2:], history, strict=True))
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (1, 1), (7,), (0, 3, 2, 2), (2, 3, 2, 5, 3)])
def test_formula(dtype, shape):
    sample, prediction, uncond, *history = operands(dtype, shape, 6)
    coefficients = [0.9, -1.3, 0.4, -0.2, 0.1]
    result = ops.sampler_step(
        sample, prediction, coefficients, uncond_prediction=uncond, guidance_scale=3.5, history=history
    )
    assert result.dtype == dtype and result.shape == sample.shape
    expected = formula(sample, prediction, uncond, 3.5, coefficients, history)
    # One rounding to the dtype at the end; float32 arithmetic on numbers of at most some tens before.
    torch.testing.assert_close(result.double(), expected, rtol=torch.finfo(dtype).eps, atol=2e-5)


def test_without_guidance_and_history():
    sample, prediction, *_ = operands()
    torch.testing.assert_close(ops.sampler_step(sample, prediction, [0.5, 2.0]), 0.5 * sample + 2.0 * prediction)


def test_operands_may_have_other_dtypes():
    sample, prediction, uncond, entry = operands()
    result = ops.sampler_step(
        sample, prediction.bfloat16(), [1.0, 1.0, 1.0], uncond_prediction=uncond.half(), history=[entry.bfloat16()]
    )
    expected = formula(sample, prediction.bfloat16(), uncond.half(), 1.0, [1.0, 1.0, 1.0], [entry.bfloat16()])
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=1e-6)


def test_low_precision_rounds_once():
    # In bfloat16 steps 256 + 1 would stay 256 before the 256 is taken away.
    sample, prediction, entry = (torch.full((1, 2), value, dtype=torch.bfloat16) for value in (256.0, 1.0, -256.0))
    assert ops.sampler_step(sample, prediction, [1.0, 1.0, 1.0], history=[entry]).tolist() == [[1.0, 1.0]]


def test_reference_switch_and_float64():
    sample, prediction, *_ = (t.double() for t in operands())
    with fastdiff.use_reference():
        result = ops.sampler_step(sample, prediction, [0.1, 0.3])
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, 0.1 * sample + 0.3 * prediction, rtol=1e-15, atol=1e-15)
    assert torch.equal(result, reference.sampler_step(sample, prediction, [0.1, 0.3]))


def test_inputs_are_not_changed():
    tensors = operands()
    copies = [t.clone() for t in tensors]
    ops.sampler_step(*tensors[:2], [1.0, 2.0, 3.0], uncond_prediction=tensors[2], history=tensors[3:])
    assert all(torch.equal(t, copy) for t, copy in zip(tensors, copies, strict=True))


def test_wrong_arguments():
    sample, prediction, other, _ = operands()
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
    for coefficients in ([1.0], [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match="coefficients must have 2 \\+ 0 entries"):
            ops.sampler_step(sample, prediction, coefficients)
