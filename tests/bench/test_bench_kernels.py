"""Cases, the guard against wrong results, the relation to the floor and the summary."""

import pytest
import torch

import fastdiff
from bench.kernels import OPS
from bench.kernels.case import Case
from bench.kernels.measure import check_contenders, relate
from bench.kernels.summary import summarize
from bench.kernels.tables import run_tables
from bench.openvino_peer import NotConverted
from bench.table import Table
from bench.timing import Timing
from bench.worker import WrongResult

SHAPE = (2, 64, 3, 5)


def case(direction="forward", dtype="fp32", layout="NCHW"):
    return Case("group_norm_silu", direction, SHAPE, "custom", dtype, layout)


def build(case, **implementations):
    return OPS[case.op].build(case, implementations, "cpu")


def test_standard_shapes_are_the_benchmarked_ones():
    op = OPS["group_norm_silu"]
    assert op.shapes["unet"] == ((2, 320, 64, 64), (2, 640, 32, 32), (2, 1280, 16, 16))
    assert op.shapes["vae"] == ((1, 128, 512, 512),)
    assert op.class_of((1, 128, 512, 512)) == "vae"
    assert op.class_of(SHAPE) == "custom"


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_operands_have_the_layout_and_dtype_of_the_case(direction, layout):
    seen = {}

    def spy(x, *args, **kwargs):
        seen["x"] = x
        y = fastdiff.reference.group_norm_silu(x, *args, **kwargs)
        if y.requires_grad:
            y.register_hook(lambda dy: seen.update(dy=dy))
        return y

    problem = build(case(direction, "bf16", layout), spy=spy)
    with torch.set_grad_enabled(direction == "backward"):
        outputs = problem.contenders["spy"]()
    assert set(seen) == ({"x", "dy"} if direction == "backward" else {"x"})
    for operand in seen.values():
        assert operand.dtype == torch.bfloat16
        assert operand.is_contiguous(memory_format=torch.channels_last) == (layout == "NHWC")
    assert problem.unit_bytes == 2 * 2 * 64 * 15
    assert len(outputs) == len(problem.output_names) == (4 if direction == "backward" else 1)
    assert torch.equal(problem.copy(), seen["x"])


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_right_contender_passes_with_its_errors_reported(direction):
    problem = build(case(direction), eager=fastdiff.reference.group_norm_silu)
    errors, left_out = check_contenders(case(direction), problem)
    assert not left_out
    assert set(errors["eager"]) == set(problem.output_names)
    assert all(0 < error["max_abs"] < 1e-3 for error in errors["eager"].values())


def forgets_time_bias(x, groups, weight, bias, *, time_bias):
    return fastdiff.reference.group_norm_silu(x, groups, weight, bias, time_bias=0.9 * time_bias)


def gives_nan(x, groups, weight, bias, *, time_bias):
    return fastdiff.reference.group_norm_silu(x, groups, weight, bias, time_bias=time_bias) * float("nan")


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("wrong", [forgets_time_bias, gives_nan])
def test_a_wrong_contender_is_refused_by_name(wrong, direction):
    problem = build(case(direction), right=fastdiff.reference.group_norm_silu, broken=wrong)
    with pytest.raises(WrongResult, match=f"{direction} 2x64x3x5 fp32 NCHW: broken gives a wrong"):
        check_contenders(case(direction), problem)


def test_openvino_is_left_out_with_the_reason() -> None:
    for broken, reason in ((forgets_time_bias, "openvino gives a wrong y"), (is_not_converted, "no such op")):
        problem = build(case(), right=fastdiff.reference.group_norm_silu, openvino=broken)
        errors, left_out = check_contenders(case(), problem)
        assert set(errors) == {"right"}
        assert set(left_out) == {"openvino"} and reason in left_out["openvino"]


def is_not_converted(*args, **kwargs):
    raise NotConverted("no such op")


def timing(median_ms, min_ms=None):
    return Timing(median_ms, median_ms if min_ms is None else min_ms, 5)


