"""The loop beside the network: a step allocates nothing, asks for no value, and its bits are fixed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiff.diffusion import DiscreteVP
from fastdiff.sampling import Guidance, run_table, solver_table

SAMPLERS = ("ddim", "dpmpp_2m", "unipc", "euler_ancestral", "dpmpp_2m_sde", "edm")


# ---- memory ----------------------------------------------------------------------------------------------------------


def allocations(sampler: str, steps: int, *, dtype=torch.float32, planted: bool = False) -> int:
    """How many tensors a run allocates whose network allocates none. `planted`: and one more at every step."""
    table = solver_table(sampler, DiscreteVP(), "epsilon", steps)
    start, p, u = (torch.randn(2, 3, 8, 8).to(dtype) for _ in range(3))
    options = {"guidance": Guidance(lambda x, t: u, 3.0, rescale=0.5), "seeds": torch.arange(2)}
    callback = (lambda done, x: x.clone()) if planted else None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        run_table(table, lambda x, t: p, start, prediction="epsilon", callback=callback, **options)
    events = profiled.profiler.kineto_results.events()
    return sum(event.name() == "[memory]" and event.nbytes() > 0 for event in events)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_step_allocates_nothing(sampler, dtype):
    few, many = (allocations(sampler, steps, dtype=dtype) for steps in (5, 14))
    assert few == many > 0


def test_an_allocation_at_every_step_is_seen():
    few, many = (allocations("dpmpp_2m_sde", steps, planted=True) for steps in (5, 14))
    assert many - few == 14 - 5


# ---- waiting for the device ------------------------------------------------------------------------------------------


class ValuesAsked(TorchDispatchMode):
    """Counts what would make a host wait for a device: an element read, a size that depends on values."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket._qualified_op_name
        if name in ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal"):
            self.asked.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_loop_never_waits_for_a_value(sampler):
    """From the first call of the network to the last."""
    table = solver_table(sampler, DiscreteVP(), "epsilon", 5)
    mode, calls = ValuesAsked(), []

    def denoiser(x, timestep):
        calls.append(len(mode.asked))
        return torch.sin(x)

    guidance = Guidance(denoiser, 2.0, rescale=0.5)
    with mode:
        assert torch.equal(torch.zeros(1), torch.zeros(1)) and mode.asked  # it would notice
        run_table(table, denoiser, torch.randn(2, 8), prediction="epsilon", guidance=guidance, seeds=torch.arange(2))
    assert len(calls) == 2 * table.model_calls and calls[-1] == calls[0]


# ---- bits ------------------------------------------------------------------------------------------------------------

# Samples are of odd size, and large enough to be shared between threads even alone.
REPRODUCTION = """
import hashlib, json, sys, torch
from fastdiff import ops
from fastdiff.diffusion import DiscreteVP
from fastdiff.sampling import Guidance, sample

torch.set_num_threads(int(sys.argv[1]))

def network(x, timestep):  # sums and products, whose bits depend on no other element
    return x * (0.9 - timestep / 4000).to(x.dtype).view(-1, 1, 1, 1) - 0.1 * x * x * x.clamp(-2, 2)

def weaker(x, timestep):
    return 0.8 * network(x, timestep) + 0.05

def digests(seeds, sampler, dtype):
    noise = ops.philox_normal((len(seeds), 3, 105, 107), seeds, dtype=dtype)
    options = {"sampler": sampler, "process": DiscreteVP(), "prediction": "epsilon", "steps": 4, "seeds": seeds}
    x = sample(network, noise, guidance=Guidance(weaker, 2.5, rescale=0.7), **options)
    assert x.isfinite().all() and x.dtype == dtype
    return [hashlib.sha256(row.view(torch.uint8).numpy().tobytes()).hexdigest() for row in x]

seeds = [5, -7, 2**40, 0, 1, 2, 3, 4]
runs = {}
for sampler in ("dpmpp_2m", "euler_ancestral", "dpmpp_2m_sde"):
    for dtype in (torch.float32, torch.bfloat16):
        alone = [digests([seed], sampler, dtype)[0] for seed in seeds[:2]]
        runs[f"{sampler} {dtype}"] = {"together": digests(seeds, sampler, dtype), "alone": alone}
print(json.dumps(runs))
"""


def test_a_sample_has_the_same_bits_alone_and_in_a_batch_on_one_thread_and_two_in_two_processes():
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # for machines with other work to do
    one, two = (
        json.loads(subprocess.check_output([sys.executable, "-c", REPRODUCTION, threads], env=environment))
        for threads in ("1", "2")
    )
    assert one == two
    for case, run in one.items():
        assert run["alone"] == run["together"][:2], case
    assert len({digest for run in one.values() for digest in run["together"]}) == 8 * 6
