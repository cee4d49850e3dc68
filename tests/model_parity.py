"""A model of fastdiff.models against diffusers' own with the same weights: values, gradients, layouts, folders."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accuracy import assert_as_exact, float32_noise, max_error
from exact_diffusers import exact_diffusers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastdiff

Inputs = Mapping[str, Tensor]
Call = Callable[[nn.Module, Inputs], Tensor]
"""Runs a model, ours or diffusers', on named inputs."""

# Not of the model's dtype: bfloat16 would make another time of them, or another place.
ALWAYS_FLOAT32 = ("timestep", "guidance", "img_ids", "txt_ids")


def sample_of(model: nn.Module, inputs: Inputs) -> Tensor:
    return model(**inputs).sample


class Run(NamedTuple):
    output: Tensor
    gradients: dict[str, Tensor]
    """Of parameters and inputs, by name."""


def pair(theirs_class: type, ours_class: type, config: Mapping[str, Any]) -> tuple[nn.Module, nn.Module]:
    """diffusers' model and ours with the same random weights, in evaluation mode."""
    torch.manual_seed(0)
    return twins(theirs_class(**config), ours_class(**config))


def twins(theirs: nn.Module, ours: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Both with the same weights, in evaluation mode; the keys must be the same both ways."""
    with torch.no_grad():
        for parameter in theirs.parameters():  # norms start as the identity: make every weight matter
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert {key: v.shape for key, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    return theirs.eval(), ours.eval()


def full_width_pair(theirs_class: type, ours_class: type, config: Mapping[str, Any]) -> tuple[nn.Module, nn.Module]:
    """diffusers' model and ours on one set of weights, in evaluation mode: of a size that would take long to draw."""
    torch.manual_seed(0)
    with torch.device("meta"):
        theirs, ours = theirs_class(**config).eval(), ours_class(**config).eval()
    shapes = {key: like.shape for key, like in theirs.state_dict().items()}
    step = 976  # all are parts of one tensor, each from another place on
    size = max(shape.numel() for shape in shapes.values()) + step * len(shapes)
    noise = (0.02 * torch.randn(2**20)).repeat(-(-size // 2**20))
    state = {
        key: noise[index * step :][: shape.numel()].view(shape) for index, (key, shape) in enumerate(shapes.items())
    }
    theirs.load_state_dict(state, assign=True)
    ours.load_state_dict(state, assign=True)
    return theirs, ours


def assert_parity(theirs: nn.Module, ours: nn.Module, call: Call, inputs: Inputs) -> None:
    """The reference is diffusers in float64, and the kernels are as near to that as diffusers in the same dtype."""
    assert_same_in_float64(theirs, ours, call, inputs)
    for dtype in (torch.float32, torch.bfloat16):
        assert_as_exact_as_diffusers(theirs, ours, call, inputs, dtype)


def assert_same_in_float64(theirs: nn.Module, ours: nn.Module, call: Call, inputs: Inputs) -> None:
    """The reference gives the values and gradients of diffusers."""
    with exact_diffusers(theirs):
        expected = _run(theirs, call, inputs, torch.float64)
    with fastdiff.use_reference():
        actual = _run(ours, call, inputs, torch.float64)
    assert max_error(actual.output, expected.output) <= 1e-9 * expected.output.abs().max()
    assert actual.gradients.keys() == expected.gradients.keys()
    # Some gradients are zero but for rounding (a key's bias, say), so the scale is that of the largest, too.
    largest = max(gradient.abs().max() for gradient in expected.gradients.values())
    for name, gradient in expected.gradients.items():
        allowed = 1e-9 * (gradient.abs().max() + 1e-4 * largest)
        assert max_error(actual.gradients[name], gradient) <= allowed, name


def assert_as_exact_as_diffusers(
    theirs: nn.Module, ours: nn.Module, call: Call, inputs: Inputs, dtype: torch.dtype
) -> None:
    """The error against float64 of result and gradients, at most twice that of diffusers in the same dtype."""
    with exact_diffusers(theirs):
        # Weights and inputs are rounded first, so that float64 has the same numbers.
        exact = _run(theirs, call, inputs, dtype, torch.float64)
    eager, fused = _run(theirs, call, inputs, dtype), _run(ours, call, inputs, dtype)
    assert fused.output.dtype == dtype
    assert_as_exact(fused.output, eager.output, exact.output, f"output in {dtype}")
    # With the first, noise of gradients that are zero but for rounding cannot hide the rest; with the other, small ones
    # count as well.
    sizes = [_rms(gradient) for gradient in exact.gradients.values()]
    errors = [
        [_rms(actual.gradients[name].double() - gradient) for name, gradient in exact.gradients.items()]
        for actual in (fused, eager)
    ]
    for least in (1e-3, 1e-4):
        mine, others = (_gradient_error(of_each, sizes, least) for of_each in errors)
        assert mine <= 2 * others + 1e-6, f"gradients in {dtype}, {least}: {mine:.2e} > 2 * {others:.2e}"


def _gradient_error(errors: list[float], sizes: list[float], least: float) -> float:
    """Root mean square over the tensors of each one's error, of which `errors` and `sizes` are root mean squares, too.

    A gradient may have a dozen elements, whose largest error is a matter of luck: each counts by its mean square, as a
    part of its own size, or of `least` times the largest where that is more.
    """
    floor = least * max(sizes)
    parts = [error / max(size, floor) for error, size in zip(errors, sizes, strict=True)]
    return math.sqrt(sum(part**2 for part in parts) / len(parts))


def _rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def _run(model: nn.Module, call: Call, inputs: Inputs, *dtypes: torch.dtype) -> Run:
    """The output, and the gradients of a weighted sum of it, in the last of `dtypes`; all are gone through."""
    for dtype in dtypes:
        inputs = {name: _cast(name, x, dtype) for name, x in inputs.items()}
    leaves = {name: x.requires_grad_() for name, x in inputs.items() if _is_activation(name, x)}
    leaves |= {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with _in_dtype(model, *dtypes):
        output = call(model, inputs)
        weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(dtypes[-1])
        # What has no part in the result has gradient 0 in one model and none in another.
        gradients = torch.autograd.grad(
            output, list(leaves.values()), weight, allow_unused=True, materialize_grads=True
        )
    return Run(output.detach(), dict(zip(leaves, gradients, strict=True)))


@contextlib.contextmanager
def _in_dtype(model: nn.Module, *dtypes: torch.dtype) -> Iterator[None]:
    """The model itself, no copy, in a dtype; its weights are back afterwards as they were."""
    kept = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    for dtype in dtypes:
        model.to(dtype)
    try:
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data
        for module, values in buffers:
            module._buffers.update(values)


def _is_activation(name: str, x: Tensor) -> bool:
    return x.is_floating_point() and name not in ALWAYS_FLOAT32


def _cast(name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.detach().to(dtype, copy=True) if _is_activation(name, x) else x


def assert_close_in_float32(actual: Tensor, expected: Tensor, roundings: float = 20) -> None:
    assert max_error(actual, expected.double()) <= roundings * float32_noise(expected.double())


def assert_same_in_float32(theirs: nn.Module, ours: nn.Module, call: Call, inputs: Inputs) -> None:
    with torch.no_grad():
        expected, actual = call(theirs, inputs), call(ours, inputs)
    assert max_error(actual, expected.double()) < 1e-4 * expected.abs().max()


class LayoutFlips(TorchDispatchMode):
    """The operations inside that copy a feature map or its tokens, or that give a map which is not channels-last."""

    COPIES = ("aten.clone", "aten._to_copy", "aten.copy_", "aten.contiguous")
    MAPS = ("convolution", "cat", "group_norm_silu", "upsample", "constant_pad", "add.Tensor")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.maps = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = str(function)
        for x in _tensors(result):
            if any(copy in name for copy in self.COPIES) and x.dim() > 2:
                self.found.append(name)
            if any(word in name for word in self.MAPS) and x.dim() == 4 and not x.is_mkldnn:  # which is a weight
                self.maps += 1
                if not x.is_contiguous(memory_format=torch.channels_last):
                    self.found.append(f"{name} -> {x.stride()}")
        return result


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, tuple | list):
        for item in result:
            yield from _tensors(item)


def assert_stays_channels_last(model: nn.Module, call: Call, inputs: Inputs) -> None:
    """Feature maps go through in the layout of the input, without a copy, and the values are those of the other one."""
    expected = call(model, inputs)
    assert expected.is_contiguous()
    flipped = {name: x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for name, x in inputs.items()}
    for layout in (torch.contiguous_format, torch.channels_last):  # of the weights
        model = model.to(memory_format=layout)
        with torch.no_grad():
            call(model, flipped)  # lays out the weights
            with LayoutFlips() as flips:
                actual = call(model, flipped)
        assert flips.found == [] and flips.maps > 10
        assert actual.is_contiguous(memory_format=torch.channels_last)
        assert_close_in_float32(actual, expected)


def assert_folders_are_shared(theirs: nn.Module, ours: nn.Module, call: Call, inputs: Inputs, folder: Path) -> None:
    """What either saves, the other loads, and ours loads its own, with the results of what was saved."""
    expected, expected_theirs = call(ours, inputs), call(theirs, inputs)
    theirs.save_pretrained(folder / "theirs")
    size = sum(x.nbytes for x in theirs.state_dict().values())
    theirs.save_pretrained(folder / "shards", max_shard_size=size // 4)
    assert len(list((folder / "shards").glob("*.safetensors"))) > 2
    ours.save_pretrained(folder / "ours")
    for name in ("theirs", "shards", "ours"):
        loaded = type(ours).from_pretrained(folder / name)
        assert loaded.config == ours.config and not loaded.training
        assert torch.equal(call(loaded, inputs), expected)
    assert torch.equal(call(type(theirs).from_pretrained(folder / "ours"), inputs), expected_theirs)


def assert_checkpointing_gives_the_same(model: nn.Module, block: nn.Module, call: Call, inputs: Inputs) -> None:
    """The same result and gradients to the bit, and `block` of the model does run again, but not without gradients."""
    runs: list[int] = []
    block.register_forward_pre_hook(lambda *_: runs.append(1))
    plain = _trained(model, call, inputs)
    assert len(runs) == 1
    model.enable_gradient_checkpointing()
    assert all(map(torch.equal, _trained(model, call, inputs), plain))
    assert len(runs) == 3
    with torch.no_grad():
        call(model, inputs)
    assert len(runs) == 4
    model.disable_gradient_checkpointing()


def assert_takes_any_timestep(model: nn.Module, call: Call, inputs: dict[str, Any]) -> None:
    """A number, or a tensor of no dimension, of one entry, or of one for each of three samples."""
    vector = call(model, inputs | {"timestep": torch.full((3,), 250)})
    for timestep in (250, 250.0, torch.tensor(250), torch.tensor([250])):
        assert torch.equal(call(model, inputs | {"timestep": timestep}), vector)
    assert not torch.equal(call(model, inputs | {"timestep": 251}), vector)


def assert_keeps_timestep_in_float32(model: nn.Module, call: Call, inputs: Inputs) -> None:
    """In a model in bfloat16, which has no 750: rounded, the two would be the same."""
    inputs = {name: _cast(name, x, torch.bfloat16) for name, x in inputs.items()}
    with _in_dtype(model, torch.bfloat16):
        results = [call(model, inputs | {"timestep": timestep}) for timestep in (750, 752)]
    assert not torch.equal(*results)
    assert results[0].dtype == torch.bfloat16


def with_old_attention_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As diffusers named the projections of attention among pixels before version 0.17."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for key, value in state.items():
        for new, former in old.items():
            key = key.replace(new, former)
        renamed[key] = value
    assert renamed.keys() != state.keys()
    return renamed


def first_blocks(transformer: nn.Module) -> list[nn.Module]:
    """Of every kind of block that a transformer has, the first."""
    stacks = [child for name, child in transformer.named_children() if name.endswith("transformer_blocks")]
    return [blocks[0] for blocks in stacks if len(blocks)]


def assert_compiles(model: nn.Module, call: Call, inputs: Inputs) -> None:
    """Without a graph break, forward and backward."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda inputs: call(model, inputs), fullgraph=True, backend="aot_eager")
    actual, expected = (_trained(model, run, inputs) for run in (lambda _, inputs: compiled(inputs), call))
    largest = max(gradient.abs().max() for gradient in expected[1:])
    for a, b in zip(actual, expected, strict=True):
        # Some gradients are zero but for rounding.
        assert max_error(a, b.double()) <= 1e-5 * b.abs().max() + 1e-7 * largest


def _trained(model: nn.Module, call: Call, inputs: Inputs) -> list[Tensor]:
    """The output and the gradients of its sum of squares."""
    torch.manual_seed(3)  # of dropout
    output = call(model, inputs)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(output.square().sum(), parameters, allow_unused=True, materialize_grads=True)
    return [output, *gradients]
