"""The counter-based random numbers against published vectors, their definition and the distributions they stand for."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import instruction_sets
import pytest
import torch
from accuracy import assert_as_exact
from backends import Backend
from torch import Tensor

import fastdiff
from fastdiff import ops, reference
from fastdiff.reference.philox import philox_4x32, unit_interval

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Samples of one element, of no whole block, of several vectors, and of more than a thread's chunk or a grid's round.
SHAPES = [(3, 1), (2, 7), (4,), (3, 2, 5, 33), (2, 20_001)]
OFFSETS = (0, 1, 2**32 - 1, 2**40 + 5)
# Random123, file kat_vectors: counter, key, words.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def seeds_for(shape: tuple[int, ...]) -> Tensor:
    """Of both signs and more than 32 bits."""
    return torch.arange(shape[0]) * (2**33 + 17) - 5


def draw(device: Backend, function, shape, **options) -> Tensor:
    with device.run():
        return function(shape, seeds_for(shape).to(device.device), **options).cpu()


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counter, key, expected", KNOWN_ANSWERS)
def test_definition_gives_the_known_answers(counter: str, key: str, expected: str) -> None:
    block = philox_4x32(*([torch.tensor([word]) for word in words(text)] for text in (counter, key)))
    assert [word.item() for word in block] == words(expected)


def test_kernel_gives_the_known_answer(device: Backend) -> None:
    """Of counter and key zero: the others' counters lie beyond any tensor."""
    with device.run():
        bits = ops.philox_bits((1, 4), torch.zeros(1, dtype=torch.int64, device=device.device))
    assert bits[0].tolist() == words(KNOWN_ANSWERS[0][2])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_are_those_of_the_definition(device: Backend, shape) -> None:
    for offset in OFFSETS:
        expected = reference.philox_bits(shape, seeds_for(shape), offset=offset)
        assert torch.equal(draw(device, ops.philox_bits, shape, offset=offset), expected)
    assert expected.min() >= 0 and expected.max() < 2**32


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_uniform_is_the_definition(device: Backend, dtype, shape) -> None:
    uniform = draw(device, ops.philox_uniform, shape, offset=3, dtype=dtype)
    expected = reference.philox_uniform(shape, seeds_for(shape), offset=3, dtype=dtype)
    assert uniform.dtype == dtype and uniform.is_contiguous()
    assert ((uniform > 0) & (uniform < 1)).all()
    # Ties of 16 bits may be rounded either way.
    torch.testing.assert_close(uniform, expected, rtol=0 if dtype == torch.float32 else torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_normal_is_as_exact_as_eager(device: Backend, dtype, shape) -> None:
    normal = draw(device, ops.philox_normal, shape, offset=2**33 + 1, dtype=dtype)
    eager, exact = (
        reference.philox_normal(shape, seeds_for(shape), offset=2**33 + 1, dtype=d) for d in (dtype, torch.float64)
    )
    assert normal.dtype == dtype and normal.is_contiguous()
    assert_as_exact(normal, eager, exact)


def test_normal_keeps_its_digits_where_it_is_small(device: Backend) -> None:
    """Near zeros of sine and cosine, and where the radius is small: the relative error counts, too."""
    shape = (2, 100_000)
    normal, exact = (
        draw(device, ops.philox_normal, shape),
        reference.philox_normal(shape, seeds_for(shape), dtype=torch.float64),
    )
    # Of an angle, float32 has 2**-25 turns left at its worst; the zero of a cosine there is off by as much.
    assert ((normal - exact).abs() <= 4e-7 * exact.abs() + 4e-7).all()
    small = exact.abs() < 0.1
    assert ((normal - exact)[small].abs() <= 2e-6 * exact[small].abs() + 2e-7).all()


def test_extreme_words_give_finite_numbers() -> None:
    """The largest words round to 2**32: their uniform must stay below 1, or the radius would be NaN."""
    uniform = unit_interval(torch.tensor([0, 1, 2**31, 2**32 - 129, 2**32 - 128, 2**32 - 1]))
    assert uniform.tolist()[0] == 2.0**-33 and uniform.tolist()[-1] == 1 - 2.0**-24
    assert ((uniform > 0) & (uniform < 1)).all() and uniform.diff().ge(0).all()
    low, high = (torch.sqrt(-2 * torch.log(u)) for u in (uniform[0], uniform[-1]))
    assert 6.76 < low < 6.77 and 0 < high < 4e-4


# ---- distributions ---------------------------------------------------------------------------------------------------


def test_moments_of_the_normal_distribution() -> None:
    """Within five standard errors of 0, 1, 0 and 3."""
    count = 4_000_000
    z = ops.philox_normal((4, count // 4), [0, 1, 2**32, -1]).double().flatten()
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean().item() - expected) < 5 * math.sqrt(variance / count)


def test_shape_of_both_distributions() -> None:
    """The distance of Kolmogorov and Smirnov, which passes 1.95 / sqrt(n) once in a thousand draws."""
    count = 1_000_000
    uniform = ops.philox_uniform((1, count), [42]).double()[0]
    normal = ops.philox_normal((1, count), [43]).double()[0]
    for values in (uniform, (1 + torch.erf(normal / math.sqrt(2))) / 2):
        steps = torch.arange(count + 1, dtype=torch.float64) / count
        ordered = values.sort().values
        distance = torch.maximum((steps[1:] - ordered).max(), (ordered - steps[:-1]).max())
        assert distance < 1.95 / math.sqrt(count)


def test_numbers_are_not_correlated() -> None:
    """With their neighbours, of which two share a radius, and with those of other seeds and offsets."""
    count = 200_000
    rows = [ops.philox_normal((2, count), [5, 6], offset=offset) for offset in (0, 1)]
    a, b, c = rows[0][0], rows[0][1], rows[1][0]
    pairs = [(a, b), (a, c), (b, c), *((a[:-lag], a[lag:]) for lag in range(1, 9))]
    for x, y in (*pairs, *((x.square() - 1, y.square() - 1) for x, y in pairs)):
        correlation = (x.double() * y.double()).mean() / (x.std() * y.std())
        assert correlation.abs() < 5 / math.sqrt(count)


# ---- what a number depends on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sample_depends_on_its_seed_alone(device: Backend, dtype) -> None:
    for shape in ((4, 1), (4, 7), (4, 3, 11), (4, 1030)):
        seeds = seeds_for(shape).to(device.device)
        with device.run():
            together = ops.philox_normal(shape, seeds, dtype=dtype)
            for i in range(4):
                alone = ops.philox_normal((1, *shape[1:]), seeds[i : i + 1], dtype=dtype)
                assert torch.equal(alone[0], together[i])
            longer = ops.philox_normal((4, 2000), seeds, dtype=dtype)
        assert torch.equal(longer[:, : together[0].numel()], together.flatten(1))


def test_seeds_may_be_integers_and_strided() -> None:
    tensor = torch.tensor([[3, 0], [-4, 0], [2**40, 0]])[:, 0]
    want = ops.philox_normal((3, 50), [3, -4, 2**40])
    assert torch.equal(ops.philox_normal((3, 50), tensor), want)
    assert torch.equal(ops.philox_normal((3, 50), tensor, device="cpu"), want)


def test_large_outputs_are_streamed_to_the_same_bits() -> None:
    whole = ops.philox_normal((2, 1 << 22), [1, 2])
    assert torch.equal(whole[:, :4000], ops.philox_normal((2, 4000), [1, 2]))
    for dtype in DTYPES[1:]:
        large = ops.philox_normal((2, 1 << 22), [1, 2], dtype=dtype)
        # Ties may be rounded either way.
        torch.testing.assert_close(large, whole.to(dtype), rtol=torch.finfo(dtype).eps, atol=6e-8)


def test_same_bits_for_any_thread_count() -> None:
    code = """
import sys, torch, fastdiff, hashlib
torch.set_num_threads(int(sys.argv[1]))
digest = hashlib.sha256()
for dtype in (torch.float32, torch.bfloat16):
    for size in (20000, 100003):
        tensor = fastdiff.ops.philox_normal((3, size), [1, 2, 3], dtype=dtype)
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
print(digest.hexdigest())
"""
    digests = {
        subprocess.run([sys.executable, "-c", code, threads], check=True, capture_output=True, text=True).stdout
        for threads in ("1", "2", "3")
    }
    assert len(digests) == 1


def test_empty(device: Backend) -> None:
    for shape in ((0,), (0, 3), (2, 0, 4)):
        for function in (ops.philox_bits, ops.philox_uniform, ops.philox_normal):
            assert function(shape, range(shape[0]), device=device.device).shape == shape


# ---- torch's own contracts, and the public functions -----------------------------------------------------------------


def test_opcheck() -> None:
    seeds = torch.tensor([1, 2])
    for kind, dtype in ((0, torch.int64), (1, torch.float16), (2, torch.float32)):
        torch.library.opcheck(torch.ops.fastdiff.philox, ([2, 3, 5], seeds, 7, kind, dtype))


def test_compile() -> None:
    @torch.compile(fullgraph=True, dynamic=True)
    def noisy(x, seeds):
        return x + ops.philox_normal(x.shape, seeds, offset=1)

    for size in (5, 6, 9):
        x, seeds = torch.randn(2, size), torch.tensor([1, 2])
        torch.testing.assert_close(noisy(x, seeds), x + ops.philox_normal(x.shape, seeds, offset=1))


def test_reference_switch_and_float64() -> None:
    with fastdiff.use_reference():
        assert ops.philox_normal((2, 5), [1, 2], dtype=torch.float64).dtype == torch.float64
        assert ops.philox_uniform((2, 5), [1, 2], dtype=torch.float64).dtype == torch.float64
        assert torch.equal(ops.philox_bits((2, 5), [1, 2]), reference.philox_bits((2, 5), [1, 2]))


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, r"shape must be \(N, \*\) of sizes from 0 on, got \(\)", {"shape": ()}),
        (ValueError, r"shape must be .*got \(2, -1\)", {"shape": (2, -1)}),
        (ValueError, "seeds must have one entry for each of the 2 samples, got 3", {"seeds": [1, 2, 3]}),
        (ValueError, r"for each of the 2 samples, got shape \(2, 1\)", {"seeds": torch.ones(2, 1).long()}),
        (ValueError, r"seeds must be from -2\*\*63 to 2\*\*63 - 1, got 9223372036854775808", {"seeds": [1, 2**63]}),
        (TypeError, "seeds must be integers, got float", {"seeds": [1, 2.0]}),
        (TypeError, "seeds must be int64, got torch.int32", {"seeds": torch.ones(2, dtype=torch.int32)}),
        (TypeError, "offset must be an int, got float", {"offset": 1.0}),
        (ValueError, r"offset must be from 0 to 2\*\*63 - 1, got -1", {"offset": -1}),
        (
            ValueError,
            "device must be that of the seeds, cpu, got meta",
            {"seeds": torch.tensor([1, 2]), "device": "meta"},
        ),
    ],
)
def test_wrong_arguments(error, message, change) -> None:
    arguments = {"shape": (2, 3), "seeds": [1, 2], **change}
    for function in (ops.philox_bits, ops.philox_uniform, ops.philox_normal):
        with pytest.raises(error, match=message):
            function(**arguments)


