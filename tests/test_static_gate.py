"""The static gate: no CUDA kernel spills or uses local memory, and the vectorised ones move 16 bytes at a time."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import static_gate
from static_gate import Kernel, Rule

pytestmark = pytest.mark.skipif(
    static_gate.missing_tools() is not None, reason=f"static gate: {static_gate.missing_tools()}"
)

SOURCES = sorted((static_gate.ROOT / "csrc" / "cuda").glob("*.cu"))
# The last template argument of a kernel that touches activations says whether they are aligned. Four loads are in
# flight at a time. The unaligned twin loads its affine constants by 128 bits, too: those must not pass for activations.
UNALIGNED = (", true>(", ", false>(")
# Tensor cores, the loads of their operands as they lie and transposed, and copies past the registers.
TENSOR_CORES = (
    (r"HMMA\.16816\.F32.*", 32),
    (r"LDSM\.16\.M88\.4", 6),
    (r"LDSM\.16\.MT88\.4", 8),
    (r"LDGSTS\..*128", 2),
)
RULES = (
    Rule(r"::attention_(resident|streaming|query_gradient|key_gradients)_kernel<__", 0, 1, TENSOR_CORES),
    Rule(
        r"::attention_(streaming|query_gradient|key_gradients)_kernel<float",
        *(0, 1, ((r"FFMA", 128), (r"LDS\.128", 8), (r"LDGSTS\..*128", 2))),
    ),
    Rule(r"::(moments|sums)_kernel<.*, true>", loads_128=4, twin=UNALIGNED),
    Rule(r"::(apply|gradient)_kernel<.*, true>", loads_128=4, stores_128=2, twin=UNALIGNED),
    Rule(r"::resident_kernel<.*, true>", stores_128=2, contains=((r"LDGSTS\..*128", 1),), twin=UNALIGNED),
    Rule(r"::resident_backward_kernel<.*, true>", stores_128=2, contains=((r"LDGSTS\..*128", 2),), twin=UNALIGNED),
    # A lane has two vectors of a head: two heads of x forward, x and dy backward. And as many cosines and sines.
    Rule(r"::norm_rope(_backward)?_kernel<float, .*, true>", loads_128=4 + 4, stores_128=2),
    Rule(r"::norm_rope(_backward)?_kernel<__.*, true>", loads_128=4 + 8, stores_128=2),
    # Their alignment is known at run time: without a twin, modulations of 128 bits count, too.
    Rule(r"::geglu_kernel<", loads_128=2, stores_128=1),
    Rule(r"::geglu_backward_kernel<", loads_128=3, stores_128=2),
    Rule(r"::gate_residual_kernel<", loads_128=3, stores_128=1),
    Rule(r"::gate_residual_backward_kernel<", loads_128=3, stores_128=1),
    Rule(r"::gate_residual_sums_kernel<", loads_128=2),
    # Four vectors of x, residual and gate are loaded (of 16 bits two); as many of the sum and of y are stored.
    Rule(r"::layer_norm_modulate_kernel<float, 4>", loads_128=12, stores_128=8),
    Rule(r"::layer_norm_modulate_kernel<__.*, 2>", loads_128=6, stores_128=4),
    Rule(r"::layer_norm_modulate_kernel<.*, 0>", loads_128=3, stores_128=2),
    Rule(r"::layer_norm_modulate_backward_kernel<", loads_128=6, stores_128=2),
    Rule(r"::layer_norm_modulate_sums_kernel<", loads_128=4),
    # All operands of sampler_step at most: sample, two predictions and four tensors of history; result and model.
    Rule(r"::sampler_step_kernel<(float, float|__\w+, __\w+)>", loads_128=5 + 2, stores_128=2),
    Rule(r"::sampler_step_kernel<float, __", loads_128=2 * 5 + 2, stores_128=2 * 2),
    Rule(r"::sampler_step_kernel<__\w+, float>", loads_128=5 + 2 * 2, stores_128=2),
    Rule(r"::deviation_kernel<", loads_128=2),
    Rule(r"::add_noise_kernel<", loads_128=2, stores_128=2),
    Rule(r"::philox_numbers_kernel<", stores_128=1),
)


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    return static_gate.kernels_of(SOURCES)


def test_kernels_pass(kernels: list[Kernel]) -> None:
    print("\n" + static_gate.table(kernels))
    found = [
        f"{static_gate.short_name(kernel.name)} on sm_{kernel.architecture} {violation}"
        for kernel in kernels
        for violation in static_gate.violations(kernel, RULES, kernels)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.pattern)
@pytest.mark.parametrize("architecture", static_gate.ARCHITECTURES)
def test_each_rule_covers_kernels(kernels: list[Kernel], rule: Rule, architecture: int) -> None:
    """A renamed kernel must not slip out from under its rule."""
    names = [kernel.name for kernel in kernels if kernel.architecture == architecture]
    assert any(re.search(rule.pattern, name) for name in names)


PLANTED = {
    "clean": "st16(y + 4 * threadIdx.x, ld16(x + 4 * threadIdx.x));",
    # Indexed by a run-time value and too large for a chain of selects, so it cannot live in registers.
    "local_memory": """
        float values[128];
        values[0] = x[threadIdx.x];
        for (int i = 1; i < 128; ++i) values[i] = values[i - 1] * x[threadIdx.x + 32 * i];
        st16(y, ld16(x));
        y[threadIdx.x] = values[(n + threadIdx.x) & 127];""",
    # 64 live values and a limit of 32 registers.
    "spill": """
        float values[64];
        #pragma unroll
        for (int i = 0; i < 64; ++i) values[i] = x[threadIdx.x + 32 * i];
        __syncthreads();
        st16(y, ld16(x));
        #pragma unroll
        for (int i = 0; i < 64; ++i) y[threadIdx.x + 32 * i] = values[i] * values[(i * 37 + 11) % 64];""",
    "scalar_load": """
        const float* p = x + 4 * threadIdx.x;
        st16(y + 4 * threadIdx.x, make_uint4(p[0] > 0, p[n] > 0, p[2 * n] > 0, p[3 * n] > 0));""",
    "scalar_store": """
        const uint4 bits = ld16(x + 4 * threadIdx.x);
        y[threadIdx.x] = __uint_as_float(bits.x ^ bits.y ^ bits.z ^ bits.w);""",
}
PLANTED_RULE = Rule("planted", loads_128=1, stores_128=1)


def planted_kernel(name: str, directory: Path) -> Kernel:
    source = directory / f"{name}.cu"
    bounds = "1024, 2" if name == "spill" else "256"
    source.write_text(
        f"""#include "cuda/platform.cuh"
        using namespace fastdiff;
        __global__ void __launch_bounds__({bounds}) planted(const float* x, float* y, int n) {{ {PLANTED[name]} }}"""
    )
    (kernel,) = static_gate.kernels_of([source], [90])
    return kernel


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("clean", []),
        ("local_memory", ["stack", "local memory"]),
        ("spill", ["stack", "spills", "local memory"]),
        ("scalar_load", ["LDG.128"]),
        ("scalar_store", ["STG.128"]),
    ],
)
def test_planted_fault_is_rejected(name: str, expected: list[str], tmp_path: Path) -> None:
    found = static_gate.violations(planted_kernel(name, tmp_path), [PLANTED_RULE])
    assert len(found) == len(expected)
    assert all(word in violation for word, violation in zip(expected, found, strict=True)), found


def test_only_accesses_beyond_the_twin_count(tmp_path: Path) -> None:
    kernel = planted_kernel("clean", tmp_path)
    aligned = replace(kernel, name="planted<true>(float*)")
    unaligned = replace(kernel, name="planted<false>(float*)")
    rule = Rule("planted<true>", loads_128=1, twin=("<true>", "<false>"))
    assert static_gate.violations(aligned, [rule], [aligned, unaligned])
    without_loads = replace(unaligned, instructions=Counter())
    assert not static_gate.violations(aligned, [rule], [aligned, without_loads])


def test_missing_instructions_are_rejected(tmp_path: Path) -> None:
    kernel = planted_kernel("clean", tmp_path)
    assert not static_gate.violations(kernel, [Rule("planted", contains=((r"LDG\..*", 1),))])
    (violation,) = static_gate.violations(kernel, [Rule("planted", contains=TENSOR_CORES[:1])])
    assert "HMMA" in violation


def test_kernel_properties_are_read(tmp_path: Path) -> None:
    kernel = planted_kernel("clean", tmp_path)
    assert kernel.name.startswith("planted(") and kernel.architecture == 90
    assert 4 <= kernel.registers <= 64 and kernel.max_threads == 256 and kernel.occupancy == 1.0
    assert kernel.loads_128 == 1 and kernel.stores_128 == 1
    assert planted_kernel("spill", tmp_path).registers <= 32
