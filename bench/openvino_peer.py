"""OpenVINO as a baseline: an op's definition, or a model, exported, converted and compiled for the CPU."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import textwrap
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

NAME = "openvino"
_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


class NotConverted(Exception):
    """OpenVINO cannot run an op; the message says why."""


def available() -> bool:
    return importlib.util.find_spec("openvino") is not None


def _import() -> Any:
    # OpenVINO's conversion reports to its makers, unless the package that does so cannot be imported.
    sys.modules.setdefault("openvino_telemetry", None)
    return importlib.import_module("openvino")


class Converted:
    """The definition as a function of the same signature, converted when it is called first.

    It is compiled for the operands of that call: their shapes, the first one's precision, and all that is not a tensor.
    Operands of one dimension beside larger ones are weights, which OpenVINO has as constants, as it would in a model.
    Results lie in memory that the next call writes again.
    """

    def __init__(self, definition: Callable[..., Any], threads: int) -> None:
        self._definition = definition
        self._threads = threads
        self._request: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        operands, structure = pytree.tree_flatten((args, kwargs))
        inputs = [i for i, operand in enumerate(operands) if _is_input(operand, operands)]
        if self._request is None:
            self._request = self._compile(operands, structure, inputs)
        results = infer(self._request, [operands[i] for i in inputs])
        return results if len(results) > 1 else results[0]

    def _compile(self, operands: list[Any], structure: pytree.TreeSpec, inputs: list[int]) -> Any:
        module = _Module(self._definition, operands, structure, inputs)
        return compile_module(module, tuple(operands[i] for i in inputs), self._threads)


def compile_module(module: torch.nn.Module, inputs: tuple[Any, ...], threads: int) -> Any:
    """A request to OpenVINO for what the module gives for inputs like these, at the precision of the first.

    Raises:
        NotConverted: OpenVINO, or `torch.export`, cannot do it.
    """
    openvino = _import()
    dtype = inputs[0].dtype
    if dtype not in _PRECISIONS:
        raise NotConverted(f"OpenVINO has no {dtype} kernels for a CPU")
    settings = {
        "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # the other contenders' threads are not pinned either
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of PyTorch, about itself
            # Exported, since tracing would make tensors of the sizes that definitions compare.
            model = openvino.convert_model(torch.export.export(module, inputs))
        return openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    except Exception as error:  # of four libraries, each with exceptions of its own
        raise NotConverted(textwrap.shorten(f"{type(error).__name__}: {error}", 300)) from error


def infer(request: Any, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """The results, in memory that the next call writes again."""
    for port, operand in enumerate(inputs):
        request.set_input_tensor(port, _same_memory(operand))
    request.infer()
    return tuple(map(_to_torch, request.output_tensors))


class _Module(torch.nn.Module):
    """The definition as a function of its inputs alone."""

    def __init__(
        self, definition: Callable[..., Any], operands: list[Any], structure: pytree.TreeSpec, inputs: list[int]
    ) -> None:
        super().__init__()
        self._call = definition
        self._structure = structure
        self._inputs = inputs
        self._others = list(operands)
        for i, operand in enumerate(operands):
            if i not in inputs and isinstance(operand, Tensor):
                self.register_buffer(f"weight_{i}", operand)

    def forward(self, *inputs: Tensor) -> Any:
        operands = [getattr(self, f"weight_{i}", operand) for i, operand in enumerate(self._others)]
        for i, operand in zip(self._inputs, inputs, strict=True):
            operands[i] = operand
        args, kwargs = pytree.tree_unflatten(operands, self._structure)
        return self._call(*args, **kwargs)


def _is_input(operand: Any, operands: list[Any]) -> bool:
    dimensions = max(other.dim() for other in operands if isinstance(other, Tensor))
    return isinstance(operand, Tensor) and (operand.dim() > 1 or dimensions == 1)


def _same_memory(tensor: Tensor) -> Any:
    """Without a copy, which would be timed, and which OpenVINO would not keep."""
    openvino = _import()
    if not tensor.is_contiguous():
        raise NotConverted("OpenVINO has contiguous tensors only")
    array = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    if tensor.dtype == torch.bfloat16:  # which NumPy does not know
        return openvino.Tensor(array, openvino.Shape(list(tensor.shape)), openvino.Type.bf16)
    return openvino.Tensor(array, shared_memory=True)


def _to_torch(result: Any) -> Tensor:
    if result.element_type.to_string() == "bf16":
        return torch.from_numpy(result.data.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(result.data)