def test_the_floor_follows_the_copy_where_no_bandwidth_is_known():
    timings = {"fastdiff": timing(6.0, 5.0), "eager": timing(30.0), "compile": timing(24.0, 20.0), "copy": timing(2.0)}
    result = relate(timings, unit_bytes=4_000_000, floor_units=3, peak_gb_per_s=None)
    assert result["best_baseline"] == "compile"
    assert result["ratio"] == pytest.approx(4.0)
    assert result["ratio_of_minima"] == pytest.approx(4.0)
    assert result["floor_3u_ms"] == result["floor_ms"] == pytest.approx(3.0)
    assert result["times_floor"] == pytest.approx(2.0)
    assert result["percent_of_floor"] == pytest.approx(50.0)
    assert result["gb_per_s"] == pytest.approx(2.0)  # 12 MB in 6 ms


def test_openvino_has_a_ratio_of_its_own() -> None:
    timings = {"fastdiff": timing(2.0), "eager": timing(8.0), "openvino": timing(3.0), "copy": timing(1.0)}
    result = relate(timings, unit_bytes=1, floor_units=3, peak_gb_per_s=None)
    assert (result["best_baseline"], result["ratio"], result["openvino_ratio"]) == ("eager", 4.0, 1.5)
    del timings["openvino"]
    assert "openvino_ratio" not in relate(timings, unit_bytes=1, floor_units=3, peak_gb_per_s=None)


def test_the_floor_follows_the_peak_bandwidth_where_it_is_known():
    timings = {"fastdiff": timing(1.0), "eager": timing(3.0), "copy": timing(0.5)}
    result = relate(timings, unit_bytes=1_000_000_000, floor_units=5, peak_gb_per_s=10_000)
    assert result["floor_from"] == "peak bandwidth"
    assert result["floor_ms"] == pytest.approx(0.5)
    assert result["percent_of_floor"] == pytest.approx(50.0)


def run(allocator, threads, fastdiff_ms, eager_ms):
    """Two records, of both shape classes, the second ten times as long and with eager only half as far behind."""
    records = []
    for shape, shape_class, factor, behind in (((2, 320, 64, 64), "unet", 1, 1), ((1, 128, 512, 512), "vae", 10, 0.5)):
        contenders = {
            "fastdiff": {"median_ms": fastdiff_ms * factor, "min_ms": fastdiff_ms * factor / 2},
            "eager": {"median_ms": eager_ms * factor * behind, "min_ms": eager_ms * factor * behind},
            "copy": {"median_ms": 1.0 * factor, "min_ms": 1.0 * factor},
        }
        records.append(
            {
                "op": "group_norm_silu",
                "direction": "forward",
                "shape": list(shape),
                "shape_class": shape_class,
                "dtype": "fp32",
                "layout": "NCHW",
                "caches": {"warm": {"contenders": contenders}, "cold": {"contenders": contenders}},
            }
        )
    return {"allocator": allocator, "threads": threads, "records": records}


def test_summary_of_ratios():
    entry = summarize([run("tuned", 1, fastdiff_ms=1.0, eager_ms=8.0)])["ratios"][0]
    assert (entry["dtype"], entry["cache"]) == ("fp32", "warm")
    assert entry["geometric_mean"] == pytest.approx(32**0.5)  # of 8 and 4
    assert entry["geometric_mean_of_minima"] == pytest.approx(2 * 32**0.5)
    assert entry["minimum"] == {"unet": pytest.approx(8.0), "vae": pytest.approx(4.0)}


def test_summary_of_thread_scaling():
    runs = [run("tuned", 2, fastdiff_ms=1.0, eager_ms=8.0), run("tuned", 1, fastdiff_ms=1.8, eager_ms=8.0)]
    entries = summarize(runs)["scaling"]
    assert {tuple(entry["threads"]) for entry in entries} == {(1, 2)}
    assert all(entry["speedup"]["fastdiff"] == pytest.approx(1.8) for entry in entries)
    assert all(entry["speedup"]["copy"] == pytest.approx(1.0) for entry in entries)


def test_summary_against_the_default_allocator():
    runs = [run("tuned", 1, fastdiff_ms=1.0, eager_ms=8.0), run("default", 1, fastdiff_ms=2.0, eager_ms=24.0)]
    entry = summarize(runs)["against_default"][0]
    assert entry["minimum"] == {"unet": pytest.approx(24.0), "vae": pytest.approx(12.0)}


def test_a_single_run_has_nothing_to_compare_across_runs():
    summary = summarize([run("tuned", 1, 1.0, 8.0)])
    assert summary["scaling"] == summary["against_default"] == []


