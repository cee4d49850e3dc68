"""One configuration (allocator, threads) measured in a process of its own.

The allocator's setting cannot be undone and compiled code is specialised to the number of threads, so configurations
never share a process.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from bench.device import Device


class WorkerFailed(Exception):
    """A configuration could not be measured; the message says why."""


class WrongResult(Exception):
    """A contender computes something else than it should."""


@dataclass(frozen=True)
class Job:
    """What a worker is told. `allocator` is "tuned" or "default"."""

    cases: Sequence[Any]
    measure: Callable[[Any, Device], dict[str, Any]]
    """case -> record. May raise WrongResult."""
    device: str
    threads: int
    allocator: str


def run_job(job: Job) -> Iterator[dict[str, Any]]:
    """Run the job in a new process. Yields its environment, then one record a case. Raises WorkerFailed."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, sender), name=f"bench {job.allocator} {job.threads} threads")
    process.start()
    sender.close()  # so that the worker's end is the only one, and its death is seen as the end of the stream
    try:
        for _ in range(1 + len(job.cases)):
            kind, content = receiver.recv()
            if kind == "failure":
                raise WorkerFailed(content)
            yield content
    except EOFError:
        process.join()
        raise WorkerFailed(f"the measuring process ended early (exit code {process.exitcode})") from None
    except (KeyboardInterrupt, GeneratorExit):
        process.terminate()
        raise
    finally:
        process.join()


def _work(job: Job, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears of it too, and ends this process
    import torch

    from bench.device import open_device
    from bench.environment import describe
    from fastdiff.allocator import tune_allocator

    if job.allocator == "tuned" and not tune_allocator():
        sender.send(("failure", "the tuned allocator needs glibc; use --allocator default"))
        return
    torch.set_num_threads(job.threads)
    device = open_device(job.device)
    sender.send(("environment", describe(device, job.allocator)))
    try:
        for case in job.cases:
            sender.send(("record", job.measure(case, device)))
    except (WrongResult, ImportError) as error:
        sender.send(("failure", str(error)))
