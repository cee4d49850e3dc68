"""Whole sampling runs on the CUDA kernels in the emulator and on the CPU's, noise and guidance included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accuracy import assert_as_exact
from backends import backend
from torch import Tensor

import fastdiff
from fastdiff import ops
from fastdiff.diffusion import DiscreteVP
from fastdiff.sampling import Guidance, run_table, solver_table

PROCESS = DiscreteVP()
SHAPE, SEEDS = (3, 4, 9, 7), (5, -7, 2**40)


def network(x: Tensor, timestep: Tensor) -> Tensor:
    """That of standard normal data, and something that is not linear."""
    sigma = PROCESS.sigma(timestep.double()).to(x.dtype)[:, None, None, None]
    return sigma * x + 0.1 * torch.sin(3 * x)


def weaker(x: Tensor, timestep: Tensor) -> Tensor:
    return 0.9 * network(x, timestep) + 0.05


def drawn(sampler: str, **noise_type: Any) -> Tensor:
    """A sample from its seeds alone."""
    table = solver_table(sampler, PROCESS, "epsilon", 8)
    noise = ops.philox_normal(SHAPE, SEEDS, **noise_type) * table.start_scale
    guidance = Guidance(weaker, 2.5, rescale=0.7)
    return run_table(table, network, noise, prediction="epsilon", guidance=guidance, seeds=torch.tensor(SEEDS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "unipc", "ddpm", "euler_ancestral", "dpmpp_2m_sde", "edm"])
def test_emulated_run_agrees_with_the_cpu(sampler: str, dtype: torch.dtype) -> None:
    with backend("cuda-emulated").run():
        emulated = drawn(sampler, dtype=dtype)
    ours = drawn(sampler, dtype=dtype)
    with fastdiff.use_reference():
        eager, exact = drawn(sampler, dtype=dtype), drawn(sampler, dtype=torch.float64)
    assert 1 < exact.abs().max() < 20
    for name, result in (("cpu", ours), ("emulated", emulated)):
        assert_as_exact(result, eager, exact, name)
