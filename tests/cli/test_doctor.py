from __future__ import annotations

import json
import os
import subprocess

import pytest

import fastdiff
from fastdiff.cli import doctor

EXTENSION = fastdiff.build_info()["extension"]
needs_extension = pytest.mark.skipif(not EXTENSION, reason="needs the compiled extension")


@needs_extension
def test_says_what_runs(run):
    result, info = run("doctor"), fastdiff.build_info()
    assert result.code == 0 and not result.err
    for words in (info["torch"], f"{info['cpu_isa']} in use", "allocator", "result     the kernels work"):
        assert words in result.out
    for isa in set(info["cpu_isas_built"]) - set(info["cpu_isas_supported"]):
        assert f"{isa} off: this CPU does not have it" in result.out
    if info["cuda_off_reason"] is not None:
        assert f"off: {info['cuda_off_reason']}" in result.out


@needs_extension
def test_json_has_build_info_and_the_checks(run):
    result = run("doctor", "--json")
    report = json.loads(result.out)
    assert result.code == 0 and report["ok"]
    assert report["checks"]["cpu"]["ok"]
    assert fastdiff.build_info().items() <= report.items()


@needs_extension
def test_a_kernel_that_computes_something_else_is_found(run, monkeypatch):
    definition = fastdiff.reference.group_norm_silu
    monkeypatch.setattr(fastdiff.reference, "group_norm_silu", lambda x, groups: definition(x, groups) + 1e-3)
    result = run("doctor")
    assert result.code == 1
    assert "WRONG, 1.0e-03 from its definition" in result.out and "the kernels do NOT work" in result.out


@needs_extension
def test_a_kernel_that_raises_is_the_finding(run, monkeypatch):
    def broken(x, groups):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(fastdiff.ops, "group_norm_silu", broken)
    result = run("doctor")
    assert result.code == 1 and "RuntimeError: no kernel image is available" in result.out


def test_an_extension_that_does_not_load_is_exit_code_1_with_the_reason(script, tmp_path):
    environment = os.environ | {"FASTDIFF_CPU_ISA": "avx1024"}

    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([script, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path)

    plain, machine = start("doctor"), start("doctor", "--json")
    assert plain.returncode == machine.returncode == 1
    assert "kernels    not loaded: " in plain.stdout and "the kernels do NOT work" in plain.stdout
    report = json.loads(machine.stdout)
    assert not report["ok"] and not report["extension"] and report["extension_error"]
    if EXTENSION:
        assert "avx1024" in report["extension_error"]

    demo = start("demo")
    assert demo.returncode == 1 and demo.stderr.startswith("fastdiff demo: error: the compiled kernels cannot be used")
    assert len(demo.stderr.splitlines()) == 1 and list(tmp_path.iterdir()) == []


def test_cuda_that_is_on_is_described():
    report = doctor.examine() | {
        "cuda_off_reason": None,
        "cuda_built": True,
        "cuda_version": "13.0",
        "cuda_archs": "80 90 120",
        "cuda_devices": ["cuda:0 NVIDIA H100, sm_90"],
    }
    text = doctor.describe(report)
    assert "CUDA       on, built with CUDA 13.0 for 80 90 120" in text and "cuda:0 NVIDIA H100, sm_90" in text
