"""qk_norm_rope against its definition, on every backend: the error may be twice that of eager PyTorch."""

from __future__ import annotations

import itertools
import struct
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from backends import Backend
from torch import Tensor

import fastdiff
from fastdiff import ops, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GRADIENTS = ("dquery", "dkey", "dquery_weight", "dkey_weight")
# As a float32, rounding to bfloat16 by addition would turn it into a zero.
NAN_OF_ALL_BITS = struct.unpack("<f", b"\xff\xff\xff\x7f")[0]


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


def run_backward(device: Backend, problem: Problem, seeds: list[Tensor]) -> tuple[Tensor, ...]:
    with device.run():
        return device.ops.qk_norm_rope_backward(
            *seeds, *problem.operands, problem.text_tokens, problem.eps, problem.interleaved
        )


def make_seeds(problem: Problem) -> list[Tensor]:
    return [torch.randn_like(x) for x in (problem.query, problem.key)]


def define_backward(problem: Problem, seeds: list[Tensor], dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """The gradients of query, key and the weights that are there."""
    operands = [operand if dtype is None or operand is None else operand.to(dtype) for operand in problem.operands]
    leaves = [operand.detach().requires_grad_() for operand in operands[:4] if operand is not None]
    absent = [operand is None for operand in operands[:4]]
    remaining = iter(leaves)
    arguments = [None if missing else next(remaining) for missing in absent]
    outputs = reference.qk_norm_rope(*arguments, *operands[4:], **problem.options)
    return torch.autograd.grad(outputs, leaves, [seed.to(outputs[0].dtype) for seed in seeds])


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


def assert_backward_right(device: Backend, problem: Problem) -> tuple[Tensor, ...]:
    seeds = make_seeds(problem)
    results = run_backward(device, problem, seeds)
    eager, exact = define_backward(problem, seeds), define_backward(problem, seeds, torch.float64)
    present = [(name, result) for name, result in zip(GRADIENTS, results, strict=True) if result.shape != (0,)]
    for (name, result), *others in zip(present, eager, exact, strict=True):
        assert result.dtype == (torch.float32 if name.endswith("weight") else problem.query.dtype)
        assert_as_exact(result, *others, name)
    return results


@pytest.mark.parametrize("interleaved", (True, False), ids=("interleaved", "half_split"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward(device: Backend, dtype, shape, interleaved) -> None:
    assert_right(device, make(shape, dtype, interleaved, device.device))


@pytest.mark.parametrize("interleaved", (True, False), ids=("interleaved", "half_split"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward(device: Backend, dtype, shape, interleaved) -> None:
    problem = make(shape, dtype, interleaved, device.device)
    # One number over its own magnitude hardly depends on it: with a small eps its gradient is what cancellation leaves.
    assert_backward_right(device, replace(problem, eps=0.1) if problem.query.shape[-1] == 1 else problem)


@pytest.mark.parametrize("interleaved", (True, False), ids=("interleaved", "half_split"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_tokens(device: Backend, dtype, interleaved) -> None:
    """More than a thread, a block or a partial sum of the weights' gradients takes."""
    problem = make((2, 117, 5, 2, 64, 64, 3), dtype, interleaved, device.device)
    assert_right(device, problem)
    assert_backward_right(device, problem)


@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_of_other_dtypes(device: Backend, dtype, weight_dtype) -> None:
    problem = make((1, 3, 2, 2, 40, 40, 0), dtype, True, device.device, weight_dtype)
    assert_right(device, problem)
    assert_backward_right(device, problem)


@pytest.mark.parametrize(
    "missing", ({"query_weight": None}, {"key_weight": None}, {"query_weight": None, "key_weight": None})
)
def test_without_weights(device: Backend, missing) -> None:
    for head_dim in (64, 40):
        problem = replace(make((1, 3, 2, 1, head_dim, head_dim, 0), torch.float32, True, device.device), **missing)
        assert_right(device, problem)
        results = assert_backward_right(device, problem)
        assert [r.numel() == 0 for r in results[2:]] == ["query_weight" in missing, "key_weight" in missing]


@pytest.mark.parametrize("interleaved", (True, False), ids=("interleaved", "half_split"))
def test_table_for_each_sample(device: Backend, interleaved) -> None:
    problem = make((3, 5, 2, 2, 64, 64, 2), torch.float32, interleaved, device.device)
    cos, sin = torch.randn(2, 3, 3, 64, device=device.device)
    problem = replace(problem, cos=cos, sin=sin)
    assert_right(device, problem)
    assert_backward_right(device, problem)
    problem = replace(problem, cos=cos[1])  # one for all beside one for each
    assert_right(device, problem)


def test_eps(device: Backend) -> None:
    for eps in (1e-6, 1e-2, 3.0):
        problem = replace(make((1, 2, 2, 2, 64, 64, 0), torch.float32, True, device.device), eps=eps)
        problem = replace(problem, query=problem.query / 100)
        assert_right(device, problem)
        assert_backward_right(device, problem)


# ---- layouts ---------------------------------------------------------------------------------------------------------


def fused(x: Tensor) -> Tensor:
    """As a slice of a fused projection."""
    return torch.cat([torch.randn_like(x), x, torch.randn_like(x)], dim=2).unflatten(2, (3, -1))[:, :, 1]


LAYOUTS = {
    "fused": fused,
    "heads_first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "token_slice": lambda x: torch.cat([x[:, :1], x, x[:, :2]], dim=1)[:, 1:-2],
    "unaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "elements_apart": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
    "expanded": lambda x: x[:, :, :1].expand_as(x),
    "samples_reversed_in_memory": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
}


@pytest.mark.parametrize("interleaved", (True, False), ids=("interleaved", "half_split"))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(device: Backend, layout, interleaved) -> None:
    for dtype, head_dim in itertools.product((torch.float32, torch.bfloat16), (64, 40)):
        dense = make((2, 5, 3, 2, head_dim, head_dim, 1), dtype, interleaved, device.device)
        if layout == "expanded":
            dense = replace(
                dense, query=dense.query[:, :, :1].repeat(1, 1, 3, 1), key=dense.key[:, :, :1].repeat(1, 1, 2, 1)
            )
        problem = replace(dense, query=LAYOUTS[layout](dense.query), key=LAYOUTS[layout](dense.key))
        assert torch.equal(problem.query, dense.query)
        seeds = make_seeds(dense)
        strided_seeds = [LAYOUTS[layout](seed) for seed in seeds]
        assert all(map(torch.equal, run(device, problem), run(device, dense)))
        got = run_backward(device, problem, strided_seeds)
        assert all(map(torch.equal, got, run_backward(device, dense, [seed.contiguous() for seed in strided_seeds])))


def test_rows_of_a_joint_table(device: Backend) -> None:
    """A text and an image that are projected apart give what the joint sequence gives."""
    whole = make((2, 9, 2, 2, 64, 64, 0), torch.float32, True, device.device)
    joint = run(device, whole)
    for rows in (slice(0, 4), slice(4, 9)):
        part = replace(
            whole, query=whole.query[:, rows], key=whole.key[:, rows], cos=whole.cos[rows], sin=whole.sin[rows]
        )
        assert all(torch.equal(a, b[:, rows]) for a, b in zip(run(device, part), joint, strict=True))
    transposed = replace(whole, cos=whole.cos.t().contiguous().t(), sin=whole.sin[:, ::2].repeat_interleave(2, 1))
    transposed = replace(transposed, sin=whole.sin.repeat_interleave(2, 1)[:, ::2])
    assert all(map(torch.equal, run(device, transposed), joint))


def test_empty(device: Backend) -> None:
    for shape in ((0, 3, 2, 2, 64, 64, 0), (2, 0, 2, 2, 64, 64, 0), (2, 3, 0, 0, 64, 64, 0), (2, 3, 0, 2, 64, 64, 1)):
        problem = make(shape, torch.float32, True, device.device)
        arguments = (*problem.operands, problem.text_tokens, problem.eps, True)
        results = device.ops.qk_norm_rope(*arguments)  # perhaps nothing is launched
        assert [r.shape for r in results] == [problem.query.shape, problem.key.shape]
        gradients = device.ops.qk_norm_rope_backward(*make_seeds(problem), *arguments)
        assert gradients[2].shape == (64,) and not gradients[2].any()


def test_inputs_are_not_changed(device: Backend) -> None:
    problem = make((2, 3, 2, 2, 64, 64, 0), torch.float32, True, device.device)
    seeds = make_seeds(problem)
    copies = [tensor.clone() for tensor in (*problem.operands, *seeds)]
    run(device, problem)
    run_backward(device, problem, seeds)
    assert all(map(torch.equal, (*problem.operands, *seeds), copies))


# ---- NaN and infinity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", (True, False), ids=("interleaved", "half_split"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_stays_in_its_head(device: Backend, dtype, interleaved) -> None:
    for head_dim, place in itertools.product((64, 40), (0, 39)):
        problem = make((2, 3, 2, 2, head_dim, head_dim, 1), dtype, interleaved, device.device)
        clean = run(device, problem)
        seeds = make_seeds(problem)
        clean_gradient = run_backward(device, problem, seeds)[0]
        for token in (0, 2):
            for bits in (0x7FFF, -1, None):
                query = problem.query.clone()
                if bits is None or dtype is torch.float32:
                    query[1, token, 1, place] = NAN_OF_ALL_BITS
                else:
                    query.view(torch.int16)[1, token, 1, place] = bits
                spoilt = replace(problem, query=query)
                result, key = run(device, spoilt)
                assert result[1, token, 1].isnan().all()
                result[1, token, 1] = clean[0][1, token, 1]
                assert torch.equal(result, clean[0]) and torch.equal(key, clean[1])
                gradient = run_backward(device, spoilt, seeds)[0]
                assert gradient[1, token, 1].isnan().all()
                gradient[1, token, 1] = clean_gradient[1, token, 1]
                assert torch.equal(gradient, clean_gradient)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_in_weights_and_tables(device: Backend, dtype) -> None:
    for name, nan in itertools.product(("query_weight", "cos", "sin"), (float("nan"), NAN_OF_ALL_BITS)):
        problem = make((1, 2, 1, 1, 64, 64, 0), dtype, True, device.device, torch.float32)
        operand = getattr(problem, name).clone()
        operand[..., 6] = nan
        spoilt = run(device, replace(problem, **{name: operand}))[0].isnan()
        assert spoilt[..., 6].all()
        assert not spoilt[..., :6].any() and not spoilt[..., 8:].any()


def test_infinity_as_in_pytorch(device: Backend) -> None:
    for dtype in DTYPES:
        problem = make((1, 2, 1, 1, 64, 64, 0), dtype, True, device.device)
        problem.query[0, 0, 0, 10] = float("inf")
        torch.testing.assert_close(run(device, problem)[0], define(problem)[0], equal_nan=True, rtol=0.05, atol=0.1)


# ---- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", (True, False), ids=("interleaved", "half_split"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sample_does_not_depend_on_its_batch(device: Backend, dtype, interleaved) -> None:
    for head_dim in (64, 33):
        problem = make((3, 5, 2, 1, head_dim, head_dim // 2 * 2, 1), dtype, interleaved, device.device)
        seeds = make_seeds(problem)
        whole, gradients = run(device, problem), run_backward(device, problem, seeds)
        for i in range(3):
            part = slice(i, i + 1)
            one = replace(problem, query=problem.query[part], key=problem.key[part])
            assert all(torch.equal(a, b[part]) for a, b in zip(run(device, one), whole, strict=True))
            own = run_backward(device, one, [seed[part] for seed in seeds])
            assert all(torch.equal(a, b[part]) for a, b in zip(own[:2], gradients, strict=False))


def test_same_bits_for_any_thread_count() -> None:
    code = """
import sys, torch, fastdiff, hashlib
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
digest = hashlib.sha256()
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for head_dim in (64, 40):
        query, key = (torch.randn(2, 201, 3, head_dim).to(dtype).requires_grad_() for _ in range(2))
        weights = [torch.randn(head_dim, requires_grad=True) for _ in range(2)]
        outputs = fastdiff.ops.qk_norm_rope(query, key, *weights, *torch.randn(2, 201, head_dim))
        gradients = torch.autograd.grad(outputs, (query, key, *weights), [torch.randn_like(y) for y in outputs])
        for tensor in (*outputs, *gradients):
            digest.update(tensor.detach().view(torch.uint8).numpy().tobytes())
print(digest.hexdigest())
"""
    digests = {
        subprocess.run([sys.executable, "-c", code, threads], check=True, capture_output=True, text=True).stdout
        for threads in ("1", "2", "3", "5")
    }
    assert len(digests) == 1


def test_large_output_is_streamed_to_the_same_bits() -> None:
    """From 32 MiB on the results are stored past the caches."""
    for dtype, interleaved in itertools.product(DTYPES, (True, False)):
        large = make((1, 4200, 32, 1, 128, 128, 0), dtype, interleaved)
        query = ops.qk_norm_rope(*large.operands, **large.options)[0]
        rows = slice(4000, 4200)
        small = replace(
            large, query=large.query[:, rows], key=large.key[:, rows], cos=large.cos[rows], sin=large.sin[rows]
        )
        assert torch.equal(query[:, rows], ops.qk_norm_rope(*small.operands, **small.options)[0])


# ---- the public function ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", (True, False), ids=("interleaved", "half_split"))
def test_same_as_diffusers(interleaved) -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    problem = make((2, 9, 3, 3, 128, 128, 0))
    table = embeddings.get_1d_rotary_pos_embed(128, 9, use_real=True, repeat_interleave_real=interleaved)
    norms = [torch.nn.RMSNorm(128, eps=1e-6) for _ in range(2)]
    for norm, weight in zip(norms, (problem.query_weight, problem.key_weight), strict=True):
        norm.weight.data.copy_(weight)
    results = ops.qk_norm_rope(
        problem.query, problem.key, *(norm.weight for norm in norms), *table, interleaved=interleaved
    )
    for norm, x, ours in zip(norms, (problem.query, problem.key), results, strict=True):
        unbind_dim = -1 if interleaved else -2
        theirs = embeddings.apply_rotary_emb(norm(x), table, use_real_unbind_dim=unbind_dim, sequence_dim=1)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize("interleaved", (True, False), ids=("interleaved", "half_split"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autograd(dtype, interleaved) -> None:
    problem = make((2, 5, 3, 1, 64, 32, 1), dtype, interleaved, weight_dtype=torch.float32)
    leaves = [operand.requires_grad_() for operand in problem.operands[:4]]
    seeds = make_seeds(problem)
    ours = torch.autograd.grad(ops.qk_norm_rope(*problem.operands, **problem.options), leaves, seeds)
    exact = define_backward(problem, seeds, torch.float64)
    for name, leaf, result, *others in zip(
        GRADIENTS, leaves, ours, define_backward(problem, seeds), exact, strict=True
    ):
        assert result.dtype == leaf.dtype
        assert_as_exact(result, *others, name)


def test_gradient_of_one_output_and_of_some_operands() -> None:
    problem = make((1, 3, 2, 2, 8, 8, 0))
    weight = problem.key_weight.requires_grad_()

    def gradient(function) -> Tensor:
        return torch.autograd.grad(function(*problem.operands)[1].square().sum(), weight)[0]

    torch.testing.assert_close(gradient(ops.qk_norm_rope), gradient(reference.qk_norm_rope))


@pytest.mark.parametrize("interleaved", (True, False), ids=("interleaved", "half_split"))
def test_gradcheck_of_the_definition(interleaved) -> None:
    problem = make((2, 3, 2, 1, 6, 4, 1), torch.float64, interleaved)
    problem = replace(problem, cos=problem.cos.double(), sin=problem.sin.double())
    leaves = [operand.requires_grad_() for operand in problem.operands[:4]]
    function = lambda *leaves: reference.qk_norm_rope(*leaves, problem.cos, problem.sin, **problem.options)  # noqa: E731
    assert torch.autograd.gradcheck(function, leaves)


def test_tables_of_other_dtypes() -> None:
    problem = make((1, 3, 2, 2, 8, 8, 0))
    halves = replace(problem, cos=problem.cos.bfloat16(), sin=problem.sin.half())
    torch.testing.assert_close(ops.qk_norm_rope(*halves.operands), reference.qk_norm_rope(*halves.operands))


# ---- torch's own contracts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype) -> None:
    for interleaved in (True, False):
        problem = make((2, 3, 2, 1, 16, 8, 1), dtype, interleaved)
        for operand in problem.operands[:4]:
            operand.requires_grad_()
        op = torch.ops.fastdiff.qk_norm_rope
        torch.library.opcheck(op, (*problem.operands, 1, 1e-6, interleaved))
        bare = replace(problem, query=fused(problem.query.detach()), query_weight=None, key_weight=None)
        torch.library.opcheck(op, (*bare.operands, 1, 1e-6, interleaved))


def test_compile_has_no_graph_break() -> None:
    @torch.compile(fullgraph=True)
    def rotate(query, key, *others):
        query, key = ops.qk_norm_rope(query * 1, torch.tanh(key), *others, interleaved=False)
        return query + 1, key

    for tokens in (4, 7):
        problem = make((2, tokens, 2, 1, 16, 8, 0))
        leaves = [operand.requires_grad_() for operand in problem.operands[:4]]
        query, key = ops.qk_norm_rope(problem.query, torch.tanh(problem.key), *problem.operands[2:], interleaved=False)
        want, got = (query + 1, key), rotate(*problem.operands)
        seeds = make_seeds(problem)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)
        gradients = (torch.autograd.grad(outputs, leaves, seeds) for outputs in (got, want))
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b)


def test_inference_mode_and_no_grad() -> None:
    problem = make((1, 3, 2, 2, 16, 16, 0))
    problem.query.requires_grad_()
    want = ops.qk_norm_rope(*problem.operands)
    assert want[0].requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            results = ops.qk_norm_rope(*problem.operands)
        assert not results[0].requires_grad
        assert all(map(torch.equal, results, want))


# ---- errors ----------------------------------------------------------------------------------------------------------


X = torch.ones(2, 4, 3, 8)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, "key must be a tensor, got list", {"key": [1.0]}),
        (TypeError, "query must be float32, bfloat16 or float16, got torch.float64", {"query": X.double()}),
        (TypeError, "key must have query's dtype torch.float32, got torch.float16", {"key": X.half()}),
        (TypeError, "cos must be float32, bfloat16 or float16, got torch.int64", {"cos": torch.ones(4, 8).long()}),
        (ValueError, "sin must be on query's device cpu, got meta", {"sin": torch.ones(4, 8, device="meta")}),
        (ValueError, r"query must be \(batch, tokens, heads, head_dim\), got shape \(4, 8\)", {"query": X[0, :, 0]}),
        (ValueError, r"key must be \(2, 4, heads, 8\) to fit query, got \(1, 4, 3, 8\)", {"key": X[:1]}),
        (ValueError, r"query_weight must have shape \(8,\), .* got \(4,\)", {"query_weight": torch.ones(4)}),
        (ValueError, "text_tokens must be 0 to 4, the tokens of query, got 5", {"text_tokens": 5}),
        (ValueError, r"cos must be \(3, R\) or \(2, 3, R\), .* got shape \(4, 8\)", {"text_tokens": 1}),
        (ValueError, r"sin must be \(4, R\) or \(2, 4, R\), .* got shape \(3, 4, 8\)", {"sin": torch.ones(3, 4, 8)}),
        (ValueError, "the last size of cos must be even and at most 8, .* got 10", {"cos": torch.ones(4, 10)}),
        (ValueError, "the last size of cos must be even and at most 8, .* got 3", {"cos": torch.ones(4, 3)}),
        (ValueError, "sin must be as wide as cos, 8, got 6", {"sin": torch.ones(4, 6)}),
        (ValueError, "cos must not require a gradient", {"cos": torch.ones(4, 8, requires_grad=True)}),
        (ValueError, "query must have at least one element a head, got head_dim 0", {"query": torch.ones(2, 4, 3, 0)}),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_arguments(error, message, change) -> None:
    problem = make((2, 4, 3, 3, 8, 8, 0))
    names = ("query", "key", "query_weight", "key_weight", "cos", "sin")
    arguments = {**dict(zip(names, problem.operands, strict=True)), **change}
    with pytest.raises(error, match=message):
        ops.qk_norm_rope(**arguments)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("query and key must have 4 dimensions", {0: torch.ones(4, 8)}),
        ("key must have the batch, tokens and head_dim of query", {1: torch.ones(2, 4, 3, 6)}),
        ("key must have the dtype of query", {1: torch.ones(2, 4, 3, 8).half()}),
        ("query_weight must have one entry for each element", {2: torch.ones(3)}),
        ("key must be float32, bfloat16 or float16", {3: torch.ones(8).double()}),
        ("the last size of cos must be even", {4: torch.ones(4, 3)}),
        ("sin must be float32", {5: torch.ones(4, 8).half()}),
        (r"sin must be \(tokens - text_tokens, rotary_dim\)", {5: torch.ones(4, 6)}),
        ("text_tokens must be 0 to the tokens of query", {6: -1}),
    ],
    ids=str,
)
def test_wrong_arguments_to_the_raw_op_raise(message, change) -> None:
    problem = make((2, 4, 3, 3, 8, 8, 0))
    arguments = [*problem.operands, 0, 1e-6, True]
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastdiff.qk_norm_rope(*arguments)
