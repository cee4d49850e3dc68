"""attention against its definition, on every backend: the error may be twice that of PyTorch's own attention."""

from __future__ import annotations

import subprocess
import sys

import instruction_sets
import pytest
import torch
from accuracy import assert_as_exact, assert_draws_as_exact
from backends import Backend
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import fastdiff
from fastdiff import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# (batch, query tokens, heads, key tokens, key heads, head_dim)
SHAPES = [
    (2, 50, 3, 77, 3, 40),
    (9, 1, 4, 1, 2, 8),
    (2, 7, 4, 154, 2, 64),
    (1, 130, 2, 257, 2, 72),
    (1, 25, 3, 77, 1, 33),
    (1, 24, 2, 1178, 2, 80),
    (1, 49, 1, 96, 1, 96),
    (1, 49, 1, 160, 1, 96),
    (1, 33, 2, 161, 2, 128),
    (2, 65, 2, 193, 2, 160),
    (2, 9, 2, 320, 2, 160),
    (1, 31, 2, 100, 2, 256),
    (4, 30, 3, 50, 3, 1),
    (1, 77, 2, 7, 1, 64),
    (1, 154, 2, 7, 2, 8),
    (1, 257, 1, 77, 1, 33),
    (1, 1178, 1, 17, 1, 40),
]


def make(shape, dtype=torch.float32, std=1.0, device="cpu") -> list[Tensor]:
    """Query, key and value."""
    batch, queries, heads, keys, kv_heads, head_dim = shape
    sizes = ((batch, queries, heads, head_dim), *((batch, keys, kv_heads, head_dim),) * 2)
    return [(torch.randn(size, device=device) * std).to(dtype) for size in sizes]


def run(device: Backend, operands, kv_lengths=None, scale=None) -> tuple[Tensor, Tensor]:
    """(output, logsumexp)"""
    lengths = None if kv_lengths is None else kv_lengths.int()
    with device.run():
        return device.ops.attention(*operands, lengths, operands[0].shape[-1] ** -0.5 if scale is None else scale)


def run_backward(device: Backend, operands, doutput, kv_lengths=None) -> tuple[Tensor, ...]:
    lengths, scale = None if kv_lengths is None else kv_lengths.int(), operands[0].shape[-1] ** -0.5
    with device.run():
        results = device.ops.attention(*operands, lengths, scale)
        return device.ops.attention_backward(doutput, *operands, *results, lengths, scale)


def define_backward(operands, doutput, dtype=None, kv_lengths=None) -> tuple[Tensor, ...]:
    leaves = [operand.detach().to(dtype or operand.dtype).requires_grad_() for operand in operands]
    output = reference.attention(*leaves, kv_lengths=kv_lengths)
    return torch.autograd.grad(output, leaves, doutput.to(leaves[0].dtype))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_backward(device: Backend, dtype, shape) -> None:
    def draw():
        operands = make(shape, dtype, device=device.device)
        output, _ = run(device, operands)
        assert output.dtype == dtype and output.is_contiguous()
        exact = reference.attention(*(operand.double() for operand in operands))
        doutput = torch.randn_like(operands[0])
        ours = run_backward(device, operands, doutput)
        eager = define_backward(operands, doutput)
        wanted = define_backward(operands, doutput, torch.float64)
        results = zip(("dquery", "dkey", "dvalue"), zip(ours, eager, wanted, strict=True), strict=True)
        return {"output": (output, reference.attention(*operands), exact), **dict(results)}

    assert_draws_as_exact(draw, torch.Size(shape[:3] + shape[-1:]).numel())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wide_head(dtype) -> None:
    """No limit on the CPU."""
    operands = make((1, 64, 1, 64, 1, 512), dtype)
    exact = reference.attention(*(operand.double() for operand in operands))
    errors = [(f(*operands).double() - exact).abs().max() for f in (fastdiff.ops.attention, reference.attention)]
    assert errors[0] <= 2 * errors[1] + 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("keys", (77, 400))
