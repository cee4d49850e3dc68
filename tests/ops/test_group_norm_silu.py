"""group_norm_silu against its definition, on every backend: the error may be twice that of eager PyTorch."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import instruction_sets
import pytest
import torch
from accuracy import assert_as_exact, assert_draws_as_exact, max_error
from backends import Backend
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import fastdiff
from fastdiff import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("channels_first", "channels_last")
OPERANDS = ("weight", "bias", "time_bias", "scale", "shift")

# (N, C, *spatial), groups. Group widths 1, 2, 3, 4, 5, 10, 40; spatial sizes 1, 7, 45, 64, 105, 1023, 4096.
SHAPES = [
    ((2, 32, 1, 1), 32),
    ((3, 30, 7), 10),
    ((2, 64, 8, 8), 16),
    ((1, 20, 5, 9), 4),
    ((2, 24, 3, 5, 7), 24),
    ((1, 80, 33, 31), 8),
    ((2, 12, 64, 64), 4),
    ((1, 40, 16, 16), 1),
    ((2, 31, 10, 10), 31),
    ((2, 33, 9, 1), 1),
]


def make_input(shape, dtype, layout, device, mean=0.3, std=1.0) -> Tensor:
    x = torch.randn(shape, dtype=torch.float64) * std + mean
    if layout == "channels_last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x.to(device=device, dtype=dtype)


def make_operands(shape, dtype, device, names=OPERANDS) -> dict[str, Tensor]:
    batch, channels = shape[:2]
    sizes = {"weight": (channels,), "bias": (channels,)}
    return {name: torch.randn(sizes.get(name, (batch, channels))).to(device=device, dtype=dtype) for name in names}


def run(backend: Backend, x, groups, operands, eps=1e-5, silu=True) -> tuple[Tensor, Tensor, Tensor]:
    with backend.run():
        return backend.ops.group_norm_silu(x, groups, *(operands.get(name) for name in OPERANDS), eps, silu)


def define(x, groups, operands, dtype, eps=1e-5, silu=True) -> Tensor:
    operands = {name: operand.to(dtype) for name, operand in operands.items()}
    weight, bias = operands.pop("weight", None), operands.pop("bias", None)
    return reference.group_norm_silu(
        x.to(dtype), groups, weight, bias, eps=eps, activation="silu" if silu else "identity", **operands
    )


def affordable(backend: Backend, shape) -> None:
    if torch.Size(shape).numel() > backend.elements:
        pytest.skip("too large for the emulator")


@pytest.mark.parametrize("shape, groups", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward(device: Backend, dtype, layout, shape, groups) -> None:
    affordable(device, shape)

    def draw(silu, names):
        x = make_input(shape, dtype, layout, device.device)
        operands = make_operands(shape, dtype, device.device, names)
        y, mean, rstd = run(device, x, groups, operands, silu=silu)
        assert y.dtype == dtype
        assert y.stride() == torch.empty_like(x).stride()
        u = x.double() + operands.get("time_bias", x.new_zeros(shape[:2])).double().reshape(
            *shape[:2], *(1,) * (len(shape) - 2)
        )
        grouped = u.reshape(shape[0], groups, -1)
        torch.testing.assert_close(mean.double(), grouped.mean(-1), rtol=1e-6, atol=1e-5)  # of a deviation near 1
        torch.testing.assert_close(rstd.double(), (grouped.var(-1, correction=0) + 1e-5).rsqrt(), rtol=1e-5, atol=0)
        return {"y": (y, *(define(x, groups, operands, d, silu=silu) for d in (dtype, torch.float64)))}

    for silu, names in itertools.product((True, False), ((), ("time_bias", "weight", "bias"), OPERANDS)):
        assert_draws_as_exact(lambda silu=silu, names=names: draw(silu, names), torch.Size(shape).numel())


def gradients(forward, x, operands, dtype, dy) -> list[Tensor]:
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in (x, *operands.values())]
    y = forward(leaves[0], dict(zip(operands, leaves[1:], strict=True)))
    return list(torch.autograd.grad(y, leaves, dy.to(dtype)))


@pytest.mark.parametrize("shape, groups", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward(device: Backend, dtype, layout, shape, groups) -> None:
    affordable(device, shape)
    for silu, names in itertools.product((True, False), ((), OPERANDS)):
        case = (device, dtype, layout, shape, groups, silu, names)
        assert_draws_as_exact(lambda case=case: gradients_of_all(*case), torch.Size(shape).numel())


def gradients_of_all(device, dtype, layout, shape, groups, silu, names) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """The kernel's, eager's and the exact gradient, by operand."""
    x = make_input(shape, dtype, layout, device.device)
    dy = make_input(shape, dtype, layout, device.device, mean=0.0)
    operands = make_operands(shape, dtype, device.device, names)

    # A group of one element has no variance. With the usual eps its rstd would be 316, and would show how autograd's
    # saved float32 mean was rounded.
    eps = 1e-5 if x.numel() > shape[0] * groups else 0.1

    def definition(x, operands):
        return define(x, groups, operands, x.dtype, eps, silu)

    exact = gradients(definition, x, operands, torch.float64, dy)
    eager = gradients(definition, x, operands, dtype, dy)
    _, mean, rstd = run(device, x, groups, operands, eps, silu)
    values = [operands.get(name) for name in OPERANDS]
    with device.run():
        dx, *rest = device.ops.group_norm_silu_backward(
            dy, x, mean, rstd, *values, silu, [value is not None for value in values]
        )
    assert dx.stride() == torch.empty_like(x).stride()
    ours = [dx, *(grad for grad, value in zip(rest, values, strict=True) if value is not None)]
    # The gradients of the operands are float32 sums, which autograd rounds to the operand's dtype.
    return {f"d{name}": (a.to(dtype), b, c) for name, a, b, c in zip(("x", *names), ours, eager, exact, strict=True)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mean_far_from_zero(device: Backend, layout) -> None:
    """At mean/std = 1000, E[x^2] - E[x]^2 in float32 has no correct digit; eager channels-last PyTorch shows it."""
    shape, groups = (1, 32, 64, 64), 8
    x = make_input(shape, torch.float32, layout, device.device, mean=1000.0)
    operands = make_operands(shape, torch.float32, device.device)
    operands["time_bias"] *= 100
    exact = define(x, groups, operands, torch.float64)
    dense = define(x.contiguous(), groups, operands, torch.float32)
    y, _, _ = run(device, x, groups, operands)
    assert_as_exact(y, dense, exact)
    if layout == "channels_last" and device.name == "cpu":
        eager = define(x, groups, operands, torch.float32)
        assert max_error(eager, exact) > 10 * max_error(y, exact), "eager was mended: say so in the documentation"


def test_statistics_of_16_bits_are_those_of_float64(device: Backend) -> None:
    """Far below what 16 bits show, on both sides of the mean up to which sums about zero are taken."""
    for dtype, layout, (mean, bias) in itertools.product(DTYPES[1:], LAYOUTS, ((0, 0), (9, 0), (9, -9), (999, -998.7))):
        x = make_input((2, 16, 30, 41), dtype, layout, device.device, mean)
        time_bias = torch.randn(2, 16, device=device.device) + bias
        _, ours, rstd = run(device, x, 4, {"time_bias": time_bias})
        groups = (x.double() + time_bias.double()[:, :, None, None]).reshape(2, 4, -1)
        deviation = (groups.var(-1, correction=0) + 1e-5).sqrt()
        assert ((ours - groups.mean(-1)) / deviation).abs().max() < 5e-5
        assert (rstd * deviation - 1).abs().max() < 5e-5


def test_time_bias_that_cancels_every_other_channel(device: Backend) -> None:
    """Beside the squares of one channel, those of the next vanish in a float32 sum."""
    for dtype, layout in itertools.product(DTYPES, LAYOUTS):
        x = make_input((2, 16, 30, 41), dtype, layout, device.device, mean=0, std=0.1)
        x[:, ::2] = 1000.0
        time_bias = torch.tensor([-1000.0, 0.0], device=device.device).repeat(2, 8)
        _, _, rstd = run(device, x, 4, {"time_bias": time_bias})
        exact = (x.double() + time_bias.double()[:, :, None, None]).reshape(2, 4, -1).var(-1, correction=0)
        assert (rstd * (exact + 1e-5).sqrt() - 1).abs().max() < 5e-5


def test_squares_that_overflow() -> None:
    """The deviations are far from it."""
    for layout in LAYOUTS:
        x = make_input((1, 32, 16, 16), torch.bfloat16, layout, "cpu", mean=1e20, std=8e17)
        y = fastdiff.ops.group_norm_silu(x, 8, activation="identity")
        torch.testing.assert_close(y.double(), define(x, 8, {}, torch.float64, silu=False), rtol=1e-2, atol=1e-2)


def test_outlier_does_not_spoil_the_statistics(device: Backend) -> None:
    """Shifting the sums by their first element would cost four digits here."""
    x = torch.randn(1, 8, 64, 64, device=device.device)
    x[:, :, 0, 0] = 3e4
    exact = define(x, 2, {}, torch.float64)
    for layout in LAYOUTS:
        sample = x if layout == "channels_first" else x.contiguous(memory_format=torch.channels_last)
        y, _, _ = run(device, sample, 2, {})
        assert max_error(y, exact) < 1e-6 * exact.max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slices_are_read_in_place(device: Backend, dtype) -> None:
    wide = torch.randn(3, 48, 12, 10).to(device=device.device, dtype=dtype)
    nhwc = wide.contiguous(memory_format=torch.channels_last)
    cases = [wide[:, 7:39], nhwc[:, 8:40], nhwc[:, 3:35], wide[::2, 16:], wide[:, :32, 2:9], wide.transpose(2, 3)]
    cases += [wide[:, 5:37, ::2, 1:], wide[:1, :32].expand(3, -1, -1, -1), nhwc[:, :32, :, ::3]]
    groups = 8
    for x in cases:
        operands = make_operands(x.shape, dtype, device.device)
        y, mean, rstd = run(device, x, groups, operands)
        exact = define(x, groups, operands, torch.float64)
        assert_as_exact(y, define(x, groups, operands, dtype), exact)
        dense, _, _ = run(device, x.contiguous(), groups, operands)
        assert_as_exact(y, dense, exact)
        dy = torch.randn_like(x)[..., :].transpose(-1, -2).contiguous().transpose(-1, -2)
        with device.run():
            dx = device.ops.group_norm_silu_backward(
                dy, x, mean, rstd, *(operands[name] for name in OPERANDS), True, [False] * 5
            )[0]
        (want,) = gradients(lambda x, _, o=operands: define(x, groups, o, x.dtype), x, {}, torch.float64, dy)
        (eager,) = gradients(lambda x, _, o=operands: define(x, groups, o, x.dtype), x, {}, dtype, dy)
        assert_as_exact(dx, eager, want, "dx")


def test_operands_of_other_dtypes_and_strides(device: Backend) -> None:
    shape = (2, 24, 6, 6)
    x = make_input(shape, torch.bfloat16, "channels_first", device.device)
    both = torch.randn(2, 48, device=device.device)
    scale, shift = both.chunk(2, dim=1)
    operands = {
        "weight": torch.randn(24, device=device.device),
        "bias": torch.randn(48, device=device.device).half()[::2],
        "time_bias": torch.randn(24, 2, device=device.device).t(),
        "scale": scale,
        "shift": shift.bfloat16(),
    }
    y, _, _ = run(device, x, 4, operands)
    eager = define(x, 4, operands, torch.bfloat16)
    assert_as_exact(y, eager, define(x, 4, operands, torch.float64))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sample_does_not_depend_on_its_batch(device: Backend, layout, dtype) -> None:
    x, dy = (make_input((8, 32, 20, 12), dtype, layout, device.device) for _ in range(2))
    operands = make_operands(x.shape, dtype, device.device)

    def results(samples: slice) -> list[Tensor]:
        """y, mean and rstd; dx and the gradients of the operands that each sample has of its own."""
        own = {name: operand if operand.dim() == 1 else operand[samples] for name, operand in operands.items()}
        y, *statistics = run(device, x[samples], 8, own)
        values = [own[name] for name in OPERANDS]
        with device.run():
            dx, _, _, *rest = device.ops.group_norm_silu_backward(
                dy[samples], x[samples], *statistics, *values, True, [True] * 5
            )
        return [y, *statistics, dx, *rest]

    whole = results(slice(None))
    for i in (0, 5):
        alone = results(slice(i, i + 1))
        assert all(torch.equal(of_all[i : i + 1], one) for of_all, one in zip(whole, alone, strict=True))


def test_nan_and_infinity_stay_in_their_group(device: Backend) -> None:
    for dtype, layout, bad in itertools.product(DTYPES, LAYOUTS, (float("nan"), float("inf"))):
        x = make_input((2, 16, 9, 7), dtype, layout, device.device)
        clean, _, _ = run(device, x, 4, {})
        x[1, 5, 3, 3] = bad
        y, _, _ = run(device, x, 4, {})
        assert y[1, 4:8].isnan().all()
        assert torch.equal(y[0], clean[0])
        assert torch.equal(y[1, :4], clean[1, :4])
        assert torch.equal(y[1, 8:], clean[1, 8:])


@pytest.mark.parametrize("name", OPERANDS)
def test_nan_operand_gives_nan(device: Backend, name) -> None:
    """Even a NaN whose every mantissa bit is set, which rounding to bfloat16 by addition would turn into a zero."""
    nan = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32).to(device.device)
    for layout in LAYOUTS:
        x = make_input((1, 8, 16, 4), torch.bfloat16, layout, device.device)
        operands = make_operands(x.shape, torch.float32, device.device)
        operands[name][..., 3] = nan
        y, _, _ = run(device, x, 8, operands)
        assert y[0, 3].isnan().all()
        assert not y[0, [0, 1, 2, 4, 5, 6, 7]].isnan().any()


def test_extreme_values(device: Backend) -> None:
    """silu far out on both sides: no overflow, no NaN."""
    x = torch.randn(1, 4, 16, 16, device=device.device)
    for dtype, far in itertools.product(DTYPES, (1e3, 3e4)):
        shift = torch.tensor([[far, -far, 60.0, -60.0]], device=device.device)
        y, _, _ = run(device, x.to(dtype), 4, {"shift": shift})
        exact = define(x.to(dtype), 4, {"shift": shift}, torch.float64)
        torch.testing.assert_close(y.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_outliers_reach_both_ends_of_silu(device: Backend) -> None:
    """One element or a large gain takes SiLU's argument beyond what exp can hold, wherever it is in the group."""
    for dtype, layout, (place, gain) in itertools.product(DTYPES, LAYOUTS, ((0, 1.0), (700, 5.0), (1599, 9.0))):
        x = make_input((2, 4, 40, 40), dtype, layout, device.device)
        x[0, 1, place // 40, place % 40] = 900.0
        x[1, 2, place // 40, place % 40] = -900.0
        operands = {"scale": torch.tensor([[1.0, gain, gain, 1.0]], device=device.device).expand(2, 4)}
        y, _, _ = run(device, x, 2, operands)
        exact = define(x, 2, operands, torch.float64)
        assert exact.max() > 100
        assert_as_exact(y, define(x, 2, operands, dtype), exact)


def test_constant_input(device: Backend) -> None:
    for dtype, layout in itertools.product(DTYPES, LAYOUTS):
        x = torch.full((1, 8, 13, 11), 777.0).to(device=device.device, dtype=dtype)
        if layout == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        y, _, _ = run(device, x, 2, {}, silu=False)
        assert y.abs().max() < 1e-3


def test_empty(device: Backend) -> None:
    if device.name == "cuda-emulated":
        pytest.skip("an empty tensor launches no kernel, and the emulator session expects one")
    for shape in ((0, 8, 4, 4), (2, 8, 0, 4), (2, 8, 0)):
        x = torch.randn(shape, device=device.device, requires_grad=True)
        weight = torch.randn(8, device=device.device, requires_grad=True)
        y = fastdiff.ops.group_norm_silu(x, 4, weight)
        assert y.shape == shape
        y.sum().backward()
        assert x.grad.shape == shape
        assert (weight.grad == 0).all()


# ---- the public function ---------------------------------------------------------------------------------------------


def test_public_function_matches_definition() -> None:
    x = torch.randn(2, 12, 5, 6)
    operands = make_operands(x.shape, torch.float32, "cpu")
    y = fastdiff.ops.group_norm_silu(x, 3, **operands, eps=1e-3, activation="identity")
    torch.testing.assert_close(y, define(x, 3, operands, torch.float32, eps=1e-3, silu=False))
    with fastdiff.use_reference():
        assert torch.equal(fastdiff.ops.group_norm_silu(x, 3, **operands), define(x, 3, operands, torch.float32))


def test_autograd_of_the_public_function() -> None:
    x = torch.randn(2, 12, 5, 6, requires_grad=True)
    operands = {name: v.requires_grad_() for name, v in make_operands(x.shape, torch.float32, "cpu").items()}
    leaves = [x, *operands.values()]
    dy = torch.randn_like(x)
    ours = torch.autograd.grad(fastdiff.ops.group_norm_silu(x, 3, **operands), leaves, dy)
    with fastdiff.use_reference():
        want = torch.autograd.grad(fastdiff.ops.group_norm_silu(x, 3, **operands), leaves, dy)
    for a, b in zip(ours, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    (only_scale,) = torch.autograd.grad(fastdiff.ops.group_norm_silu(x.detach(), 3, **operands), [leaves[4]], dy)
    assert torch.equal(only_scale, ours[4])


def test_gradcheck_of_the_definition() -> None:
    x = torch.randn(2, 6, 3, 2, dtype=torch.float64, requires_grad=True)
    operands = {n: v.requires_grad_() for n, v in make_operands(x.shape, torch.float64, "cpu").items()}

    def function(x, *values):
        return define(x, 3, dict(zip(OPERANDS, values, strict=True)), torch.float64)

    assert torch.autograd.gradcheck(function, (x, *operands.values()))


def test_same_bits_for_any_thread_count() -> None:
    """Results and gradients. A thread takes whole samples or groups of 8 samples, and parts of those of the others."""
    code = """
import sys, torch, fastdiff, hashlib
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
digest = hashlib.sha256()
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    shapes = (((3, 64, 40, 40), 1), ((2, 96, 64, 33), 3), ((1, 32, 128, 128), 32), ((8, 64, 64, 40), 2))
    for shape, groups in shapes:
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(shape).to(dtype).contiguous(memory_format=layout).requires_grad_()
            w, t = torch.randn(shape[1], requires_grad=True), torch.randn(shape[:2], requires_grad=True)
            y = fastdiff.ops.group_norm_silu(x, groups, w, time_bias=t)
            for result in (y, *torch.autograd.grad(y, [x, w, t], torch.randn(shape).to(dtype))):
                digest.update(result.detach().contiguous().view(torch.uint8).numpy().tobytes())
print(digest.hexdigest())
"""
    digests = {
        subprocess.run([sys.executable, "-c", code, threads], check=True, capture_output=True, text=True).stdout
        for threads in ("1", "2", "3", "5")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("isa", fastdiff.build_info().get("cpu_isas_built", []))
def test_every_instruction_set(isa) -> None:
    instruction_sets.run_tests(isa, __file__, "forward or backward or slices or nan")


def test_unknown_instruction_set_is_refused() -> None:
    environment = {**os.environ, "FASTDIFF_CPU_ISA": "abacus"}
    code = "import fastdiff, torch; fastdiff.ops.group_norm_silu(torch.ones(1, 4, 4), 2)"
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    assert "FASTDIFF_CPU_ISA is 'abacus'" in result.stderr


# ---- torch's own contracts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout) -> None:
    shape = (2, 12, 5, 6)
    x = make_input(shape, torch.float32, layout, "cpu").requires_grad_()
    operands = [v.requires_grad_() for v in make_operands(shape, torch.float32, "cpu").values()]
    torch.library.opcheck(torch.ops.fastdiff.group_norm_silu, (x, 3, *operands, 1e-5, True))
    torch.library.opcheck(torch.ops.fastdiff.group_norm_silu, (x[:, 2:8], 3, None, None, None, None, None, 1e-5, False))
    y, mean, rstd = torch.ops.fastdiff.group_norm_silu(x.detach(), 3, *(o.detach() for o in operands), 1e-5, True)
    arguments = (torch.randn_like(y), x.detach(), mean, rstd, *(o.detach() for o in operands), True)
    torch.library.opcheck(torch.ops.fastdiff.group_norm_silu_backward, (*arguments, [True, False, True, True, False]))


def test_compile_has_no_graph_break_and_no_recompile_storm() -> None:
    norm = fastdiff.nn.GroupNormSiLU(4, 16)
    compiles = CompileCounterWithBackend("inductor")

    @torch.compile(fullgraph=True, backend=compiles)
    def block(x, time):
        return norm(x * 2, time_bias=time) + 1

    for height, width in ((8, 12), (10, 14), (16, 12), (20, 10), (18, 18), (32, 24)):
        x, time = torch.randn(2, 16, height, width), torch.randn(2, 16)
        torch.testing.assert_close(block(x, time), norm(x * 2, time_bias=time) + 1)
    assert compiles.frame_count <= 2, "one compilation for the first size, one for all others"


def test_compile_with_gradients() -> None:
    norm = fastdiff.nn.GroupNormSiLU(4, 16)
    compiled = torch.compile(norm, fullgraph=True)
    x, y = (torch.randn(2, 16, 6, 6).requires_grad_() for _ in range(2))
    y.data.copy_(x.data)
    compiled(x).square().sum().backward()
    eager = torch.autograd.grad(norm(y).square().sum(), [y, norm.weight])
    torch.testing.assert_close(x.grad, eager[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.weight.grad, eager[1], rtol=1e-4, atol=1e-5)


def test_inference_mode_and_no_grad() -> None:
    norm = fastdiff.nn.GroupNormSiLU(4, 16)
    x = torch.randn(2, 16, 6, 6)
    want = norm(x)
    assert want.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = norm(x)
        assert not y.requires_grad
        assert torch.equal(y, want)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": [1, 2]}, TypeError, "x must be a tensor, got list"),
        ({"x": torch.ones(2, 8)}, ValueError, "3 to 5 dimensions, got shape (2, 8)"),
        (
            {"x": torch.ones(2, 8, 4, dtype=torch.int32)},
            TypeError,
            "x must be float32, bfloat16 or float16, got torch.int32",
        ),
        ({"x": torch.ones(2, 8, 4, dtype=torch.float64)}, TypeError, "got torch.float64"),
        ({"num_groups": 3}, ValueError, "num_groups must divide the 8 channels of x, got 3"),
        ({"num_groups": 0}, ValueError, "num_groups must divide the 8 channels of x, got 0"),
        ({"weight": torch.ones(7)}, ValueError, "weight must have shape (8,), got (7,)"),
        ({"time_bias": torch.ones(8)}, ValueError, "time_bias must have shape (2, 8), got (8,)"),
        ({"scale": torch.ones(2, 8, dtype=torch.int64)}, TypeError, "scale must be float32, bfloat16 or float16"),
        ({"shift": 1.0}, TypeError, "shift must be a tensor or None, got float"),
        ({"bias": torch.ones(8, device="meta")}, ValueError, "bias must be on x's device cpu, got meta"),
        ({"activation": "relu"}, ValueError, "activation must be one of ('silu', 'identity'), got 'relu'"),
    ],
    ids=str,
)
def test_errors_name_the_argument(change, error, message) -> None:
    arguments = {"x": torch.ones(2, 8, 4), "num_groups": 4, **change}
    with pytest.raises(error) as caught:
        fastdiff.ops.group_norm_silu(**arguments)
    assert message in str(caught.value)


def test_wrong_arguments_to_the_raw_op_raise() -> None:
    x = torch.ones(2, 8, 4)
    for arguments in ((x, 3, None), (x, 4, torch.ones(7)), (torch.ones(2, 8), 4, None), (x.double(), 4, None)):
        with pytest.raises(RuntimeError):
            torch.ops.fastdiff.group_norm_silu(*arguments, None, None, None, None, 1e-5, True)
