from __future__ import annotations

import argparse
import json
import os
import platform
from typing import Any

import torch

import fastdiff

HELP = "say which kernels this installation runs, what is off, and why"
LARGEST_DIFFERENCE = 1e-4  # between the kernel and its definition, in float32 on standard normal numbers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object, for machines")


def run(arguments: argparse.Namespace) -> int:
    report = examine()
    print(json.dumps(report, indent=2) if arguments.json else describe(report))
    return 0 if report["ok"] else 1


def examine() -> dict[str, Any]:
    """:func:`fastdiff.build_info` with what runs on this machine: ``threads``, ``allocator``, ``cuda_devices``,
    ``checks`` (a small op on each device against its definition) and ``ok``."""
    report = fastdiff.build_info()
    report["threads"] = torch.get_num_threads()
    report["cpu_isa_forced"] = os.environ.get("FASTDIFF_CPU_ISA")
    report["allocator"] = _allocator()
    report["cuda_devices"] = [_cuda_device(i) for i in range(torch.cuda.device_count())]
    report["checks"] = {}
    if report["extension"]:
        devices = ["cpu"] if report["cuda_off_reason"] else ["cpu", "cuda"]
        report["checks"] = {device: _check_kernels(device) for device in devices}
    report["ok"] = report["extension"] and all(check["ok"] for check in report["checks"].values())
    return report


def describe(report: dict[str, Any]) -> str:
    """The report as lines for people."""
    rows = [
        ("fastdiff", f"{report['fastdiff']}, Python {report['python']}"),
        ("torch", report["torch"] + _built_against(report)),
        ("kernels", _extension(report)),
    ]
    if report["extension"]:
        rows += [("CPU", _cpu(report)), ("", _cpu_off(report))]
    rows += [("CUDA", _cuda(report)), *(("", device) for device in report["cuda_devices"])]
    rows += [("allocator", report["allocator"])]
    for device, check in report["checks"].items():
        rows.append(("check", f"group_norm_silu on {device}: {check['result']}"))
    rows.append(("result", "the kernels work" if report["ok"] else "the kernels do NOT work"))
    return "\n".join(f"{name:<11}{text}" for name, text in rows if text)


def _check_kernels(device: str) -> dict[str, Any]:
    """Run one kernel and its definition. Any error is the finding that this command is there to report."""
    x = torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        y, expected = (library.group_norm_silu(x, 8) for library in (fastdiff.ops, fastdiff.reference))
        difference = (y - expected).abs().max().item()
    except (RuntimeError, ImportError, ValueError, TypeError, AttributeError) as error:
        return {"ok": False, "result": " ".join(f"{type(error).__name__}: {error}".split())}
    ok = difference <= LARGEST_DIFFERENCE
    return {"ok": ok, "result": f"{'right' if ok else 'WRONG'}, {difference:.1e} from its definition in PyTorch"}


def _built_against(report: dict[str, Any]) -> str:
    return f", kernels built against {report['torch_built_against']}" if report["extension"] else ""


def _extension(report: dict[str, Any]) -> str:
    if not report["extension"]:
        return f"not loaded: {report['extension_error']}"
    return f"loaded, compiled by {report['compiler']}"


def _cpu(report: dict[str, Any]) -> str:
    why = "forced by FASTDIFF_CPU_ISA" if report["cpu_isa_forced"] else "the best that this CPU has"
    return f"{report['cpu_isa']} in use ({why}), {report['threads']} threads"


def _cpu_off(report: dict[str, Any]) -> str:
    off = []
    for isa in report["cpu_isas_built"]:
        if isa not in report["cpu_isas_supported"]:
            off.append(f"{isa} off: this CPU does not have it")
        elif isa != report["cpu_isa"]:
            off.append(f"{isa} built, not chosen")
    return "; ".join(off)


def _cuda(report: dict[str, Any]) -> str:
    built = ""
    if report.get("cuda_built"):
        built = f"built with CUDA {report['cuda_version']} for {_archs(report['cuda_archs'])}"
    if report["cuda_off_reason"] is None:
        return f"on, {built}"
    return f"off: {report['cuda_off_reason']}" + (f"; {built}" if built else "")


def _archs(archs: Any) -> str:
    return archs if isinstance(archs, str) else " ".join(map(str, archs))


def _cuda_device(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"cuda:{index} {torch.cuda.get_device_name(index)}, sm_{major}{minor}"


def _allocator() -> str:
    name, version = platform.libc_ver()
    if name == "glibc":
        return f"glibc {version}: fastdiff.tune_allocator() keeps large activations mapped (demo and train do)"
    return f"{name or platform.system()}: fastdiff.tune_allocator() does nothing here, it is for glibc"