def test_large_scores(device: Backend, dtype, keys) -> None:
    """Scores of several hundred: softmax picks few keys, in the only block of keys, in the first or in the last.

    The rounding of such a score moves the result by far more than that of anything after it, so the largest error is a
    matter of luck; the root of the mean square is not.
    """
    operands = make((1, 500, 2, keys, 2, 64), dtype, 6.0, device.device)
    for scale in (None, 1.0, -0.5):
        exact = reference.attention(*(operand.double() for operand in operands), scale=scale)
        ours, _ = run(device, operands, scale=scale)
        # PyTorch's on the CPU: on a GPU it answers a negative scale with NaN.
        eager = reference.attention(*(operand.cpu() for operand in operands), scale=scale)
        errors = [(result.cpu().double() - exact.cpu()).square().mean().sqrt() for result in (ours, eager)]
        assert errors[0] <= 2 * errors[1] + 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_where_all_scores_are_low(device: Backend, dtype) -> None:
    """Lanes beside the keys have score 0: against scores of -200 their weight would be infinite."""

    def draw():
        query, key, value = make((1, 31, 2, 77, 2, 40), dtype, 0.1, device.device)
        operands, doutput = (query + 6, key - 6, value), torch.randn_like(query)
        results = run_backward(device, operands, doutput), define_backward(operands, doutput)
        exact = define_backward(operands, doutput, torch.float64)
        return dict(zip(("dquery", "dkey", "dvalue"), zip(*results, exact, strict=True), strict=True))

    assert_draws_as_exact(draw, elements=31 * 2 * 40)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_queries(dtype) -> None:
    """So many that on a CPU several partial sums make a gradient of the keys."""

    def gradients(operands, doutput) -> tuple[Tensor, ...]:
        leaves = [operand.requires_grad_() for operand in operands]
        return torch.autograd.grad(fastdiff.ops.attention(*leaves), leaves, doutput)

    operands = make((2, 2100, 4, 99, 2, 28), dtype)
    doutput = torch.randn_like(operands[0])
    ours = gradients(operands, doutput)
    eager, exact = define_backward(operands, doutput), define_backward(operands, doutput, torch.float64)
    for name, *results in zip(("dquery", "dkey", "dvalue"), ours, eager, exact, strict=True):
        assert_as_exact(*results, name)
    alone = gradients([operand[1:].detach() for operand in operands], doutput[1:])
    assert all(torch.equal(of_batch[1:], result) for of_batch, result in zip(ours, alone, strict=True))


@pytest.mark.parametrize("head_dim", (15, 16, 17, 31, 32, 33, 63, 65))
def test_edges_of_tiles(device: Backend, head_dim) -> None:
    """Rows, columns and depths around the 16 and 32 of a tile, and one of each."""

    def draw():
        results = {}
        for queries, keys in ((1, 1), (15, 17), (16, 16), (17, 15), (31, 33), (33, 31), (129, 129)):
            operands = make((1, queries, 2, keys, 2, head_dim), torch.bfloat16, device=device.device)
            doutput = torch.randn_like(operands[0])
            ours = run(device, operands)[0], *run_backward(device, operands, doutput)
            eager = reference.attention(*operands), *define_backward(operands, doutput)
            wide = [operand.double() for operand in operands]
            exact = reference.attention(*wide), *define_backward(wide, doutput.double())
            for name, *of_name in zip(("output", "dquery", "dkey", "dvalue"), ours, eager, exact, strict=True):
                results[f"{name} of {queries} queries and {keys} keys"] = tuple(of_name)
        return results

    assert_draws_as_exact(draw, elements=2 * head_dim)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_score_ranges_share_a_block(device: Backend, dtype) -> None:
    """A query keeps its bits, whatever the scores of its neighbours and however small or large its own."""
    query, key, value = make((1, 40, 1, 200, 1, 40), dtype, device=device.device)
    factors = torch.ones(40, device=device.device)
    factors[::3] = 40.0
    key = key + 1
    mixed = (query * factors[:, None, None]).to(dtype)
    mixed[0, 4] = -12.0
    mixed[0, 5] = 12.0
    plain, plain_logsumexp = run(device, (query, key, value))
    output, logsumexp = run(device, (mixed, key, value))
    kept = [i for i in range(40) if i % 3 and i not in (4, 5)]
    assert torch.equal(output[:, kept], plain[:, kept]) and torch.equal(
        logsumexp[..., kept], plain_logsumexp[..., kept]
    )
    exact = reference.attention(*(operand.double() for operand in (mixed, key, value)))
    eager = reference.attention(mixed, key, value)
    errors = [(result.double() - exact).square().mean().sqrt() for result in (output, eager)]
    assert errors[0] <= 2 * errors[1] + 1e-6
    scores = torch.einsum("bihd,bjhd->bhij", mixed.double(), key.double()) * 40**-0.5
    tolerance = 1e-4 if dtype != torch.bfloat16 else 4e-3  # of bfloat16, rounded probabilities may be what is summed
    torch.testing.assert_close(logsumexp.double(), scores.logsumexp(-1), rtol=1e-5, atol=tolerance)


