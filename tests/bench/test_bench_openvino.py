"""OpenVINO as a contender: results of the definitions, and what it is told of them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.kernels import OPS
from bench.kernels.case import Case
from bench.kernels.measure import check_contenders
from bench.openvino_peer import Converted, NotConverted, available
from fastdiff import reference

if not available():  # asked without importing it, which the benchmark does in its own way
    pytest.skip("openvino is not installed", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {
    "add_noise": (2, 4, 5, 3),
    "attention": (2, 2, 9, 8, 5),
    "gate_residual": (2, 5, 16),
    "geglu": (2, 5, 16),
    "group_norm_silu": (2, 64, 3, 5),
    "layer_norm_modulate": (2, 5, 16),
    "philox_normal": (2, 4, 5, 3),
    "qk_norm_rope": (2, 5, 3, 8),
    "sampler_step": (2, 4, 5, 3),
    "timestep_embedding": (3, 16),
}


def test_what_it_cannot_compute_is_left_out_with_a_reason() -> None:
    case = Case("philox_normal", "forward", SHAPES["philox_normal"], "custom", "fp32", "NCHW")
    contenders = {"openvino": Converted(reference.philox_normal, threads=1)}
    errors, left_out = check_contenders(case, OPS["philox_normal"].build(case, contenders, "cpu"))
    assert not errors and "no torch.int64 kernels" in left_out["openvino"]


@pytest.mark.parametrize("op", sorted(set(OPS) - {"philox_normal"}))
@pytest.mark.parametrize("dtype", ("fp32", "bf16"))
def test_gives_the_definitions_results(op, dtype) -> None:
    case = Case(op, "forward", SHAPES[op], "custom", dtype, "NCHW")
    problem = OPS[op].build(case, {"openvino": Converted(getattr(reference, op), threads=1)}, "cpu")
    with torch.no_grad():
        errors, left_out = check_contenders(case, problem)
    assert set(errors) == {"openvino"} and not left_out


def test_inputs_are_read_again_and_weights_are_constants() -> None:
    calls = []

    def scale(x, factor, weight, *, offset):
        calls.append(x.shape)
        return factor * x * weight + offset

    converted = Converted(scale, threads=1)
    weight = torch.randn(4)
    for _ in range(2):
        x, offset = torch.randn(3, 4), torch.randn(3, 4)
        torch.testing.assert_close(converted(x, 2.0, weight, offset=offset), 2 * x * weight + offset)
    once = list(calls)
    converted(x, 2.0, weight, offset=offset)
    assert calls == once
    before = converted(x, 2.0, weight.clone(), offset=offset).clone()
    torch.testing.assert_close(converted(x, 2.0, torch.zeros(4), offset=offset), before)


def test_nothing_is_reported_to_its_makers() -> None:
    """In a process of its own, as measurements are."""
    code = (
        "import sys, torch; from bench.openvino_peer import Converted; Converted(torch.exp, 1)(torch.ones(2, 2)); "
        "print(sys.modules['openvino.tools.ovc.telemetry_utils'].tm.__name__)"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "openvino.tools.ovc.telemetry_stub"


@pytest.mark.parametrize(
    ("function", "operand", "reason"),
    (
        (torch.exp, torch.ones(2, 4).half(), "no torch.float16 kernels"),
        (torch.exp, torch.ones(2, 4).mT, "contiguous"),
        (torch.linalg.cholesky, torch.eye(2), "No conversion rule found .*cholesky"),
    ),
)
def test_what_it_cannot_run(function, operand, reason) -> None:
    with pytest.raises(NotConverted, match=reason):
        Converted(function, threads=1)(operand)
