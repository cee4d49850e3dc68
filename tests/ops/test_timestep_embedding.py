"""timestep_embedding against its definition, on every backend: the error may be twice that of eager PyTorch."""

from __future__ import annotations

import math
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
DDPM = {"flip_sin_to_cos": False, "downscale_freq_shift": 1.0}
LATENT_DIFFUSION = {"flip_sin_to_cos": True, "downscale_freq_shift": 0.0}
CONVENTIONS = pytest.mark.parametrize("convention", (DDPM, LATENT_DIFFUSION), ids=("ddpm", "latent_diffusion"))


def run(
    device: Backend,
    timestep: Tensor,
    channels: int,
    flip_sin_to_cos: bool = False,
    downscale_freq_shift: float = 1.0,
    scale: float = 1.0,
    max_period: float = 10000.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    settings = (flip_sin_to_cos, downscale_freq_shift, scale, max_period, dtype)
    with device.run():
        return device.ops.timestep_embedding(timestep.double(), channels, *settings)


def assert_right(device: Backend, timestep: Tensor, channels: int, dtype: torch.dtype, **options) -> Tensor:
    result = run(device, timestep, channels, **options, dtype=dtype)
    exact = reference.timestep_embedding(timestep.double(), channels, **options, dtype=torch.float64)
    eager = reference.timestep_embedding(timestep, channels, **options, dtype=dtype)
    errors = [(embedding.double() - exact).abs().max().item() for embedding in (result, eager)]
    assert result.dtype == dtype and result.shape == (timestep.shape[0], channels) and result.is_contiguous()
    assert errors[0] <= 2 * errors[1] + 1e-6, errors
    return result


@CONVENTIONS
@pytest.mark.parametrize("channels", (1, 4, 5, 7, 32, 47, 256, 320, 1281))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error(device: Backend, dtype, channels, convention) -> None:
    timestep = torch.cat([torch.tensor([0.0, 1.0, 999.0, 0.5, -3.25]), torch.rand(28) * 1000]).to(device.device)
    for count in (1, 33):
        assert_right(device, timestep[-count:], channels, dtype, **convention)


@CONVENTIONS
def test_scale_and_period(device: Backend, convention) -> None:
    timestep = torch.rand(5, device=device.device)
    for options in ({"scale": 1000.0}, {"max_period": 100.0}, {"scale": -0.3, "max_period": 0.5}):
        assert_right(device, timestep, 64, torch.float32, **convention, **options)


@CONVENTIONS
def test_right_to_the_last_digits_of_float32(device: Backend, convention) -> None:
    """Where float32 angles would be off by far more."""
    timestep = torch.tensor([999.0, 12345.678, 1e6, 1e9], dtype=torch.float64, device=device.device)
    result = run(device, timestep, 320, **convention)
    exact = reference.timestep_embedding(timestep, 320, **convention, dtype=torch.float64)
    assert (result.double() - exact).abs().max() < 4e-7


def test_formula() -> None:
    """Written out in Python's own numbers: the definition itself must be right."""
    for flip, shift in ((False, 1.0), (True, 0.0), (True, 0.5)):
        timestep = torch.tensor([0.0, 3.5, 999.0], dtype=torch.float64)
        result = reference.timestep_embedding(
            timestep, 9, flip_sin_to_cos=flip, downscale_freq_shift=shift, scale=2.0, dtype=torch.float64
        )
        for row, t in zip(result.tolist(), timestep.tolist(), strict=True):
            angles = [2.0 * t * 10000.0 ** (-k / (4 - shift)) for k in range(4)]
            sines, cosines = [math.sin(a) for a in angles], [math.cos(a) for a in angles]
            want = [*cosines, *sines, 0.0] if flip else [*sines, *cosines, 0.0]
            assert row == pytest.approx(want, abs=1e-10)


@pytest.mark.parametrize("channels", (64, 33))
@CONVENTIONS
def test_same_as_diffusers(channels, convention) -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    timestep = torch.tensor([0, 1, 500, 999])
    theirs = embeddings.get_timestep_embedding(timestep, channels, **convention, scale=0.7)
    torch.testing.assert_close(
        ops.timestep_embedding(timestep, channels, **convention, scale=0.7), theirs, rtol=0, atol=2e-4
    )


def test_dtypes_of_the_timestep() -> None:
    for dtype in (torch.int64, torch.int32, torch.uint8, torch.float64, torch.float32, torch.bfloat16, torch.float16):
        timestep = torch.tensor([3, 120, 7], dtype=dtype)
        expected = ops.timestep_embedding(torch.tensor([3.0, 120.0, 7.0]), 16)
        assert torch.equal(ops.timestep_embedding(timestep, 16), expected)


def test_strided_and_empty(device: Backend) -> None:
    timestep = torch.rand(20, dtype=torch.float64, device=device.device)
    assert torch.equal(run(device, timestep[::3], 16), run(device, timestep[::3].contiguous(), 16))
    assert torch.equal(run(device, timestep[:1].expand(4), 16), run(device, timestep[:1].repeat(4), 16))
    nothing = device.ops.timestep_embedding(timestep[:0], 16, False, 1.0, 1.0, 1e4, torch.float32)
    assert nothing.shape == (0, 16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity(device: Backend, dtype) -> None:
    nan_of_all_bits = struct.unpack("<d", b"\xff" * 7 + b"\x7f")[0]
    timestep = torch.rand(5, dtype=torch.float64, device=device.device)
    clean = run(device, timestep, 21, dtype=dtype)
    for bad in (float("nan"), nan_of_all_bits, float("inf"), float("-inf")):
        spoilt = timestep.clone()
        spoilt[3] = bad
        result = run(device, spoilt, 21, dtype=dtype)
        assert result[3, :20].isnan().all() and result[3, 20] == 0
        result[3] = clean[3]
        assert torch.equal(result, clean)


@CONVENTIONS
def test_sample_does_not_depend_on_its_batch(device: Backend, convention) -> None:
    for channels in (320, 33):
        timestep = torch.rand(5, device=device.device) * 1000
        whole = run(device, timestep, channels, **convention)
        for i in range(5):
            assert torch.equal(run(device, timestep[i : i + 1], channels, **convention), whole[i : i + 1])


def test_same_bits_for_any_thread_count() -> None:
    code = """
import sys, torch, fastdiff, hashlib
torch.set_num_threads(int(sys.argv[1]))
result = fastdiff.ops.timestep_embedding(torch.arange(203), 321)
print(hashlib.sha256(result.numpy().tobytes()).hexdigest())
"""
    digests = {
        subprocess.run([sys.executable, "-c", code, threads], check=True, capture_output=True, text=True).stdout
        for threads in ("1", "2", "3")
    }
    assert len(digests) == 1


# ---- the public function ---------------------------------------------------------------------------------------------


def test_kernel_runs_outside_the_reference_switch(monkeypatch) -> None:
    monkeypatch.setattr(reference, "timestep_embedding", None)
    assert ops.timestep_embedding(torch.zeros(2), 4).tolist() == [[0.0, 0.0, 1.0, 1.0]] * 2


def test_reference_switch_and_float64() -> None:
    timestep = torch.rand(3, dtype=torch.float64)
    with fastdiff.use_reference():
        result = ops.timestep_embedding(timestep, 8, dtype=torch.float64)
    assert torch.equal(result, reference.timestep_embedding(timestep, 8, dtype=torch.float64))


@pytest.mark.parametrize("channels", (16, 17))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@CONVENTIONS
def test_gradient(convention, dtype, channels) -> None:
    timestep = (torch.rand(6) * 50).requires_grad_()
    seed = torch.randn(6, channels).to(dtype)

    def gradient(function, leaf, output_dtype) -> Tensor:
        output = function(leaf, channels, **convention, scale=1.5, max_period=100.0, dtype=output_dtype)
        return torch.autograd.grad(output, leaf, seed.to(output_dtype))[0]

    result = gradient(ops.timestep_embedding, timestep, dtype)
    eager = gradient(reference.timestep_embedding, timestep, dtype)
    exact = gradient(reference.timestep_embedding, timestep.detach().double().requires_grad_(), torch.float64)
    assert result.dtype == torch.float32
    errors = [(g.double() - exact).abs().max().item() for g in (result, eager)]
    assert errors[0] <= 2 * errors[1] + 1e-6


def test_second_derivative() -> None:
    timestep = torch.rand(3, requires_grad=True)

    def second(function) -> Tensor:
        (first,) = torch.autograd.grad(function(timestep, 8).square()[:, :3].sum(), timestep, create_graph=True)
        return torch.autograd.grad(first.sum(), timestep)[0]

    torch.testing.assert_close(second(ops.timestep_embedding), second(reference.timestep_embedding))


@CONVENTIONS
def test_gradcheck_of_the_definition(convention) -> None:
    timestep = torch.rand(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda t: reference.timestep_embedding(t, 8, **convention, dtype=torch.float64), timestep
    )


# ---- torch's own contracts -------------------------------------------------------------------------------------------


def test_opcheck() -> None:
    for dtype in DTYPES:
        for timestep in (torch.rand(3, dtype=torch.float64, requires_grad=True), torch.rand(6).double()[::2]):
            settings = (10, True, 0.0, 1.0, 1e4, dtype)
            torch.library.opcheck(torch.ops.fastdiff.timestep_embedding, (timestep, *settings))


def test_compile_has_no_graph_break() -> None:
    @torch.compile(fullgraph=True)
    def embed(timestep):
        return ops.timestep_embedding(timestep * 2, 16, **LATENT_DIFFUSION, dtype=torch.bfloat16) + 1

    for count in (2, 5):
        timestep = torch.rand(count, requires_grad=True)
        want = ops.timestep_embedding(timestep * 2, 16, **LATENT_DIFFUSION, dtype=torch.bfloat16) + 1
        got = embed(timestep)
        assert torch.equal(got, want)
        gradients = (torch.autograd.grad(y.square().sum(), timestep)[0] for y in (got, want))
        torch.testing.assert_close(*gradients)


def test_inference_mode_and_no_grad() -> None:
    timestep = torch.rand(3, requires_grad=True)
    want = ops.timestep_embedding(timestep, 16)
    assert want.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            result = ops.timestep_embedding(timestep, 16)
        assert not result.requires_grad and torch.equal(result, want)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, "timestep must be a tensor, got float", {"timestep": 3.0}),
        (TypeError, "timestep must hold real numbers, got torch.complex64", {"timestep": torch.ones(2) * 1j}),
        (ValueError, r"timestep must be \(batch,\), got shape \(2, 1\)", {"timestep": torch.ones(2, 1)}),
        (ValueError, r"timestep must be \(batch,\), got shape \(\)", {"timestep": torch.tensor(1.0)}),
        (TypeError, "dtype must be float32, bfloat16 or float16, got torch.float64", {"dtype": torch.float64}),
        (ValueError, "channels must be positive, got 0", {"channels": 0}),
        (ValueError, r"downscale_freq_shift must not be channels // 2, got 4", {"downscale_freq_shift": 4}),
        (ValueError, "max_period must be positive, got -1", {"max_period": -1}),
    ],
    ids=str,
)
def test_wrong_arguments(error, message, change) -> None:
    with pytest.raises(error, match=message):
        ops.timestep_embedding(**{"timestep": torch.ones(2), "channels": 8, **change})


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("timestep must be float64 with 1 dimension", {0: torch.ones(2)}),
        ("timestep must be float64 with 1 dimension", {0: torch.ones(2, 2).double()}),
        ("channels must be positive", {1: 0}),
        ("downscale_freq_shift must not be channels // 2", {3: 4.0}),
        ("dtype must be float32, bfloat16 or float16", {6: torch.int32}),
    ],
    ids=str,
)
def test_wrong_arguments_to_the_raw_op_raise(message, change) -> None:
    arguments = [torch.ones(2).double(), 8, False, 1.0, 1.0, 1e4, torch.float32]
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastdiff.timestep_embedding(*arguments)
