"""bench/run.py samplers: that the three sides do the same work, and what it writes."""

import json
import time

import pytest
import torch

import bench.run
from bench.device import CpuDevice
from bench.samplers import SAMPLERS, Run, contenders, passes_of, table_of

pytest.importorskip("diffusers")


def result_of(run: Run) -> torch.Tensor:
    run.set_up()
    return run.loop(lambda: None)


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"euler_ancestral"}))
def test_the_sides_agree(sampler):
    torch.manual_seed(0)
    results = {name: result_of(run) for name, run in contenders(sampler, (1, 2, 4, 4), 10, "cpu").items()}
    theirs = results["diffusers"]
    assert (results["scheduler_for"] - theirs).abs().max() < 1e-4 * theirs.abs().max()
    assert results["sample"].shape == theirs.shape and results["sample"].isfinite().all()


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_contender_counts_its_steps(sampler):
    for name, run in contenders(sampler, (1, 2, 4, 4), 7, "cpu").items():
        steps: list[None] = []
        run.set_up()
        run.loop(lambda steps=steps: steps.append(None))
        assert len(steps) == 7, name


def test_a_step_is_the_median_of_a_run():
    class Clock(CpuDevice):
        times = iter((0.0, 5.0, 6.0, 8.0))

        def mark(self) -> float:
            return next(self.times, 8.0)

    assert Run(lambda before_step: [before_step() for _ in range(3)]).seconds_per_step(Clock()) == 2.0


@pytest.mark.parametrize(("threads", "allowed"), [(1, (0.0, 0.02)), (2, (0.05, 60.0))])
def test_one_thread_is_timed_without_what_it_waits_for(threads, allowed):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        seconds = Run(lambda before_step: (before_step(), time.sleep(0.05))).seconds_per_step(CpuDevice())
    finally:
        torch.set_num_threads(before)
    assert allowed[0] <= seconds + 1e-4 and seconds < allowed[1]


def test_passes_over_memory():
    """DDIM reads the sample and two predictions and writes the sample; second order also reads and writes a model."""
    assert passes_of(table_of("ddim", 20)) == passes_of(table_of("euler_ancestral", 20)) == 4
    assert 5.5 < passes_of(table_of("dpmpp_2m", 20)) < 6 < passes_of(table_of("unipc", 20)) < 7


def test_command(tmp_path, capsys):
    path = tmp_path / "samplers.json"
    arguments = "samplers --quick --allocator default --steps 5 --shape 1x2x4x4 --shape 1x2x3x4x4 --json"
    assert bench.run.main([*arguments.split(), str(path)]) == 0
    result = json.loads(path.read_text())
    assert result["schema"] == "fastdiff.bench.samplers/2" and len(result["records"]) == 2 * len(SAMPLERS)
    assert result["environment"]["allocator"] == "default"
    assert all(record["us_per_step"]["copy"] > 0 for record in result["records"])
    assert "over floor" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        bench.run.main(["samplers", "--shape", "4"])
    assert "must be sizes such as 1x4x64x64" in capsys.readouterr().err
