"""The emulator's own tests: each planted fault of kernels.cu is reported at its line, and its clean twin is not."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import emulation
import numpy as np
import pytest
from emulation import Emulator, Report, Session

KERNELS = Path(__file__).parent / "kernels.cu"
VALUES = np.arange(1, 65, dtype=np.float32)


def planted_faults() -> dict[str, tuple[str, int]]:
    """For each kernel, the kind and line of its first comment "// fault: <kind>"."""
    faults: dict[str, tuple[str, int]] = {}
    kernel = ""
    for number, line in enumerate(KERNELS.read_text().splitlines(), 1):
        if name := re.match(r"__global__ void (\w+)", line):
            kernel = name[1]
        if kind := re.search(r"// fault: ([\w-]+)", line):
            faults.setdefault(kernel, (kind[1], number))
    return faults


FAULTS = planted_faults()
PAIRS = [*FAULTS, "divergent_collective", "cross_block"]
RACES = [name for name, (kind, _) in FAULTS.items() if kind.endswith(("write", "read")) and kind != "stale-read"]


class SelfTest:
    """Runs the kernels on 64 floats, 16-byte aligned, between two undeclared ones."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator

    def run(
        self, name: str, faulty: bool, initialised: bool = True, **session_options: Any
    ) -> tuple[int, np.ndarray, Session]:
        library = self.emulator.library
        storage = np.zeros(64 + 12, dtype=np.float32)
        first = 4 + (-(storage.ctypes.data // 4) % 4)
        data = storage[first : first + 64]
        data[:] = VALUES
        address = ctypes.c_void_p(data.ctypes.data)
        library.fastdiff_emulator_register_buffer(address, ctypes.c_size_t(data.nbytes), int(initialised))
        try:
            with self.emulator.session(**session_options) as session:
                error = library.run_self_test_kernel(name.encode(), int(faulty), address)
        finally:
            library.fastdiff_emulator_clear_buffers()
        assert not storage[:first].any() and not storage[first + 64 :].any(), "wrote outside the buffer"
        return error, data, session


@pytest.fixture(scope="module")
def kernels() -> Iterator[SelfTest]:
    yield SelfTest(emulation.load_self_test())


def kinds_and_places(reports: list[Report]) -> list[tuple[str, str]]:
    return [(report.fault, report.place) for report in reports]


def at_line(number: int) -> str:
    return f"tests/emulator/kernels.cu:{number}"


@pytest.mark.parametrize("schedule", emulation.SCHEDULES)
@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_reported(kernels: SelfTest, name: str, schedule: str) -> None:
    kind, line = FAULTS[name]
    _, _, session = kernels.run(name, faulty=True, schedule=schedule)
    assert (kind, at_line(line)) in kinds_and_places(session.reports), "\n".join(map(str, session.reports))


@pytest.mark.parametrize("schedule", emulation.SCHEDULES)
@pytest.mark.parametrize("name", [*PAIRS, "block_sum", "collectives"])
def test_clean_twin_gives_no_report(kernels: SelfTest, name: str, schedule: str) -> None:
    error, _, session = kernels.run(name, faulty=False, schedule=schedule)
    assert error == 0
    assert session.reports == []
    assert session.launches == 1 and session.blocks >= 1 and session.accesses >= 32


@pytest.mark.parametrize("schedule", emulation.SCHEDULES)
def test_divergent_collective(kernels: SelfTest, schedule: str) -> None:
    error, _, session = kernels.run("divergent_collective", faulty=True, schedule=schedule)
    (report,) = session.reports
    assert report.fault == "divergent-collective" and report.place != report.other
    assert error != 0


@pytest.mark.parametrize("schedule", emulation.SCHEDULES)
def test_cross_block_race(kernels: SelfTest, schedule: str) -> None:
    _, _, session = kernels.run("cross_block", faulty=True, schedule=schedule)
    assert {report.fault for report in session.reports} == {"read-after-write", "write-after-read"}
    assert all(report.space == "global" and "another block" in report.detail for report in session.reports)


def test_a_race_report_names_both_accesses(kernels: SelfTest) -> None:
    _, _, session = kernels.run("read_after_write", faulty=True)
    (report,) = (report for report in session.reports if report.fault == "read-after-write")
    line = FAULTS["read_after_write"][1]
    assert report.place == at_line(line) and report.other == at_line(line - 2)
    assert report.space == "shared" and "thread" in report.detail


@pytest.mark.parametrize(
    "name", [name for name, (kind, _) in FAULTS.items() if kind in ("out-of-bounds", "misaligned", "deadlock")]
)
def test_a_fault_stops_the_launch(kernels: SelfTest, name: str) -> None:
    error, _, session = kernels.run(name, faulty=True)
    assert error != 0
    assert len(session.reports) == 1 and session.reports[0].count == 1


def test_the_emulator_recovers_from_a_fault(kernels: SelfTest) -> None:
    for name in FAULTS:
        kernels.run(name, faulty=True)
        error, data, session = kernels.run("block_sum", faulty=False)
        assert error == 0 and session.reports == [] and (data == VALUES.sum()).all()


@pytest.mark.parametrize("name", RACES)
def test_without_race_detection_no_race_is_reported(kernels: SelfTest, name: str) -> None:
    _, _, session = kernels.run(name, faulty=True, detect_races=False)
    assert session.reports == []


def test_without_race_detection_bounds_are_still_checked(kernels: SelfTest) -> None:
    _, _, session = kernels.run("out_of_bounds_read", faulty=True, detect_races=False)
    assert [report.fault for report in session.reports] == ["out-of-bounds"]


def test_uninitialised_buffer(kernels: SelfTest) -> None:
    """An output or a workspace may be read once it has been written, not before."""
    _, _, session = kernels.run("block_sum", faulty=False, initialised=False)
    assert [(report.fault, report.space) for report in session.reports] == [("uninitialised-read", "global")]
    _, _, session = kernels.run("stale_read", faulty=True, initialised=False)
    assert sorted(report.fault for report in session.reports) == ["stale-read", "uninitialised-read"]


def test_uninitialised_buffer_begins_as_nan(kernels: SelfTest) -> None:
    """What lay there must not pass for a result; memory that is an input, too, is left alone."""
    library = kernels.emulator.library
    data = VALUES.copy()
    address = ctypes.c_void_p(data.ctypes.data)
    for declared_as_input, expected in ((True, VALUES), (False, np.full(64, np.nan))):
        try:
            if declared_as_input:
                library.fastdiff_emulator_register_buffer(address, ctypes.c_size_t(data.nbytes), 1)
            library.fastdiff_emulator_register_buffer(address, ctypes.c_size_t(data.nbytes), 0)
        finally:
            library.fastdiff_emulator_clear_buffers()
        np.testing.assert_array_equal(data, expected)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("schedule", emulation.SCHEDULES)
def test_results(kernels: SelfTest, schedule: str, seed: int) -> None:
    expected = {
        "read_after_write": np.roll(VALUES, -1),
        "write_after_write": np.full(64, VALUES[5]),
        "write_after_read": np.roll(VALUES, -2),
        "uninitialised_read": VALUES[::-1],
        "warp_exchange": VALUES,
        "block_sum": np.full(64, VALUES.sum()),
        "async_copy_too_early": np.roll(VALUES, -1) + VALUES,
        "async_copy_unfinished": np.where(np.arange(64) < 32, VALUES, 0),
    }
    for name, result in expected.items():
        _, data, _ = kernels.run(name, faulty=False, schedule=schedule, seed=seed)
        np.testing.assert_array_equal(data, result, err_msg=name)


def test_schedules_differ(kernels: SelfTest) -> None:
    """The last thread to write wins: which one that is depends on the schedule and on the seed."""
    results = {
        (schedule, seed): kernels.run("write_after_write", faulty=True, schedule=schedule, seed=seed)[1][0]
        for schedule in emulation.SCHEDULES
        for seed in range(3)
    }
    assert all(results["round_robin", seed] == VALUES[-1] for seed in range(3))
    assert all(results["reverse", seed] == VALUES[0] for seed in range(3))
    assert len({results["random", seed] for seed in range(3)}) > 1


@pytest.mark.parametrize("schedule", emulation.SCHEDULES)
def test_collectives(kernels: SelfTest, schedule: str) -> None:
    _, data, _ = kernels.run("collectives", faulty=False, schedule=schedule)
    lane = np.arange(32)
    shuffled = lane // 8 * 8 + 3
    up = np.where(lane % 16 == 0, lane, lane - 1)
    expected = 10 * (100 * (100 * shuffled + up) + 10) + (lane % 3 == 0)
    np.testing.assert_array_equal(data[:32], expected)


def test_unfinished_copy_is_nan(kernels: SelfTest) -> None:
    _, data, _ = kernels.run("async_copy_unfinished", faulty=True)
    assert np.isnan(data).all()


@pytest.mark.parametrize("schedule", emulation.SCHEDULES)
@pytest.mark.parametrize("name", ("matrix_product", "matrix_product_of_bfloat16"))
def test_matrix_product(kernels: SelfTest, name: str, schedule: str) -> None:
    a = np.arange(256).reshape(16, 16)
    b = (np.arange(128) % 7 - 3).reshape(16, 8)
    halves = [kernels.run(name, lower, schedule=schedule)[1] for lower in (False, True)]
    np.testing.assert_array_equal(np.concatenate(halves).reshape(16, 8), a @ b)


@pytest.mark.parametrize("which", range(3), ids=["empty grid", "oversized block", "too much shared memory"])
def test_bad_configuration_is_an_error(kernels: SelfTest, which: int) -> None:
    library = kernels.emulator.library
    data = VALUES.copy()
    with kernels.emulator.session() as session:
        assert library.run_bad_configuration(which, ctypes.c_void_p(data.ctypes.data)) != 0
    assert session.launches == 0
    np.testing.assert_array_equal(data, VALUES)
