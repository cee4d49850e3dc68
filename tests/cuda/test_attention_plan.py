"""The launch plan of the CUDA attention: a pure function of the shape and the device."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from fastdiff import _C

KIB = 1024
# (sm_count, opt-in shared memory a block) of an A100, an H100 and an RTX 5090.
DEVICES = ((108, 163 * KIB), (132, 227 * KIB), (170, 99 * KIB))
PLANNERS = (_C.plan_attention, _C.plan_attention_query_gradient, _C.plan_attention_key_gradients)
HEAD_DIMS = (1, 8, 33, 40, 64, 72, 80, 96, 128, 160, 256)
LENGTHS = ((1, 1), (4096, 77), (1024, 154), (17, 160), (4096, 161), (1024, 1178), (257, 4096))


def plan(
    query_length: int = 4096,
    kv_length: int = 77,
    head_dim: int = 64,
    dtype_bytes: int = 2,
    batch: int = 2,
    heads: int = 8,
    kv_heads: int = 8,
    device: tuple[int, int] = DEVICES[1],
    planner: Any = _C.plan_attention,
) -> dict[str, Any]:
    return planner(batch, heads, kv_heads, query_length, kv_length, head_dim, dtype_bytes, *device)


def all_plans() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Every combination as (arguments, plan)."""
    plans = []
    for (queries, keys), head_dim, dtype_bytes, device, planner in itertools.product(
        LENGTHS, HEAD_DIMS, (2, 4), DEVICES, PLANNERS
    ):
        arguments = {
            "query_length": queries,
            "kv_length": keys,
            "head_dim": head_dim,
            "dtype_bytes": dtype_bytes,
            "device": device,
            "planner": planner,
        }
        plans.append((arguments, plan(**arguments)))
    return plans


def test_plan_fits_the_device() -> None:
    for arguments, made in all_plans():
        assert 0 < made["shared_bytes"] <= arguments["device"][1], arguments
        assert made["warps"] in (1, 2, 4), arguments
        assert 1 <= made["grid"] < 1 << 31, arguments


def test_rows_are_padded_to_16_and_lie_in_different_banks() -> None:
    for arguments, made in all_plans():
        layout, size = made["layout"], arguments["dtype_bytes"]
        assert arguments["head_dim"] <= layout["depth"] < arguments["head_dim"] + 16
        for stride in (layout["row_stride"], layout["part_stride"]):
            assert stride * size % 16 == 0
            # The eight rows of 16 bytes that are loaded together.
            assert len({row * stride * size // 16 % 8 for row in range(8)}) == 8, arguments


def test_parts_cover_the_head_once() -> None:
    for arguments, made in all_plans():
        layout = made["layout"]
        assert layout["part_columns"] % 16 == 0 and layout["part_columns"] <= 128
        assert (layout["parts"] - 1) * layout["part_columns"] < layout["depth"]
        assert layout["depth"] <= layout["parts"] * layout["part_columns"], arguments
        width = 16 // arguments["dtype_bytes"]
        assert layout["row_lanes"] == 32 or layout["row_lanes"] * width >= layout["depth"], arguments


def test_what_decides_the_bits_does_not_depend_on_the_batch() -> None:
    for arguments, made in all_plans():
        other = plan(**arguments, batch=31)
        for name in ("layout", "resident", "tile"):
            assert other[name] == made[name], arguments
        if arguments["planner"] is not PLANNERS[0]:  # forward, who has which query does not matter
            assert other["splits"] == made["splits"], arguments


def test_streaming_has_a_block_for_all_rows() -> None:
    for arguments, made in all_plans():
        if made["resident"]:
            continue
        rows = arguments["kv_length" if arguments["planner"] is PLANNERS[2] else "query_length"]
        blocks = -(-rows // (16 * made["warps"]))
        assert made["grid"] == 2 * 8 * blocks * made["layout"]["parts"], arguments


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_few_keys_stay_in_shared_memory(device: tuple[int, int]) -> None:
    for keys, head_dim in ((77, 40), (77, 64), (154, 64), (154, 128)):
        made = plan(kv_length=keys, head_dim=head_dim, device=device)
        assert made["resident"]
        assert made["grid"] == 16 * made["splits"]
        assert made["grid"] >= 2 * device[0], "the chip is full"
    assert not plan(kv_length=161, device=device)["resident"]
    assert not plan(head_dim=160, device=device)["resident"], "its sums do not fit the registers"
    assert not plan(dtype_bytes=4, device=device)["resident"]


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_gradients_of_a_few_keys_fill_the_chip(device: tuple[int, int]) -> None:
    made = plan(kv_length=77, head_dim=40, device=device, planner=PLANNERS[2])
    assert made["grid"] * made["splits"] >= device[0]
    assert plan(kv_length=4096, device=device, planner=PLANNERS[2])["splits"] == 1
    assert plan(query_length=256, heads=1, kv_heads=1, device=device, planner=PLANNERS[2])["splits"] == 1


def test_no_block_without_work() -> None:
    made = plan(query_length=20, batch=1, heads=2, kv_heads=1)
    assert made["resident"] and made["grid"] == made["splits"] == 1, "two heads of two blocks of queries, four warps"
    assert plan(query_length=0)["grid"] == 0
    assert plan(batch=0)["grid"] == 0
