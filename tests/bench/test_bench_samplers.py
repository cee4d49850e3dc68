"""bench/run.py samplers: that the three sides do the same work, and what it writes."""

import json

import pytest
import torch

import bench.run
from bench.samplers import SAMPLERS, contenders

pytest.importorskip("diffusers")


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"euler_ancestral"}))
def test_the_sides_agree(sampler):
    torch.manual_seed(0)
    results = {name: call() for name, call in contenders(sampler, (1, 2, 4, 4), 10, "cpu").items()}
    theirs = results["diffusers"]
    assert (results["scheduler_for"] - theirs).abs().max() < 1e-4 * theirs.abs().max()
    assert results["sample"].shape == theirs.shape and results["sample"].isfinite().all()


def test_command(tmp_path, capsys):
    path = tmp_path / "samplers.json"
    arguments = ["samplers", "--quick", "--steps", "5", "--shape", "1x2x4x4", "--json", str(path)]
    assert bench.run.main(arguments) == 0
    result = json.loads(path.read_text())
    assert result["schema"] == "fastdiff.bench.samplers/1" and len(result["records"]) == len(SAMPLERS)
    assert "speed-up" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        bench.run.main(["samplers", "--shape", "4x4"])
    assert "must be four sizes" in capsys.readouterr().err
