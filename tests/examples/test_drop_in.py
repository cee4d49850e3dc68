from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastdiff

EXAMPLE = Path(__file__).parents[2] / "examples" / "drop_in.py"
pytestmark = pytest.mark.skipif(not fastdiff.build_info()["extension"], reason="needs the compiled extension")


def test_script_prints_difference_and_times():
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["largest difference", "PyTorch", "fastdiff"]


def test_the_two_networks_are_the_same_function():
    names = runpy.run_path(str(EXAMPLE))
    assert names["main"]() < 1e-5

    yours, fused = names["Network"](names["Block"]), names["Network"](names["FusedBlock"])
    fused.load_state_dict(yours.state_dict())
    x, time_embedding = torch.randn(2, 64, 8, 8), torch.randn(2, 128)
    for network in (yours, fused):
        network(x, time_embedding).square().mean().backward()
    for mine, theirs in zip(yours.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)
