"""One model on all sides: that they agree, how long they take, and the memory of a call."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fastdiff.models
from bench import openvino_peer
from bench.device import Device
from bench.models import DTYPES, MODELS, BenchModel, fill
from bench.timing import Budget, Call, interleave
from bench.worker import WrongResult

# diffusers as it is is always measured: the ratio is to that.
PEERS = ("compile", openvino_peer.NAME)
# Root mean square of the difference from diffusers, as a part of that of its result. Two correct implementations differ
# by their roundings, some of them many layers deep; wrong ones by the whole.
ALLOWED_ERRORS = {"fp32": 1e-3, "bf16": 1e-1}


@dataclass(frozen=True)
class ModelCase:
    model: str
    dtype: str


@torch.no_grad()
def measure_model(case: ModelCase, device: Device, *, peers: tuple[str, ...], budget: Budget) -> dict[str, Any]:
    """The record of one case, ready for JSON. Raises WrongResult, ImportError."""
    bench_model, dtype = MODELS[case.model], DTYPES[case.dtype]
    ours, theirs = twins(bench_model, dtype, device.name)
    inputs = _inputs(bench_model, dtype, device.name)
    calls: dict[str, Call] = {
        "fastdiff": lambda: _result(ours, bench_model.method, inputs),
        "diffusers": lambda: _result(theirs, bench_model.method, inputs),
    }
    with FlopCounterMode(display=False) as counter:
        expected = calls["diffusers"]()
    left_out = _add_peers(calls, bench_model, theirs, inputs, peers)
    errors = {name: relative_error(call(), expected) for name, call in calls.items()}
    wrong = {
        name: f"differs from diffusers by {error:.2g} of its result"
        for name, error in errors.items()
        if not error <= ALLOWED_ERRORS[case.dtype]  # NaN is wrong too
    }
    if "fastdiff" in wrong:
        raise WrongResult(f"{case.model} {case.dtype}: fastdiff {wrong['fastdiff']}")
    memory = peaks({name: calls[name] for name in ("fastdiff", "diffusers")}, device)
    timings = interleave(calls, device.measure, budget, prepare=lambda call: None)
    return {
        **asdict(case),
        "parameters": sum(parameter.numel() for parameter in ours.parameters()),
        "flops": counter.get_total_flops(),
        "errors": errors,
        "left_out": left_out,
        "wrong": wrong,
        "peak_bytes": memory,
        "contenders": {name: asdict(timing) for name, timing in timings.items()},
    }


def twins(bench_model: BenchModel, dtype: torch.dtype, device: str) -> tuple[nn.Module, nn.Module]:
    """Ours and diffusers' model, on the same weights in memory."""
    import diffusers

    with torch.device("meta"):
        ours = getattr(fastdiff.models, bench_model.class_name)(**bench_model.config)
    ours = ours.to_empty(device=device).to(dtype).eval()
    fill(ours)
    if bench_model.channels_last:
        ours = ours.to(memory_format=torch.channels_last)
    theirs = getattr(diffusers, bench_model.class_name)(**bench_model.config).to(device, dtype).eval()
    theirs.load_state_dict(ours.state_dict(), assign=True)
    return ours, theirs


def _inputs(bench_model: BenchModel, dtype: torch.dtype, device: str) -> list[Tensor]:
    inputs = []
    for x in bench_model.inputs():
        # Times stay in float32, whatever the dtype of the network.
        x = x.to(device, dtype if x.is_floating_point() and x.dim() > 1 else None)
        is_map = bench_model.channels_last and x.dim() == 4
        inputs.append(x.contiguous(memory_format=torch.channels_last) if is_map else x)
    return inputs


def _result(model: nn.Module, method: str, inputs: Sequence[Tensor]) -> Tensor:
    return getattr(model, method)(*inputs, return_dict=False)[0]


class _Method(nn.Module):
    """A method of a model as a module, for what compiles modules."""

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, *inputs: Tensor) -> Tensor:
        return _result(self.model, self.method, inputs)


def _add_peers(
    calls: dict[str, Call],
    bench_model: BenchModel,
    theirs: nn.Module,
    inputs: Sequence[Tensor],
    peers: tuple[str, ...],
) -> dict[str, str]:
    """Add compiled forms of diffusers' model. Returns those that are left out, with the reason."""
    module, left_out = _Method(theirs, bench_model.method), {}
    if "compile" in peers:
        torch._inductor.config.freezing = True  # weights are laid out ahead of time, as elsewhere
        compiled = torch.compile(module, dynamic=False)
        calls["compile"] = lambda: compiled(*inputs)
    if openvino_peer.NAME in peers:
        plain = [x.contiguous() for x in inputs]
        try:
            request = openvino_peer.compile_module(module, tuple(plain), torch.get_num_threads())
            calls[openvino_peer.NAME] = lambda: openvino_peer.infer(request, plain)[0]
        except openvino_peer.NotConverted as error:
            left_out[openvino_peer.NAME] = str(error)
    return left_out


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of what is expected."""
    expected = expected.double()
    return ((got.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt()).item()


def peaks(calls: Mapping[str, Call], device: Device) -> dict[str, int | None]:
    """:func:`peak_bytes` of calls on a CPU, by name."""
    return {name: peak_bytes(call) for name, call in calls.items()} if device.name == "cpu" else {}


def peak_bytes(call: Callable[[], object]) -> int | None:
    """What the process holds at most during the call beyond what it held before; None where the system does not say.

    Not for the first call, which also makes what is kept.
    """
    if platform.system() != "Linux":
        return None
    _give_back_free_memory()
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is held now
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


def _give_back_free_memory() -> None:
    """What malloc keeps of earlier calls would be used again, unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # which glibc has
    if trim is not None:
        trim(0)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024
