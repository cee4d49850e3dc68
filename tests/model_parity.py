"""A model of fastdiff.models against diffusers' own with the same weights: values, gradients, layouts, folders."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accuracy import assert_as_exact, float32_noise, max_error
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastdiff
from fastdiff import reference
from fastdiff.models.embeddings import GaussianFourierEmbedding
from fastdiff.nn import Timesteps

Call = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
"""Runs a model, ours or diffusers', on named inputs."""


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


class ExactTimesteps(nn.Module):
    """The embedding of the timestep in float64 throughout: in float32 its angles would hide all other differences."""

    def __init__(self, like: Timesteps | GaussianFourierEmbedding) -> None:
        super().__init__()
        self.like = like

    def forward(self, timesteps: Tensor) -> Tensor:
        like = self.like
        if isinstance(like, GaussianFourierEmbedding):
            angle = 2 * math.pi * timesteps.double().log()[:, None] * like.weight.double()
            return torch.cat((angle.sin(), angle.cos()), dim=1)
        return reference.timestep_embedding(
            timesteps.double(),
            like.num_channels,
            flip_sin_to_cos=like.flip_sin_to_cos,
            downscale_freq_shift=like.downscale_freq_shift,
            dtype=torch.float64,
        ).to(torch.float64)


def use_exact_timesteps(theirs: nn.Module, ours: nn.Module) -> None:
    for name in {"time_proj", "add_time_proj"} & {child for child, _ in ours.named_children()}:
        exact = ExactTimesteps(getattr(ours, name))
        for model in (theirs, ours):
            setattr(model, name, exact)


def assert_parity(theirs: nn.Module, ours: nn.Module, call: Call, inputs: Mapping[str, Tensor]) -> None:
    """The reference is diffusers in float64, and the kernels are as near to that as diffusers in the same dtype.

    Values and gradients. Both models are left in bfloat16.
    """
    assert_same_in_float64(theirs, ours, call, inputs)
    for dtype in (torch.float32, torch.bfloat16):
        # The inputs and weights themselves are rounded first, or that would be most of the error.
        rounded = _cast(_cast(inputs, dtype), torch.float64)
        exact = _run(theirs.to(dtype).double(), call, rounded)
        eager = _run(theirs.to(dtype), call, _cast(inputs, dtype))
        fused = _run(ours.to(dtype), call, _cast(inputs, dtype))
        assert fused["output"].dtype == dtype
        assert_as_exact(fused["output"], eager["output"], exact["output"], f"output in {dtype}")
        mine, others = _gradient_error(fused, exact), _gradient_error(eager, exact)
        assert mine <= 2 * others + 1e-6, f"gradients in {dtype}: {mine:.2e} > 2 * {others:.2e}"


def assert_same_in_float64(theirs: nn.Module, ours: nn.Module, call: Call, inputs: Mapping[str, Tensor]) -> None:
    """The reference gives the values and gradients of diffusers. Both models are left in float64."""
    exact = _run(theirs.double(), call, _cast(inputs, torch.float64))
    with fastdiff.use_reference():
        actual = _run(ours.double(), call, _cast(inputs, torch.float64))
    assert actual.keys() == exact.keys()
    largest = max(value.abs().max().item() for name, value in exact.items() if name != "output")
    for name, value in exact.items():
        # Some gradients are zero but for rounding, that of a key's bias, say.
        allowed = 1e-9 * value.abs().max().item() + (0.0 if name == "output" else 1e-12 * largest)
        assert max_error(actual[name], value) <= allowed, name


def _gradient_error(actual: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    """Root mean square over the tensors of the error relative to each one's size."""
    largest = max(value.abs().max().item() for value in exact.values())
    squares = []
    for name, value in exact.items():
        if name != "output":
            size = value.abs().max().item() + 1e-3 * largest
            squares.append(((actual[name].double() - value) / size).square().mean())
    return torch.stack(squares).mean().sqrt().item()


def _run(model: nn.Module, call: Call, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The output, and the gradients of the inputs and of the weights."""
    leaves = {name: x.detach().clone().requires_grad_(x.is_floating_point()) for name, x in inputs.items()}
    model.zero_grad()
    output = call(model, leaves)
    weight = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).cos().reshape(output.shape)
    (output * weight.to(output.dtype)).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    gradients |= {name: x.grad for name, x in leaves.items() if x.grad is not None}
    return {"output": output.detach(), **{name: gradient.clone() for name, gradient in gradients.items()}}


def _cast(inputs: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}


def assert_close_in_float32(actual: Tensor, expected: Tensor, roundings: float = 20) -> None:
    assert max_error(actual, expected.double()) <= roundings * float32_noise(expected.double())


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
            if any(word in name for word in self.MAPS) and x.dim() == 4:
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


def assert_stays_channels_last(model: nn.Module, call: Call, inputs: Mapping[str, Tensor]) -> None:
    """Feature maps go through in the layout of the input, without a copy, and the values are those of the other one."""
    expected = call(model, inputs)
    assert expected.is_contiguous()
    flipped = {name: x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for name, x in inputs.items()}
    for layout in (torch.contiguous_format, torch.channels_last):  # of the weights
        model = model.to(memory_format=layout)
        with torch.no_grad(), LayoutFlips() as flips:
            actual = call(model, flipped)
        assert flips.found == [] and flips.maps > 10
        assert actual.is_contiguous(memory_format=torch.channels_last)
        assert_close_in_float32(actual, expected)


def assert_folders_are_shared(theirs: nn.Module, ours: nn.Module, call: Call, inputs: Any, folder: Path) -> None:
    """What either saves, the other loads, and ours loads its own."""
    theirs.save_pretrained(folder / "theirs")
    ours.save_pretrained(folder / "ours")
    for name in ("theirs", "ours"):
        loaded = type(ours).from_pretrained(folder / name)
        assert loaded.config == ours.config and not loaded.training
        assert torch.equal(call(loaded, inputs), call(ours, inputs))
    loaded = type(theirs).from_pretrained(folder / "ours")
    assert torch.equal(call(loaded, inputs), call(theirs, inputs))


def assert_checkpointing_gives_the_same(
    model: nn.Module, block: nn.Module, call: Call, inputs: Mapping[str, Tensor]
) -> None:
    """The same result and gradients to the bit, and `block` of the model does run again."""
    runs = []
    block.register_forward_pre_hook(lambda *_: runs.append(1))

    def gradients() -> list[Tensor]:
        torch.manual_seed(3)  # of dropout
        loss = call(model, inputs).square().sum()
        parameters = [p for p in model.parameters() if p.requires_grad]
        return [loss, *torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)]

    plain = gradients()
    assert len(runs) == 1
    model.enable_gradient_checkpointing()
    assert all(map(torch.equal, gradients(), plain))
    assert len(runs) == 3
    model.disable_gradient_checkpointing()
