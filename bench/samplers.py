"""`bench/run.py samplers`: what a step costs beside the network, against diffusers' schedulers."""

from __future__ import annotations

import argparse
import copy
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastdiff
from bench.device import open_device
from bench.environment import describe
from bench.table import Table
from bench.timing import Budget, Call, interleave
from fastdiff._files import atomic_write
from fastdiff.diffusion import DiscreteVP
from fastdiff.integrations.diffusers import scheduler_for
from fastdiff.sampling import Guidance, run_table, solver_table

HELP = "samplers with classifier-free guidance against diffusers' schedulers, the network left out"
SCHEMA = "fastdiff.bench.samplers/1"
# sampler -> the scheduler of diffusers, without its suffix
SAMPLERS = {
    "ddim": "DDIM",
    "euler": "EulerDiscrete",
    "dpmpp_2m": "DPMSolverMultistep",
    "unipc": "UniPCMultistep",
    "euler_ancestral": "EulerAncestralDiscrete",
}
SHAPES = ((2, 4, 64, 64), (1, 16, 128, 128), (1, 3, 512, 512))  # SD 1.5 and 2, SD 3 and FLUX at 1024, pixels
SCALE = 7.5
BUDGET, QUICK = Budget(seconds=1.5, min_repetitions=5, max_repetitions=50), Budget(0.0, 2, 2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="default: 20")
    parser.add_argument("--shape", type=_shape, action="append", metavar="NxCxHxW", help="default: three")
    parser.add_argument("--quick", action="store_true", help="two repetitions only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements")


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    tuned = fastdiff.tune_allocator()
    device = open_device(arguments.device)
    budget, records = QUICK if arguments.quick else BUDGET, []
    for shape in arguments.shape or SHAPES:
        for sampler in SAMPLERS:
            calls = contenders(sampler, shape, arguments.steps, device.name)
            timings = interleave(calls, device.measure, budget, prepare=lambda call: call())
            micro = {name: 1e3 * timing.median_ms / arguments.steps for name, timing in timings.items()}
            records.append({"sampler": sampler, "shape": shape, "us_per_step": micro})
    print(table(records).text())
    if arguments.json:
        content = {
            "schema": SCHEMA,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "steps": arguments.steps,
            "environment": describe(device, "tuned" if tuned else "default"),
            "records": records,
        }
        atomic_write(arguments.json, (json.dumps(content, indent=1) + "\n").encode())
        print(f"\nwrote {arguments.json}")


def contenders(sampler: str, shape: tuple[int, ...], steps: int, device: str) -> dict[str, Call]:
    """Whole runs of `steps` steps, set-up included, whose network returns the same two tensors at every step."""
    import diffusers  # an extra of the tests: the other benchmarks do not need it

    noise, p, u = (torch.randn(shape, device=device) for _ in range(3))
    theirs = getattr(diffusers, f"{SAMPLERS[sampler]}Scheduler")()
    seeds = torch.arange(shape[0], device=device)

    @torch.no_grad()
    def pipeline(scheduler: Any) -> Tensor:
        scheduler.set_timesteps(steps, device=device)
        x = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            scheduler.scale_model_input(x, t)
            x = scheduler.step(u + SCALE * (p - u), t, x, return_dict=False)[0]
        return x

    def loop() -> Tensor:
        table = solver_table(sampler, DiscreteVP(), "epsilon", steps)
        guidance = Guidance(lambda x, t: u, SCALE)
        return run_table(table, lambda x, t: p, noise, prediction="epsilon", guidance=guidance, seeds=seeds)

    ours = scheduler_for(copy.deepcopy(theirs))
    return {"diffusers": lambda: pipeline(theirs), "scheduler_for": lambda: pipeline(ours), "sample": loop}


def table(records: list[dict[str, Any]]) -> Table:
    headers = ["sampler", "shape", "diffusers us", "scheduler_for us", "sample us", "speed-up"]
    rows = []
    for record in records:
        times = record["us_per_step"]
        cells = [f"{times[name]:.0f}" for name in ("diffusers", "scheduler_for", "sample")]
        shape = "x".join(map(str, record["shape"]))
        rows.append([record["sampler"], shape, *cells, f"{times['diffusers'] / times['sample']:.1f}"])
    return Table("microseconds a step, guidance and set-up included", headers, rows, text_columns=2)


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.split("x")
    if len(sizes) != 4 or not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"must be four sizes such as 1x4x64x64, got {text!r}")
    return tuple(map(int, sizes))
