"""layer_norm_modulate against its definition, on every backend: the error may be twice that of eager PyTorch."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import instruction_sets
import pytest
import torch
from accuracy import assert_as_exact, assert_draws_as_exact
from backends import Backend
from torch import Tensor

import fastdiff
from fastdiff import ops, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(2, 5, 37), (3, 130, 64), (1, 7, 16), (2, 1, 19), (1, 65, 96)]
# Which operands beside x, scale and shift are there.
OPERANDS = [(), ("residual",), ("gate", "residual"), ("weight", "bias"), ("gate", "residual", "weight", "bias")]
NORMS = pytest.mark.parametrize("norm", ("layer", "rms"))
MODULATIONS = ("scale", "shift", "gate")


def make(shape, dtype=torch.float32, per_token=False, names=OPERANDS[-1], mean=0.3) -> dict[str, Tensor]:
    batch, tokens, channels = shape
    modulation = shape if per_token else (batch, channels)
    sizes = {
        "x": shape,
        "residual": shape,
        "weight": (channels,),
        "bias": (channels,),
        **dict.fromkeys(MODULATIONS, modulation),
    }
    operands = {name: torch.randn(sizes[name]).to(dtype) for name in ("x", "scale", "shift", *names)}
    operands["x"] += mean
    return operands


def gradients_of(shape, dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)


def results(function, operands, outer, dtype, norm="layer", eps=1e-6) -> dict[str, Tensor]:
    leaves = {name: operand.detach().to(dtype).requires_grad_() for name, operand in operands.items()}
    outputs = function(**leaves, norm=norm, eps=eps)
    gradients = torch.autograd.grad(outputs, list(leaves.values()), [gradient.to(dtype) for gradient in outer])
    names = [f"d{name}" for name in leaves]
    return {"y": outputs[0].detach(), "total": outputs[1].detach(), **dict(zip(names, gradients, strict=True))}


def run(device: Backend, operands, outer, dtype, norm="layer", eps=1e-6) -> dict[str, Tensor]:
    moved = {name: operand.to(device.device) for name, operand in operands.items()}
    with device.run():
        ours = results(ops.layer_norm_modulate, moved, [g.to(device.device) for g in outer], dtype, norm, eps)
    return {name: result.cpu() for name, result in ours.items()}


def compare(device, operands, outer, dtype, norm) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    ours = run(device, operands, outer, dtype, norm)
    eager, exact = (results(reference.layer_norm_modulate, operands, outer, d, norm) for d in (dtype, torch.float64))
    return {name: (ours[name], eager[name], exact[name]) for name in ours}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@NORMS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_backward(device: Backend, dtype, norm, shape) -> None:
    for per_token, names in itertools.product((False, True), OPERANDS):

        def draw(per_token=per_token, names=names):
            return compare(device, make(shape, dtype, per_token, names), gradients_of(shape, dtype), dtype, norm)

        assert_draws_as_exact(draw, math.prod(shape))


def test_outputs() -> None:
    operands = make((2, 5, 24), torch.bfloat16)
    operands["x"], operands["residual"] = (operands[name].mT.contiguous().mT for name in ("x", "residual"))
    y, total = ops.layer_norm_modulate(**operands)
    assert y.dtype == total.dtype == torch.bfloat16
    assert y.is_contiguous() and total.is_contiguous()
    x = operands["x"]
    assert ops.layer_norm_modulate(x, operands["scale"], operands["shift"])[1] is x


def test_definition_is_the_formula() -> None:
    operands = {name: operand.double() for name, operand in make((2, 5, 24)).items()}
    o = {name: v.unsqueeze(1) if name in MODULATIONS else v for name, v in operands.items()}
    total = o["residual"] + o["gate"] * o["x"]
    deviation = total - total.mean(-1, keepdim=True)
    for norm, centered in (("layer", deviation), ("rms", total)):
        normed = centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt() * o["weight"] + o["bias"]
        y = reference.layer_norm_modulate(**operands, norm=norm)[0]
        torch.testing.assert_close(y, normed * (1 + o["scale"]) + o["shift"])


def test_squares_that_overflow() -> None:
    """The deviations are far from it."""
    x = 1e18 + 1e17 * torch.randn(1, 4, 1024)
    y = ops.layer_norm_modulate(x, torch.zeros(1, 1024), torch.zeros(1, 1024))[0]
    torch.testing.assert_close(y, torch.nn.functional.layer_norm(x, (1024,)), rtol=1e-4, atol=1e-4)


def test_mean_far_from_zero(device: Backend) -> None:
    operands = make((2, 9, 200), names=(), mean=1000.0)
    exact = reference.layer_norm_modulate(**{name: v.double() for name, v in operands.items()})[0]
    ours = run(device, operands, gradients_of((2, 9, 200), torch.float32), torch.float32)["y"]
    assert_as_exact(ours, reference.layer_norm_modulate(**operands)[0], exact)


@NORMS
def test_eps(device: Backend, norm) -> None:
    operands = make((2, 5, 24), names=())
    operands["x"] = operands["x"] * 1e-3
    for eps in (1e-6, 1e-2, 0.0):
        exact = reference.layer_norm_modulate(**{n: v.double() for n, v in operands.items()}, norm=norm, eps=eps)[0]
        ours = run(device, operands, gradients_of((2, 5, 24), torch.float32), torch.float32, norm, eps)["y"]
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operands_of_other_dtypes(device: Backend, dtype) -> None:
    operands = make((2, 9, 40), dtype)
    for name, other in (("scale", torch.float32), ("gate", torch.float16), ("weight", torch.bfloat16)):
        operands[name] = torch.randn_like(operands[name], dtype=other)
    leaves = {name: v.detach().to(device.device).requires_grad_() for name, v in operands.items()}
    outer = gradients_of((2, 9, 40), dtype)
    exact, eager = (results(reference.layer_norm_modulate, operands, outer, d) for d in (torch.float64, dtype))
    with device.run():
        outputs = ops.layer_norm_modulate(**leaves)
        moved = [gradient.to(device.device) for gradient in outer]
        gradients = torch.autograd.grad(outputs, list(leaves.values()), moved)
    assert [g.dtype for g in gradients] == [v.dtype for v in leaves.values()]
    for name, ours in zip(("y", "total", *(f"d{n}" for n in leaves)), (*outputs, *gradients), strict=True):
        operand = operands.get(name[1:])
        if name[0] == "d" and torch.finfo(operand.dtype).eps > torch.finfo(dtype).eps:
            continue  # rounded further than eager's
        assert_as_exact(ours.cpu(), eager[name], exact[name], name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_expanded_modulations(device: Backend, dtype) -> None:
    """Of one value for all tokens, each of which has a gradient of its own."""
    operands = make((2, 9, 24), dtype)
    outer = gradients_of((2, 9, 24), dtype)
    expanded = {n: v.unsqueeze(1).expand(-1, 9, -1) if n in MODULATIONS else v for n, v in operands.items()}
    dense = {name: v.contiguous() for name, v in expanded.items()}
    ours, same = (run(device, o, outer, dtype) for o in (expanded, dense))
    for name in ours:
        assert torch.equal(ours[name], same[name]), name


def test_layouts(device: Backend) -> None:
    """Slices, transposed tokens and a modulation cut from one projection, as models make them."""
    wide = torch.randn(3, 7, 96)
    fused = torch.randn(3, 6 * 40)
    for dtype in (torch.float32, torch.bfloat16):
        variants = [wide[..., 9:49], wide[:, ::2, 40:80], wide.transpose(0, 1)[:3, :, :40], wide[..., ::2][..., :40]]
        variants += [wide[:1, :, :40].expand(3, -1, -1), wide[..., :1].expand(-1, -1, 40)]
        for x in variants:
            x = x.to(dtype)
            residual = x.flip(1)
            scale, shift, gate = (part.to(dtype) for part in fused.chunk(6, dim=1)[:3])
            strided = {"x": x, "scale": scale, "shift": shift, "gate": gate, "residual": residual}
            strided["weight"] = torch.randn(80).to(dtype)[::2]
            outer = [g.mT.contiguous().mT for g in gradients_of(x.shape, dtype)]
            dense = {name: v.contiguous() for name, v in strided.items()}
            ours = run(device, strided, outer, dtype)
            same = run(device, dense, [g.contiguous() for g in outer], dtype)
            for name in ours:
                assert torch.equal(ours[name], same[name]), name


def test_modulation_with_one_token_is_that_without() -> None:
    operands = make((2, 9, 24))
    other = {name: v.unsqueeze(1) if name in MODULATIONS else v for name, v in operands.items()}
    outer = gradients_of((2, 9, 24), torch.float32)
    ours, same = (results(ops.layer_norm_modulate, o, outer, torch.float32) for o in (operands, other))
    for name in ours:
        assert torch.equal(ours[name], same[name].reshape(ours[name].shape)), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_stays_in_its_token(device: Backend, dtype) -> None:
    for bad in (torch.nan, torch.inf):
        operands, outer = make((2, 9, 40), dtype), gradients_of((2, 9, 40), dtype)
        clean = run(device, operands, outer, dtype)["y"]
        operands["x"][1, 4, 7] = bad
        spoilt = run(device, operands, outer, dtype)
        assert spoilt["y"][1, 4].isnan().all() and not spoilt["total"][1, 4, 7].isfinite()
        keep = torch.ones(2, 9, dtype=torch.bool)
        keep[1, 4] = False
        assert torch.equal(spoilt["y"][keep], clean[keep])


@pytest.mark.parametrize("name", ("scale", "shift", "gate", "weight", "bias"))
def test_nan_operand_gives_nan(device: Backend, name) -> None:
    """Even a NaN whose every mantissa bit is set, which rounding to bfloat16 by addition would turn into a zero."""
    operands = make((1, 3, 40), torch.bfloat16)
    operands[name] = operands[name].float()
    operands[name][..., 5] = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    with device.run():
        y, _ = ops.layer_norm_modulate(**{n: v.to(device.device) for n, v in operands.items()})
    assert y[..., 5].isnan().all()
    assert y[..., 6].isnan().all() == (name == "gate")


def test_empty() -> None:
    for shape in ((0, 3, 8), (2, 0, 8)):
        operands = make(shape)
        ours = results(ops.layer_norm_modulate, operands, gradients_of(shape, torch.float32), torch.float32)
        assert ours["y"].shape == shape and ours["dx"].shape == shape
        assert torch.equal(ours["dweight"], torch.zeros(8))
        assert torch.equal(ours["dscale"], torch.zeros(shape[0], 8))
    transposed = torch.empty(0).as_strided((0, 3, 8), (24, 1, 3))
    assert ops.layer_norm_modulate(transposed, torch.zeros(0, 8), torch.zeros(0, 8))[0].shape == (0, 3, 8)


@pytest.mark.parametrize("wanted", [("x",), ("scale",), ("gate", "residual"), ("weight",), ("bias", "shift")], ids=str)
@pytest.mark.parametrize("output", (0, 1), ids=("y", "total"))
def test_gradient_of_one_output_and_of_some_operands(device: Backend, output, wanted) -> None:
    operands = make((2, 9, 24))

    def gradients(function) -> list[Tensor]:
        leaves = {name: v.to(device.device, copy=True).requires_grad_(name in wanted) for name, v in operands.items()}
        result = function(**leaves)[output].square().sum()
        inputs = [leaves[name] for name in wanted]
        if not result.requires_grad:  # total does not depend on them
            return [torch.zeros_like(leaf) for leaf in inputs]
        return list(torch.autograd.grad(result, inputs, allow_unused=True, materialize_grads=True))

    with device.run():
        of_ours = gradients(ops.layer_norm_modulate)
    for ours, eager in zip(of_ours, gradients(reference.layer_norm_modulate), strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)


def test_sample_does_not_depend_on_its_batch(device: Backend) -> None:
    operands, outer = make((5, 70, 40)), gradients_of((5, 70, 40), torch.float32)
    whole = run(device, operands, outer, torch.float32)
    one = {name: v if v.dim() == 1 else v[3:4] for name, v in operands.items()}
    alone = run(device, one, [g[3:4] for g in outer], torch.float32)
    for name in ("y", "total", "dx", "dscale", "dshift", "dgate", "dresidual"):
        assert torch.equal(whole[name][3:4], alone[name]), name


def test_same_bits_for_any_thread_count() -> None:
    script = (
        "import hashlib, sys, torch; from fastdiff import ops;"
        "torch.set_num_threads(int(sys.argv[1])); torch.manual_seed(0);"
        "l = [torch.randn(s, requires_grad=True) for s in ((2, 300, 96), (2, 96), (2, 96), (2, 96), (2, 300, 96), 96)];"
        "y, t = ops.layer_norm_modulate(*l[:3], gate=l[3], residual=l[4], weight=l[5]);"
        "(y.square().sum() + t.square().sum()).backward();"
        "tensors = [y, t, *(p.grad for p in l)];"
        "print([hashlib.sha256(v.detach().numpy().tobytes()).hexdigest() for v in tensors])"
    )
    outputs = {subprocess.check_output([sys.executable, "-c", script, str(threads)]) for threads in (1, 2, 5)}
    assert len(outputs) == 1


def test_large_output_is_streamed_to_the_same_bits() -> None:
    for dtype in DTYPES:
        operands = make((1, 4400, 1024), dtype, names=("gate", "residual"))
        whole = ops.layer_norm_modulate(**operands)
        for tokens in (slice(0, 3), slice(4300, 4400)):
            part = {name: v[:, tokens] if v.dim() == 3 else v for name, v in operands.items()}
            for ours, same in zip(whole, ops.layer_norm_modulate(**part), strict=True):
                assert torch.equal(ours[:, tokens], same)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype) -> None:
    for names, per_token in itertools.product(OPERANDS, (False, True)):
        operands = {name: v.requires_grad_() for name, v in make((2, 3, 10), dtype, per_token, names).items()}
        for name in ("scale", "shift", "gate"):
            if name in operands and not per_token:
                operands[name] = operands[name].detach().unsqueeze(1).requires_grad_()
        arguments = [operands.get(n) for n in ("x", "scale", "shift", "gate", "residual", "weight", "bias")]
        torch.library.opcheck(torch.ops.fastdiff.layer_norm_modulate, (*arguments, 1e-6, False))


@NORMS
def test_gradcheck_of_the_definition(norm) -> None:
    operands = {name: v.double().requires_grad_() for name, v in make((2, 3, 5)).items()}
    names = list(operands)
    assert torch.autograd.gradcheck(
        lambda *values: reference.layer_norm_modulate(**dict(zip(names, values, strict=True)), norm=norm),
        tuple(operands.values()),
    )


def test_compile_has_no_graph_break() -> None:
    def block(x, scale, shift, gate, residual):
        y, total = ops.layer_norm_modulate(x * 2, scale, shift, gate=gate, residual=residual)
        return y + 1, total

    compiled = torch.compile(block, fullgraph=True)
    names = ("x", "scale", "shift", "gate", "residual")
    for tokens in (3, 5, 8):
        operands = make((2, tokens, 12), names=("gate", "residual"))
        arguments = [operands[name] for name in names]
        torch.testing.assert_close(compiled(*arguments), block(*arguments))


def test_reference_switch_and_float64() -> None:
    operands = {name: v.double() for name, v in make((2, 3, 8)).items()}
    with pytest.raises(TypeError, match="x must be float32, bfloat16 or float16, got torch.float64"):
        ops.layer_norm_modulate(**operands)
    with fastdiff.use_reference():
        assert ops.layer_norm_modulate(**operands)[0].dtype == torch.float64


@pytest.mark.parametrize(
    "error, message, change",
    [
        (TypeError, "x must be a tensor, got int", {"x": 1}),
        (TypeError, "scale must be a tensor, got float", {"scale": 1.0}),
        (ValueError, r"x must be \(batch, tokens, channels\), got shape \(3, 8\)", {"x": torch.ones(3, 8)}),
        (
            TypeError,
            "residual must have x's dtype torch.float32, got torch.float16",
            {"residual": torch.ones(2, 3, 8).half()},
        ),
        (ValueError, r"residual must have x's shape \(2, 3, 8\), got \(2, 4, 8\)", {"residual": torch.ones(2, 4, 8)}),
        (
            ValueError,
            r"scale must have shape \(2, 8\), \(2, 1, 8\) or \(2, 3, 8\) to fit x, got \(2, 7\)",
            {"scale": torch.ones(2, 7)},
        ),
        (ValueError, r"shift must have scale's shape \(2, 1, 8\), got \(2, 3, 8\)", {"shift": torch.ones(2, 3, 8)}),
        (ValueError, r"gate must have shape .* got \(8,\)", {"gate": torch.ones(8)}),
        (ValueError, "gate needs a residual", {"residual": None}),
        (ValueError, r"weight must have shape \(8,\), got \(7,\)", {"weight": torch.ones(7)}),
        (
            TypeError,
            "bias must be float32, bfloat16 or float16, got torch.int64",
            {"bias": torch.ones(8, dtype=torch.int64)},
        ),
        (ValueError, "norm must be one of .*'layer', 'rms'.*, got 'group'", {"norm": "group"}),
        (ValueError, "scale must be on x's device cpu, got meta", {"scale": torch.ones(2, 8, device="meta")}),
    ],
)
def test_wrong_arguments(error, message, change) -> None:
    with pytest.raises(error, match=message):
        ops.layer_norm_modulate(**{**make((2, 3, 8)), **change})


def test_wrong_arguments_to_the_raw_op_raise() -> None:
    x, modulation = torch.ones(2, 3, 8), torch.ones(2, 1, 8)
    op = torch.ops.fastdiff.layer_norm_modulate
    for wrong in ((torch.ones(3, 8), modulation, modulation), (x, torch.ones(2, 8), modulation), (x, x, modulation)):
        with pytest.raises(RuntimeError, match="layer_norm_modulate: "):
            op(*wrong, None, None, None, None, 1e-6, False)
    with pytest.raises(RuntimeError, match="gate needs a residual"):
        op(x, modulation, modulation, modulation, None, None, None, 1e-6, False)


@pytest.mark.parametrize("isa", fastdiff.build_info().get("cpu_isas_built", []))
def test_every_instruction_set(isa) -> None:
    instruction_sets.run_tests(isa, __file__, "forward or layouts or nan or far or dtypes")
