"""`bench/run.py samplers`: what a step costs beside the network, against diffusers' schedulers and a plain copy."""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastdiff
from bench.device import Device, open_device
from bench.environment import describe
from bench.runs import now, write_json
from bench.table import Table
from bench.timing import Budget, Call, interleave
from fastdiff.diffusion import DiscreteVP
from fastdiff.integrations.diffusers import scheduler_for
from fastdiff.sampling import Guidance, SolverTable, run_table, solver_table

HELP = "samplers with classifier-free guidance against diffusers' schedulers, the network left out"
SCHEMA = "fastdiff.bench.samplers/2"
# sampler -> the scheduler of diffusers, without its suffix
SAMPLERS = {
    "ddim": "DDIM",
    "dpmpp_2m": "DPMSolverMultistep",
    "euler_ancestral": "EulerAncestralDiscrete",
    "unipc": "UniPCMultistep",
}
SHAPES = ((1, 4, 64, 64), (4, 4, 128, 128), (64, 3, 64, 64), (1, 16, 21, 90, 160))  # latents, pixels, a video's latent
SCALE = 7.5
FULL = Budget(seconds=4.0, min_repetitions=5, max_repetitions=200)
QUICK = Budget(0.0, 2, 2)
NOTES = (
    "A floor is what a step must move at the pace of the copy: it reads the sample, both predictions and the history",
    "once, and writes the sample and what is kept. The speed-up is diffusers over sample.",
)


Loop = Callable[[Call], object]
"""A run of many steps, which calls what it is given once before each of them."""


@dataclass(frozen=True)
class Run:
    """A loop, and what comes before it: only steps are timed, each by itself."""

    loop: Loop
    set_up: Call = lambda: None

    def warm_up(self) -> None:
        self.set_up()
        self.loop(lambda: None)
        self.set_up()

    def seconds_per_step(self, device: Device) -> float:
        """The median of one loop's steps."""
        marks: list[Any] = []
        self.loop(lambda: marks.append(device.mark()))
        marks.append(device.mark())
        return statistics.median(device.seconds_between(marks))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="default: 20")
    parser.add_argument("--shape", type=_shape, action="append", metavar="NxCxHxW", help="default: four")
    parser.add_argument(
        "--allocator",
        choices=("tuned", "default"),
        default="tuned",
        help="setting of glibc's malloc, on a CPU (see fastdiff.tune_allocator); default: tuned",
    )
    parser.add_argument("--quick", action="store_true", help="two repetitions only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements")


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    tuned = arguments.allocator == "tuned" and fastdiff.tune_allocator()
    device = open_device(arguments.device)
    budget, records = QUICK if arguments.quick else FULL, []
    for shape in arguments.shape or SHAPES:
        for sampler in SAMPLERS:
            runs = contenders(sampler, shape, arguments.steps, device.name)
            timings = interleave(runs, partial(Run.seconds_per_step, device=device), budget, prepare=Run.warm_up)
            micro = {name: 1e3 * timing.median_ms for name, timing in timings.items()}
            passes = passes_of(table_of(sampler, arguments.steps))
            records.append({"sampler": sampler, "shape": shape, "us_per_step": micro, "passes_per_step": passes})
    print(table(records).text())
    if arguments.json:
        content = {
            "schema": SCHEMA,
            "created": now(),
            "steps": arguments.steps,
            "environment": describe(device, "tuned" if tuned else "default"),
            "records": records,
        }
        write_json(arguments.json, content)


def table_of(sampler: str, steps: int) -> SolverTable:
    return solver_table(sampler, DiscreteVP(), "epsilon", steps)


def contenders(sampler: str, shape: tuple[int, ...], steps: int, device: str) -> dict[str, Run]:
    """Runs of `steps` steps whose network returns the same two tensors at every step, and as many copies."""
    import diffusers  # an extra of the tests: the other benchmarks do not need it

    noise, p, u = (torch.randn(shape, device=device) for _ in range(3))
    seeds, target, rows = torch.arange(shape[0], device=device), torch.empty_like(noise), table_of(sampler, steps)

    def pipeline(scheduler: Any) -> Run:
        @torch.no_grad()
        def loop(before_step: Call) -> Tensor:
            x = noise * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                before_step()
                scheduler.scale_model_input(x, t)
                x = scheduler.step(u + SCALE * (p - u), t, x, return_dict=False)[0]
            return x

        return Run(loop, lambda: scheduler.set_timesteps(steps, device=device))

    def loop(before_step: Call) -> Tensor:
        def network(x: Tensor, t: Tensor) -> Tensor:
            before_step()
            return p

        guidance = Guidance(lambda x, t: u, SCALE)
        return run_table(rows, network, noise, prediction="epsilon", guidance=guidance, seeds=seeds)

    def copies(before_step: Call) -> None:
        for _ in range(steps):
            before_step()
            target.copy_(noise)

    theirs = getattr(diffusers, f"{SAMPLERS[sampler]}Scheduler")()
    ours = scheduler_for(copy.deepcopy(theirs))
    return {"diffusers": pipeline(theirs), "scheduler_for": pipeline(ours), "sample": Run(loop), "copy": Run(copies)}


def passes_of(rows: SolverTable) -> float:
    """Passes over memory of a step with guidance: the mean of the rows of a table."""
    kept = sum(slot is not None for slot in rows.writes)
    return 4 + (sum(rows.history_reads) + kept) / len(rows)


def table(records: list[dict[str, Any]]) -> Table:
    headers = ["sampler", "shape", "diffusers us", "scheduler_for us", "sample us", "speed-up", "copy us", "over floor"]
    lines = []
    for record in records:
        times = record["us_per_step"]
        shape = "x".join(map(str, record["shape"]))
        cells = [f"{times[name]:.0f}" for name in ("diffusers", "scheduler_for", "sample")]
        floor = times["copy"] * record["passes_per_step"] / 2
        ratios = f"{times['diffusers'] / times['sample']:.1f}", f"{times['copy']:.1f}", f"{times['sample'] / floor:.1f}"
        lines.append([record["sampler"], shape, *cells, *ratios])
    return Table("microseconds a step with guidance, the network left out", headers, lines, text_columns=2, notes=NOTES)


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.split("x")
    if len(sizes) < 2 or not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"must be sizes such as 1x4x64x64, got {text!r}")
    return tuple(map(int, sizes))