def test_values_near_the_largest_number(device: Backend) -> None:
    """Weights of 2^40 and such must not meet them."""
    query, key, value = make((1, 20, 1, 50, 1, 16), torch.bfloat16, device=device.device)
    query, key = query.abs() + 2.5, key * 0.1 + 2.5
    output, _ = run(device, (query, key, torch.full_like(value, 2.0**120)))
    torch.testing.assert_close(output, torch.full_like(output, 2.0**120))


def test_logsumexp(device: Backend) -> None:
    for dtype, keys in ((torch.float32, 200), (torch.float16, 100)):
        operands = query, key, _ = make((2, 30, 2, keys, 2, 40), dtype, device=device.device)
        _, logsumexp = run(device, operands, scale=0.3)
        scores = torch.einsum("bihd,bjhd->bhij", query.double(), key.double()) * 0.3
        torch.testing.assert_close(logsumexp.double(), scores.logsumexp(-1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("keys", (150, 200))
def test_kv_lengths(device: Backend, dtype, keys) -> None:
    """What lies beyond a length is never read; a sample without keys gives zeros, and zero gradients."""
    operands = query, key, value = make((5, 30, 4, keys, 2, 40), dtype, device=device.device)
    lengths = torch.tensor([0, 1, 77, 141, keys], device=device.device)
    for sample, length in enumerate(lengths.tolist()):
        key[sample, length:] = value[sample, length:] = torch.nan
    doutput = torch.randn_like(query)
    output, logsumexp = run(device, operands, lengths)
    ours = run_backward(device, operands, doutput, lengths)
    assert not output[0].any() and not ours[0][0].any() and logsumexp[0].eq(-torch.inf).all()
    for sample, length in enumerate(lengths.tolist()):
        assert not ours[1][sample, length:].any() and not ours[2][sample, length:].any()
        if length == 0:
            continue
        alone = [query[sample : sample + 1], key[sample : sample + 1, :length], value[sample : sample + 1, :length]]
        expected = [run(device, alone)[0], *run_backward(device, alone, doutput[sample : sample + 1])]
        got = [output, ours[0], ours[1][:, :length], ours[2][:, :length]]
        for result, wanted in zip(got, expected, strict=True):
            if device.name == "cpu":
                assert torch.equal(result[sample : sample + 1], wanted)
            else:  # fewer keys may take another path
                tolerance = 8 * torch.finfo(dtype).eps
                torch.testing.assert_close(result[sample : sample + 1], wanted, rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("keys", (37, 165))
def test_every_kv_length(device: Backend, dtype, keys) -> None:
    """A sample for each: the edge of the mask at every place of a vector, of a tile and of a block of keys."""
    lengths = torch.arange(keys + 1, device=device.device)
    absent = torch.arange(keys, device=device.device) >= lengths[:, None]

    def draw():
        operands = query, key, value = make((keys + 1, 9, 1, keys, 1, 8), dtype, device=device.device)
        key[absent] = value[absent] = torch.nan
        doutput = torch.randn_like(query)
        ours = [run(device, operands, lengths)[0], *run_backward(device, operands, doutput, lengths)]
        assert not ours[2][absent].any() and not ours[3][absent].any()
        eager, exact = (
            [
                reference.attention(*(operand.to(d) for operand in operands), kv_lengths=lengths),
                *define_backward(operands, doutput, d, lengths),
            ]
            for d in (dtype, torch.float64)
        )
        names = ("output", "dquery", "dkey", "dvalue")
        return dict(zip(names, zip(ours, eager, exact, strict=True), strict=True))

    # The largest errors are those of the few samples of a key or two: what counts is the size of one sample.
    assert_draws_as_exact(draw, 9 * 8)


def test_kv_lengths_of_both_dtypes() -> None:
    operands = make((3, 5, 2, 9, 2, 8))
    lengths = torch.tensor([0, 4, 9])
    output = fastdiff.ops.attention(*operands, kv_lengths=lengths)
    assert torch.equal(output, fastdiff.ops.attention(*operands, kv_lengths=lengths.int()))
    torch.testing.assert_close(output, reference.attention(*operands, kv_lengths=lengths))


def formula(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    key, value = (operand.repeat_interleave(query.shape[2] // key.shape[2], dim=2) for operand in (key, value))
    return torch.einsum("bhij,bjhd->bihd", (torch.einsum("bihd,bjhd->bhij", query, key) * scale).softmax(-1), value)


def test_definition_is_the_formula() -> None:
    query, key, value = (operand.double() for operand in make((3, 6, 4, 9, 2, 8)))
    torch.testing.assert_close(reference.attention(query, key, value), formula(query, key, value, 8**-0.5))
    key[1, 4:] = value[1, 4:] = torch.nan
    output = reference.attention(query, key, value, scale=0.3, kv_lengths=torch.tensor([0, 4, 9]))
    assert not output[0].any()
    torch.testing.assert_close(output[1:2], formula(query[1:2], key[1:2, :4], value[1:2, :4], 0.3))
    torch.testing.assert_close(output[2:], formula(query[2:], key[2:], value[2:], 0.3))


def test_lengths_that_lie_are_harmless(device: Backend) -> None:
    """The raw op reads no key that is not there, whatever it is told."""
    operands = make((2, 5, 1, 20, 1, 8), device=device.device)
    lengths = torch.tensor([2**31 - 1, -5], dtype=torch.int32, device=device.device)
    output, _ = run(device, operands, lengths)
    assert torch.equal(output[:1], run(device, [operand[:1] for operand in operands])[0])
    assert not output[1].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("keys", (40, 200))
def test_slices_are_read_in_place(device: Backend, dtype, keys) -> None:
    query = torch.randn(2, 40, 4, 56, device=device.device).to(dtype)[..., 3:43]
    fused = torch.randn(2, keys, 2, 4, 40 + 8, device=device.device).to(dtype)[..., 3:43]
    operands = [query, fused[:, :, 0], fused[:, :, 1]]
    dense = [operand.contiguous() for operand in operands]
    assert torch.equal(run(device, operands)[0], run(device, dense)[0])
    scattered = [o.transpose(1, 3).contiguous().transpose(1, 3) for o in operands]
    assert scattered[0].stride(3) != 1
    assert torch.equal(run(device, scattered)[0], run(device, dense)[0])
    doutput = torch.randn(2, 4, 40, 40, device=device.device).to(dtype).transpose(1, 2)
    ours, wanted = run_backward(device, operands, doutput), run_backward(device, dense, doutput.contiguous())
    assert all(map(torch.equal, ours, wanted))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("keys", (77, 170))
def test_sample_does_not_depend_on_its_batch(device: Backend, dtype, keys) -> None:
    operands = make((6, 50, 2, keys, 2, 40), dtype, device=device.device)
    doutput = torch.randn_like(operands[0])
    whole = [run(device, operands)[0], *run_backward(device, operands, doutput)]
    for i in (0, 4):
        alone = [operand[i : i + 1] for operand in operands]
        results = [run(device, alone)[0], *run_backward(device, alone, doutput[i : i + 1])]
        assert all(torch.equal(result, of_all[i : i + 1]) for result, of_all in zip(results, whole, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("keys", (100, 300))
def test_nan_and_infinity_stay_in_their_query(device: Backend, dtype, keys) -> None:
    for bad in (torch.nan, torch.inf):
        query, key, value = make((1, 60, 2, keys, 2, 40), dtype, device=device.device)
        clean, _ = run(device, (query, key, value))
        query[0, 30, 1, 7] = bad
        output, _ = run(device, (query, key, value))
        assert output[0, 30, 1].isnan().all()
        output[0, 30, 1] = clean[0, 30, 1]
        assert torch.equal(output, clean)
    key[0, keys - 1, 0, 3] = torch.nan
    value[0, 5, 1, 3] = torch.nan
    output, _ = run(device, (query, key, value))
    assert output[0, :, 0].isnan().all()
    assert output[0, :, 1, 3].isnan().all()
    assert not output[0, :30, 1, 4:].isnan().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("keys", (100, 200))
def test_nan_and_infinity_in_gradients(device: Backend, dtype, keys) -> None:
    """Of a query: its own gradient, and what its head's keys and values get from it; nothing else."""
    for bad in (torch.nan, torch.inf):
        operands = make((1, 20, 2, keys, 2, 40), dtype, device=device.device)
        doutput = torch.randn_like(operands[0])
        clean = run_backward(device, operands, doutput)
        doutput[0, 13, 1, 7] = bad
        dquery, dkey, dvalue = run_backward(device, operands, doutput)
        for spoilt in (dquery[0, 13, 1], dkey[0, :, 1], dvalue[0, :, 1, 7]):
            assert not spoilt.isfinite().any()
        dquery[0, 13, 1] = clean[0][0, 13, 1]
        assert torch.equal(dquery, clean[0])
        assert torch.equal(dkey[0, :, 0], clean[1][0, :, 0])
        assert torch.equal(dvalue[0, :, 0], clean[2][0, :, 0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("keys", (150, 200))
def test_scores_of_minus_infinity(device: Backend, dtype, keys) -> None:
    """A key whose score is -infinity counts for nothing; a query with no other key is NaN, as in PyTorch."""
    query, key, value = make((1, 4, 1, keys, 1, 8), dtype, device=device.device)
    query = query.abs() + 0.1
    key[0, : keys - 1, 0, 0] = -torch.inf
    output, _ = run(device, (query, key, value))
    torch.testing.assert_close(output, value[:, keys - 1 :].expand(1, 4, 1, 8))
    key[0, keys - 1, 0, 0] = -torch.inf
    assert run(device, (query, key, value))[0].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("keys", (5, 20, 32))
def test_scale_of_zero_with_infinite_values(device: Backend, dtype, keys) -> None:
    """The mean of the values; lanes that have no key take no part in it."""
    query, key, value = make((1, 3, 1, keys, 1, 16), dtype, device=device.device)
    value[0, 2, 0, 3] = torch.inf
    output, _ = run(device, (query, key, value), scale=0.0)
    assert torch.equal(
        output.isfinite().logical_not().nonzero()[:, 3].unique(), torch.tensor([3], device=device.device)
    )
    torch.testing.assert_close(
        output[..., 4:], value[..., 4:].double().mean(1, keepdim=True).to(dtype).expand(-1, 3, -1, -1)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_negative_scale(device: Backend, dtype) -> None:
    """Of the public function, which on a GPU may be PyTorch's."""
    query, key, value = make((1, 20, 2, 30, 2, 16), dtype, device=device.device)
    with device.run():
        output = fastdiff.ops.attention(query, key, value, scale=-0.5)
    expected = reference.attention(-query.double(), key.double(), value.double(), scale=0.5)
    torch.testing.assert_close(output.double(), expected, rtol=2e-2, atol=2e-2)


def test_subnormal_numbers_are_as_before_for_everyone_else() -> None:
    """Kernels that flush them to zero put that back, in every thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        operands = [operand.requires_grad_() for operand in make((2, 300, 2, 200, 2, 40))]
        fastdiff.ops.attention(*operands).sum().backward()
        assert (torch.full((1 << 22,), 1e-40) * 0.5 != 0).all()
    finally:
        torch.set_num_threads(threads)


def test_empty(device: Backend) -> None:
    for shape in ((0, 3, 2, 4, 2, 8), (2, 0, 2, 4, 2, 8), (2, 3, 2, 0, 2, 8)):
        operands = make(shape, device=device.device)
        results = device.ops.attention(*operands, None, 1.0)  # perhaps nothing is launched
        assert results[0].shape == operands[0].shape and not results[0].any()
        gradients = device.ops.attention_backward(operands[0], *operands, *results, None, 1.0)
        for gradient, operand in zip(gradients, operands, strict=True):
            assert gradient.shape == operand.shape and not gradient.any()


def test_same_bits_for_any_thread_count() -> None:
    code = """
import sys, torch, fastdiff, hashlib
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
digest = hashlib.sha256()
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for batch, queries, heads, keys, kv_heads, head_dim in (
        (2, 300, 4, 77, 2, 40), (1, 100, 3, 500, 3, 64), (3, 2100, 2, 20, 1, 8)
    ):
        q = torch.randn(batch, queries, heads, head_dim).to(dtype).requires_grad_()
        k, v = (torch.randn(batch, keys, kv_heads, head_dim).to(dtype).requires_grad_() for _ in range(2))
        lengths = torch.tensor([50, 77]) if batch == 2 else None
        y = fastdiff.ops.attention(q, k, v, kv_lengths=lengths)
        for result in (y, *torch.autograd.grad(y, [q, k, v], torch.randn_like(y))):
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
    instruction_sets.run_tests(
        isa, __file__, "forward or wide or large or low or many or lengths or infinity or edges or ranges or near"
    )


@pytest.mark.parametrize(
    ("device_type", "head_dim", "padded", "expected"),
    [
        ("cpu", 512, False, False),
        ("mps", 64, False, True),
        ("cuda", 64, False, True),
        ("cuda", 256, True, False),
        ("cuda", 264, True, True),
    ],
)
def test_which_kernel_on_which_device(device_type, head_dim, padded, expected) -> None:
    arguments = (device_type, head_dim, padded)
    # The module, which the function of the same name hides.
    is_pytorchs = sys.modules["fastdiff.ops.attention"]._is_pytorchs
    assert is_pytorchs(*arguments) == expected
    torch.use_deterministic_algorithms(True)
    try:
        assert is_pytorchs(*arguments) == (expected and (device_type == "mps" or head_dim > 256))
    finally:
        torch.use_deterministic_algorithms(False)


# ---- torch's own contracts -------------------------------------------------------------------------------------------


def test_gradcheck_of_the_definition() -> None:
    operands = [operand.double().requires_grad_() for operand in make((2, 3, 4, 5, 2, 3))]
    lengths = torch.tensor([5, 2])
    assert torch.autograd.gradcheck(lambda *o: reference.attention(*o, scale=0.7, kv_lengths=lengths), operands)


def test_opcheck() -> None:
    operands = [operand.requires_grad_() for operand in make((2, 6, 4, 9, 2, 8))]
    lengths = torch.tensor([3, 9], dtype=torch.int32)
    for kv_lengths in (None, lengths):
        torch.library.opcheck(torch.ops.fastdiff.attention, (*operands, kv_lengths, 0.4))
    plain = [operand.detach() for operand in operands]
    results = torch.ops.fastdiff.attention(*plain, lengths, 0.4)
    arguments = (torch.randn_like(plain[0]), *plain, *results, lengths, 0.4)
    torch.library.opcheck(torch.ops.fastdiff.attention_backward, arguments)


def test_compile_has_no_graph_break_and_no_recompile_storm() -> None:
    compiles = CompileCounterWithBackend("inductor")

    @torch.compile(fullgraph=True, backend=compiles)
    def block(query, key, value, lengths):
        return fastdiff.ops.attention(query * 2, key, value, kv_lengths=lengths) + 1

    for tokens in (8, 10, 12, 14, 16):
        query, key, value = make((2, tokens, 2, 9, 2, 8))
        lengths = torch.tensor([4, 9])
        want = fastdiff.ops.attention(query * 2, key, value, kv_lengths=lengths) + 1
        torch.testing.assert_close(block(query, key, value, lengths), want)
    assert compiles.frame_count <= 2, "one compilation for the first size, one for all others"


def test_autocast_casts_as_for_torch() -> None:
    query, key, value = make((1, 6, 2, 9, 2, 8))
    with torch.autocast("cpu", torch.bfloat16):
        ours = fastdiff.ops.attention(query, key.bfloat16(), value)
        assert ours.dtype == reference.attention(query, key, value).dtype == torch.bfloat16
    assert torch.equal(ours, fastdiff.ops.attention(query.bfloat16(), key.bfloat16(), value.bfloat16()))


def test_reference_switch() -> None:
    operands = make((2, 6, 4, 9, 2, 8))
    with fastdiff.use_reference():
        ours = fastdiff.ops.attention(*operands, scale=0.3)
    assert torch.equal(ours, reference.attention(*operands, scale=0.3))


Q, K = torch.zeros(2, 5, 4, 8), torch.zeros(2, 7, 2, 8)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"query": 3}, TypeError, "query must be a tensor, got int"),
        ({"query": Q[0]}, ValueError, r"query must be \(batch, tokens, heads, head_dim\), got shape \(5, 4, 8\)"),
        ({"query": Q.double()}, TypeError, "query must be float32, bfloat16 or float16, got torch.float64"),
        ({"key": K.half()}, TypeError, "key must have query's dtype torch.float32, got torch.float16"),
        ({"key": K.to("meta")}, ValueError, "key must be on query's device cpu, got meta"),
        ({"key": K[:1]}, ValueError, r"key must be \(2, tokens, heads, 8\) to fit query, got \(1, 7, 2, 8\)"),
        ({"value": K[:, :3]}, ValueError, r"value must have key's shape \(2, 7, 2, 8\), got \(2, 3, 2, 8\)"),
        ({"query": Q[:, :, :3]}, ValueError, "the heads of key must divide query's 3, got 2"),
        ({"query": Q[..., :0]}, ValueError, "query must have at least one element a head, got head_dim 0"),
        ({"kv_lengths": [1, 2]}, TypeError, "kv_lengths must be a tensor or None, got list"),
        ({"kv_lengths": torch.ones(2)}, TypeError, "kv_lengths must be int32 or int64, got torch.float32"),
        ({"kv_lengths": torch.ones(3, dtype=torch.int)}, ValueError, r"must have shape \(2,\), got \(3,\)"),
        ({"kv_lengths": torch.tensor([1, 8])}, ValueError, "kv_lengths must be 0 to 7, the tokens of key, got 8"),
        ({"kv_lengths": torch.tensor([-1, 8])}, ValueError, "kv_lengths must be 0 to 7, the tokens of key, got -1"),
    ],
)
def test_errors_name_the_argument(change, error, message) -> None:
    with pytest.raises(error, match=message):
        fastdiff.ops.attention(**{"query": Q, "key": K, "value": K, **change})


def test_wrong_arguments_to_the_raw_op_raise() -> None:
    for query, key, value, lengths in (
        (Q, K, K[:, :3], None),
        (Q[:1], K, K, None),
        (Q[:, :, :3], K, K, None),
        (Q, K.half(), K, None),
        (Q[0], K, K, None),
        (Q, K, K, torch.ones(2)),
        (Q, K, K, torch.ones(3, dtype=torch.int32)),
    ):
        with pytest.raises(RuntimeError, match="attention: "):
            torch.ops.fastdiff.attention(query, key, value, lengths, 1.0)


@pytest.mark.parametrize("batch, queries, heads, keys", ((0, 3, 2, 5), (2, 0, 2, 5), (2, 3, 0, 5), (2, 3, 2, 0)))
def test_gradients_of_a_sum_over_nothing(batch, queries, heads, keys) -> None:
    """The gradient that a sum sends back has strides of 0."""
    q = torch.randn(batch, queries, heads, 8, requires_grad=True)
    k, v = (torch.randn(batch, keys, max(heads, 1), 8, requires_grad=True) for _ in range(2))
    fastdiff.ops.attention(q, k, v).sum().backward()
    for operand in (q, k, v):
        assert operand.grad.shape == operand.shape
        assert (operand.grad == 0).all()