def test_wrong_dtypes() -> None:
    for function, dtype in itertools.product((ops.philox_uniform, ops.philox_normal), (torch.float64, torch.int64)):
        with pytest.raises(TypeError, match=f"dtype must be float32, bfloat16 or float16, got {dtype}"):
            function((2, 3), [1, 2], dtype=dtype)


def test_wrong_arguments_to_the_raw_op_raise() -> None:
    op, seeds = torch.ops.fastdiff.philox, torch.tensor([1, 2])
    for arguments, message in (
        (([], seeds, 0, 2, torch.float32), "shape must have a batch"),
        (([3, 2], seeds, 0, 2, torch.float32), r"seeds must be \(batch\) int64"),
        (([2, 2], seeds.int(), 0, 2, torch.float32), r"seeds must be \(batch\) int64"),
        (([2, 2], seeds, 0, 3, torch.float32), "kind must be 0, 1 or 2"),
        (([2, 2], seeds, 0, 0, torch.float32), "bits must be int64"),
        (([2, 2], seeds, 0, 2, torch.int64), "dtype must be float32, bfloat16 or float16"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(*arguments)


@pytest.mark.parametrize("isa", fastdiff.build_info().get("cpu_isas_built", []))
def test_every_instruction_set(isa) -> None:
    instruction_sets.run_tests(isa, __file__, "known or bits_are or uniform_is or exact or digits or streamed or alone")
