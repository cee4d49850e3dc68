"""One case from operands to numbers: prove every contender right, time them, relate the times to the floor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor

import fastdiff
from bench import openvino_peer
from bench.device import Device
from bench.kernels import OPS
from bench.kernels.case import Case, Problem
from bench.timing import Budget, Timing, interleave
from bench.worker import WrongResult

# The ratio is that of the better of these. OpenVINO, where it is there, has a ratio of its own.
BASELINES = ("eager", "compile")
ALL_BASELINES = (*BASELINES, openvino_peer.NAME)
CACHES = ("warm", "cold")

# Largest error allowed, as a part of the largest expected value, or of 1 (the operands are of unit scale) where all the
# expected values are smaller: a time bias that is alone in its group has no gradient at all. This refuses a wrong
# result and no more; the tests hold the kernels to much tighter bounds.
_ERROR_LIMITS = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
# Gradients of per-channel operands sum a rounded value a pixel: eager PyTorch is 6e-2 off in bf16 at VAE size.
_ERROR_FACTOR_OF_SUMS = 4


def measure_case(case: Case, device: Device, *, baselines: tuple[str, ...], budget: Budget) -> dict[str, object]:
    """The record of one case, ready for JSON."""
    torch._dynamo.reset()  # else the limit on recompilations of one function would silently bring eager mode back
    with torch.set_grad_enabled(case.direction == "backward"):
        problem = OPS[case.op].build(case, _implementations(case, baselines), device.name)
        errors, left_out = check_contenders(case, problem)
        contenders = {**{name: problem.contenders[name] for name in errors}, "copy": problem.copy}
        prepares = {"warm": lambda call: call(), "cold": lambda _: device.flush_cache()}
        caches = {}
        for cache in CACHES:
            timings = interleave(contenders, device.measure, budget, prepares[cache])
            caches[cache] = relate(timings, problem.unit_bytes, problem.floor_units, device.peak_gb_per_s)
            if problem.flops:
                caches[cache]["gflop_per_s"] = problem.flops / timings["fastdiff"].median_ms / 1e6
    return {
        "op": case.op,
        "direction": case.direction,
        "shape": list(case.shape),
        "shape_class": case.shape_class,
        "dtype": case.dtype,
        "layout": case.layout,
        "unit_bytes": problem.unit_bytes,
        "floor_units": problem.floor_units,
        "errors": errors,
        "left_out": left_out,
        "caches": caches,
    }


def _implementations(case: Case, baselines: tuple[str, ...]) -> dict[str, Callable[..., Tensor]]:
    definition = getattr(fastdiff.reference, case.op)
    implementations = {"fastdiff": getattr(fastdiff.ops, case.op)}
    if "eager" in baselines:
        implementations["eager"] = definition
    if "compile" in baselines:
        implementations["compile"] = torch.compile(definition, dynamic=False, fullgraph=True)
    if openvino_peer.NAME in baselines and case.direction == "forward":
        implementations[openvino_peer.NAME] = openvino_peer.Converted(definition, torch.get_num_threads())
    return implementations


Errors = dict[str, dict[str, float]]


def check_contenders(case: Case, problem: Problem) -> tuple[dict[str, Errors], dict[str, str]]:
    """Errors of every contender against float64, by contender and output. Raises WrongResult.

    OpenVINO has not every op, and is not ours to mend: where it fails, it is left out. The second result says why.
    This is also where torch.compile and OpenVINO compile, outside the timing.
    """
    expected = problem.expected()
    errors, left_out = {}, {}
    for name in problem.contenders:
        try:
            errors[name] = _check(case, problem, name, expected)
        except (WrongResult, openvino_peer.NotConverted) as error:
            if name != openvino_peer.NAME:
                raise
            left_out[name] = str(error)
    return errors, left_out


def _check(case: Case, problem: Problem, name: str, expected: tuple[Tensor, ...]) -> Errors:
    errors = {}
    for output, got, want in zip(problem.output_names, problem.contenders[name](), expected, strict=True):
        absolute = (got.double() - want).abs().max().item()
        relative = absolute / max(want.abs().max().item(), 1.0)
        errors[output] = {"max_abs": absolute, "relative": relative}
        is_sum = want.dim() < len(case.shape)
        limit = _ERROR_LIMITS[case.dtype] * (_ERROR_FACTOR_OF_SUMS if is_sum else 1)
        if not relative <= limit:  # NaN is refused too
            raise WrongResult(
                f"{case}: {name} gives a wrong {output}: largest error {absolute:.3g}, "
                f"{relative:.3g} of the largest value; allowed is {limit:g}"
            )
    return errors


def relate(
    timings: dict[str, Timing], unit_bytes: int, floor_units: int, peak_gb_per_s: float | None
) -> dict[str, object]:
    """Fastdiff against the better of eager and compile, against OpenVINO, and against the floor.

    The floor is `floor_units` passes over the activation: at the bandwidth of memory where the device tells it, else
    at the pace of the copy (two passes) in the same state of the cache.
    """
    baselines = {name: timings[name].median_ms for name in BASELINES if name in timings}
    best = min(baselines, key=baselines.__getitem__)
    fastdiff_ms = timings["fastdiff"].median_ms
    gb_per_s = floor_units * unit_bytes / fastdiff_ms / 1e6
    pass_ms = unit_bytes / peak_gb_per_s / 1e6 if peak_gb_per_s else timings["copy"].median_ms / 2
    result = {
        "contenders": {name: asdict(timing) for name, timing in timings.items()},
        "best_baseline": best,
        "ratio": baselines[best] / fastdiff_ms,
        "ratio_of_minima": min(timings[name].min_ms for name in baselines) / timings["fastdiff"].min_ms,
        "floor_from": "peak bandwidth" if peak_gb_per_s else "copy",
        "floor_2u_ms": 2 * pass_ms,
        "floor_3u_ms": 3 * pass_ms,
        "floor_ms": floor_units * pass_ms,
        "times_floor": fastdiff_ms / (floor_units * pass_ms),
        "percent_of_floor": 100 * floor_units * pass_ms / fastdiff_ms,
        "gb_per_s": gb_per_s,
    }
    if openvino_peer.NAME in timings:
        result["openvino_ratio"] = timings[openvino_peer.NAME].median_ms / fastdiff_ms
    return result
