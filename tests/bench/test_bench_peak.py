"""The measured peak of one core."""

import subprocess
import time

import pytest
import torch

import fastdiff
from bench import peak


@pytest.fixture
def measure():
    """Not what an earlier test has measured."""
    peak.measure_peak.cache_clear()
    yield peak.measure_peak
    peak.measure_peak.cache_clear()


def test_a_matrix_product_comes_near_and_not_above(measure) -> None:
    gflop_per_s = measure().gflop_per_s
    threads, size = torch.get_num_threads(), 512  # short enough for a busy machine to leave one undisturbed
    a, b = torch.randn(2, size, size)
    try:
        torch.set_num_threads(1)
        seconds = []
        for _ in range(50):
            start = time.perf_counter()
            torch.mm(a, b)
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    assert 0.3 < 2e-9 * size**3 / min(seconds) / gflop_per_s["fp32"] < 1.05


def test_bfloat16_products_are_measured_where_there_are_any(measure) -> None:
    gflop_per_s = measure().gflop_per_s
    assert set(gflop_per_s) == {"fp32", "bf16", "fp16"}
    isa = fastdiff.build_info()["cpu_isas_supported"][-1]
    at_least = {"avx512_bf16": 1.2, "amx": 4}
    if isa in at_least:
        assert gflop_per_s["bf16"] > at_least[isa] * gflop_per_s["fp32"]
    else:
        assert gflop_per_s["bf16"] == gflop_per_s["fp32"]
    assert gflop_per_s["fp16"] == gflop_per_s["fp32"]


def test_it_is_that_of_one_core_times_the_threads(measure) -> None:
    one = measure()
    assert one.times(3).gflop_per_s["bf16"] == pytest.approx(3 * one.gflop_per_s["bf16"])


def test_without_a_compiler_it_says_so(measure, monkeypatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    assert measure() == peak.Peak(None, "no C++ compiler was found")
    assert measure().times(2).reason == "no C++ compiler was found"


@pytest.mark.parametrize("compiler", ("/nowhere/c++", "false"))
def test_a_compiler_that_fails_is_named(measure, monkeypatch, compiler) -> None:
    monkeypatch.setenv("CXX", compiler)
    assert measure().gflop_per_s is None
    assert compiler in measure().reason


def test_every_instruction_set_of_the_kernels_has_its_flags(tmp_path) -> None:
    assert set(fastdiff.build_info()["cpu_isas_built"]) <= set(peak.FLAGS)
    for isa in fastdiff.build_info()["cpu_isas_supported"]:
        program = tmp_path / isa
        subprocess.run(peak.build_command("c++", isa, program), check=True)