def test_sampler_step_is_measured_with_history_and_its_model():
    case = Case("sampler_step", "forward", SHAPE, "custom", "bf16", "NCHW")
    seen = {}

    def forgets_history(*args, history):
        seen.update(history=history)
        return fastdiff.reference.sampler_step(*args)

    problem = build(case, right=fastdiff.ops.sampler_step)
    errors = check_contenders(case, problem)[0]["right"]
    assert set(errors) == {"sample", "model"} and errors["sample"]["relative"] < 1e-2
    assert problem.floor_units == 5 and problem.unit_bytes == 2 * 2 * 64 * 15
    with pytest.raises(WrongResult, match="broken gives a wrong sample"):
        check_contenders(case, build(case, broken=forgets_history))
    assert len(seen["history"]) == 1


def attention_run(peak):
    """Two cases, of which OpenVINO ran one."""
    records = []
    for dtype, openvino in (("fp32", {"openvino": timing(3.0)}), ("bf16", {})):
        timings = {"fastdiff": timing(2.0), "eager": timing(8.0), **openvino, "copy": timing(1.0)}
        result = relate(timings, unit_bytes=1000, floor_units=2, peak_gb_per_s=None) | {"gflop_per_s": 59.0}
        if peak and peak["gflop_per_s"]:
            result["percent_of_peak"] = 5900 / peak["gflop_per_s"][dtype]
        left_out = {} if openvino else {"openvino": "too new"}
        case = {"op": "attention", "direction": "forward", "shape": [1, 2], "dtype": dtype, "layout": "NCHW"}
        records.append(case | {"floor_units": 2, "left_out": left_out, "caches": {"warm": result, "cold": result}})
    environment = {"device": "cpu", "device_model": "a processor", "fastdiff": {}}
    return {"allocator": "tuned", "threads": 2, "environment": environment, "peak": peak, "records": records}


def test_table_shows_peak_and_openvino() -> None:
    (table,) = run_tables(attention_run({"gflop_per_s": {"fp32": 118.0, "bf16": 236.0}, "reason": None}))
    columns = [dict(zip(table.headers, row, strict=True)) for row in table.rows[::2]]
    assert [(c["openvino"], c["ratio"], c["ov ratio"]) for c in columns] == [
        ("3.000", "4.00", "1.50"),
        ("-", "4.00", "-"),
    ]
    assert [(c["GFLOP/s"], c["% peak"]) for c in columns] == [("59", "50"), ("59", "25")]
    assert table.notes == ("without openvino: too new", "peak of 2 threads, in GFLOP/s: fp32 118, bf16 236")
    assert table.text().endswith("\n".join(table.notes)) and all(note in table.html() for note in table.notes)


def test_table_says_why_there_is_no_peak() -> None:
    (table,) = run_tables(attention_run({"gflop_per_s": None, "reason": "no C++ compiler was found"}))
    assert table.headers[-1] == "% peak" and table.rows[0][-1] == "-"
    assert "no peak: no C++ compiler was found" in table.notes
    (on_a_gpu,) = run_tables(attention_run(None))
    assert on_a_gpu.headers[-1] == "GFLOP/s"


@pytest.mark.parametrize("op", ["add_noise", "philox_normal"])
def test_other_samplers_ops_are_held_to_their_definitions(op):
    case = Case(op, "forward", SHAPE, "custom", "bf16", "NCHW")
    problem = build(case, right=getattr(fastdiff.ops, op))
    assert all(error["relative"] < 1e-2 for error in check_contenders(case, problem)[0]["right"].values())

    def broken(*args, **kwargs):
        outputs = getattr(fastdiff.reference, op)(*args, **kwargs)
        return outputs * 1.1 if isinstance(outputs, torch.Tensor) else (outputs[0], outputs[0])

    with pytest.raises(WrongResult, match="broken gives a wrong"):
        check_contenders(case, build(case, broken=broken))


def test_tables_align_text_left_and_numbers_right_and_escape_html():
    table = Table("title", ["name", "ms"], [["a<b", "1.5"], ["c", "10.25"]])
    assert table.text().splitlines() == ["title", "name     ms", "-----------", "a<b     1.5", "c     10.25"]
    assert '<td class="text">a&lt;b</td><td class="number">1.5</td>' in table.html()
