"""The launch plan of the CUDA group_norm_silu: a pure function of the shape and the device."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from fastdiff import _C

KIB = 1024
# (sm_count, opt-in shared memory a block) of an A100, an H100 and an RTX 5090.
DEVICES = ((108, 163 * KIB), (132, 227 * KIB), (170, 99 * KIB))
PASSES = (_C.plan_group_norm_silu, _C.plan_group_norm_silu_backward)

# (channels, spatial, groups): Stable Diffusion's U-Net and VAE, odd sizes, one group, as many groups as channels.
SHAPES = (
    (320, 64 * 64, 32),
    (640, 32 * 32, 32),
    (1280, 16 * 16, 32),
    (2560, 8 * 8, 32),
    (128, 512 * 512, 32),
    (512, 64 * 64, 32),
    (96, 1023, 32),
    (30, 7, 3),
    (33, 1, 1),
    (31, 100, 31),
    (2560, 64, 1),
    (4, 1 << 34, 2),
)


def plan(
    batch: int = 1,
    channels: int = 320,
    spatial: int = 4096,
    groups: int = 32,
    dtype_bytes: int = 2,
    channels_last: bool = False,
    aligned: bool = True,
    device: tuple[int, int] = DEVICES[1],
    make: Any = _C.plan_group_norm_silu,
) -> dict[str, Any]:
    return make(batch, channels, spatial, groups, dtype_bytes, channels_last, aligned, *device)


def all_plans(**fixed: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Every combination as (arguments, plan)."""
    plans = []
    for (channels, spatial, groups), batch, dtype_bytes, channels_last, device, make in itertools.product(
        SHAPES, (1, 2, 16), (2, 4), (False, True), DEVICES, PASSES
    ):
        arguments = {
            "batch": batch,
            "channels": channels,
            "spatial": spatial,
            "groups": groups,
            "dtype_bytes": dtype_bytes,
            "channels_last": channels_last,
            "device": device,
            "make": make,
        } | fixed
        plans.append((arguments, plan(**arguments)))
    return plans


def test_order_of_summation_depends_on_the_shape_alone() -> None:
    """What makes a sample's bits independent of the batch: the tiling ignores batch, device, alignment and path."""
    for arguments, made in all_plans():
        other = dict(arguments, batch=arguments["batch"] + 7, aligned=False, device=(3, 0), make=PASSES[0])
        assert plan(**other)["tiling"] == made["tiling"], arguments


def test_tiling_covers_space_once() -> None:
    for arguments, made in all_plans():
        tiling = made["tiling"]
        assert (tiling["parts"] - 1) * tiling["part_size"] < arguments["spatial"]
        assert arguments["spatial"] <= tiling["parts"] * tiling["part_size"], arguments
        assert tiling["width"] * arguments["dtype_bytes"] == 16
        assert tiling["lanes"] in (1, 2, 4, 8, 16, 32) and tiling["merge_lanes"] in (1, 2, 4, 8, 16, 32)


def test_plan_fits_the_device() -> None:
    for arguments, made in all_plans():
        assert made["shared_bytes"] <= arguments["device"][1], arguments
        assert made["threads"] % 32 == 0 and 32 <= made["threads"] <= 384, arguments
        assert 1 <= made["grid"] < 1 << 31, arguments
        if made["resident"]:
            tiles = arguments["batch"] * -(-arguments["channels"] // made["tile_channels"])
            assert made["grid"] <= tiles, "an idle block"
            assert made["tile_channels"] % (arguments["channels"] // arguments["groups"]) == 0, "a divided group"
            elements = made["tile_channels"] * arguments["spatial"] * arguments["dtype_bytes"]
            assert made["shared_bytes"] >= elements, arguments


def test_streaming_has_a_team_for_each_unit() -> None:
    for arguments, made in all_plans():
        if made["resident"]:
            continue
        tiling = made["tiling"]
        width = tiling["width"] if arguments["channels_last"] else 1
        units = arguments["batch"] * -(-arguments["channels"] // width) * tiling["parts"]
        assert made["grid"] * made["threads"] >= units * tiling["lanes"] > (made["grid"] - 1) * made["threads"]
        assert made["shared_bytes"] == 0


def test_workspace_stays_small() -> None:
    """From 1024 positions on at most a quarter of an activation, and a twentieth of a large one."""
    for arguments, made in all_plans():
        activation = arguments["batch"] * arguments["channels"] * arguments["spatial"] * arguments["dtype_bytes"]
        if not made["resident"] and arguments["spatial"] >= 1024:
            limit = 0.05 if arguments["spatial"] >= 1 << 15 else 0.25
            assert made["workspace_bytes"] <= limit * activation, (arguments, made)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_resident_where_it_pays(device: tuple[int, int]) -> None:
    small = plan(channels=1280, spatial=256, device=device)
    assert small["resident"], "20 KiB a group"
    large = plan(channels=128, spatial=512 * 512, device=device)
    assert not large["resident"], "2 MiB a group"
    assert not plan(batch=1, device=device)["resident"], "32 blocks of 82 KiB leave most of the chip idle"
    assert plan(batch=8, device=device)["resident"], "256 blocks of 82 KiB fill it"
    assert not plan(batch=8, device=(device[0], 48 * KIB))["resident"], "82 KiB do not fit"


def test_backward_keeps_two_activations() -> None:
    forward, backward = (plan(channels=1280, spatial=256, make=make) for make in PASSES)
    assert backward["resident"] and backward["shared_bytes"] >= 2 * 40 * 256 * 2 > forward["shared_bytes"]


@pytest.mark.parametrize(
    "spatial, channels, channels_last, aligned, expected",
    [
        (4096, 320, False, True, True),
        (4096, 320, True, True, True),
        (4096, 320, False, False, False),  # a misaligned pointer or stride
        (4095, 320, False, True, False),  # rows begin off a 16-byte boundary
        (4095, 320, True, True, True),
        (4096, 323, True, True, False),
    ],
)
def test_vectorised_where_every_row_is_aligned(
    spatial: int, channels: int, channels_last: bool, aligned: bool, expected: bool
) -> None:
    made = plan(channels=channels, spatial=spatial, groups=1, channels_last=channels_last, aligned=aligned)
    assert made["vectorised"] is expected


@pytest.mark.parametrize("batch, spatial", [(0, 4096), (2, 0)])
def test_empty_shapes_launch_nothing(batch: int, spatial: int) -> None:
    made = plan(batch=batch, spatial=spatial)
    assert made["grid"] == 0 and made["workspace_bytes"] == 0


def test_batch_one_fills_the_chip() -> None:
    """32 groups alone would leave three quarters of an H100 idle."""
    for channels, spatial in ((320, 64 * 64), (128, 512 * 512), (512, 64 * 64)):
        for channels_last in (False, True):
            made = plan(channels=channels, spatial=spatial, channels_last=channels_last)
            assert made["grid"] >= 132, (channels, spatial, channels_last)
