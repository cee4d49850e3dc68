"""A transformer of fastdiff.models against the one of diffusers with the same weights: results and gradients."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from accuracy import assert_as_exact
from torch import Tensor, nn

import fastdiff

Inputs = dict[str, Tensor]
# Not of the model's dtype: bfloat16 would make another time of them, or another place.
ALWAYS_FLOAT32 = ("timestep", "guidance", "img_ids", "txt_ids")


class Run(NamedTuple):
    sample: Tensor
    gradients: dict[str, Tensor]
    """Of parameters and inputs, by name."""


def pair(theirs_class: type, ours_class: type, config: dict) -> tuple[nn.Module, nn.Module]:
    """diffusers' model and ours with the same weights, in evaluation mode. Keys must agree: loading is strict."""
    torch.manual_seed(0)
    theirs, ours = theirs_class(**config).eval(), ours_class(**config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # norms start as the identity: make every weight matter
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    return theirs, ours


def run(model: nn.Module, inputs: Inputs, dtype: torch.dtype) -> Run:
    """One evaluation and the gradients of a weighted sum, in `dtype`."""
    model = copy.deepcopy(model).to(dtype)
    inputs = {name: _cast(name, operand, dtype) for name, operand in inputs.items()}
    leaves = {name: x.requires_grad_() for name, x in inputs.items() if _is_activation(name, x)}
    sample = model(**inputs).sample
    leaves |= dict(model.named_parameters())
    seed = torch.randn(sample.shape, generator=torch.Generator().manual_seed(2))
    gradients = torch.autograd.grad(sample, list(leaves.values()), seed.to(dtype), allow_unused=True)
    # What has no part in the result has gradient 0 or none.
    by_name = zip(leaves.items(), gradients, strict=True)
    return Run(sample, {name: torch.zeros_like(x) if g is None else g for (name, x), g in by_name})


def assert_same_in_float64(theirs: nn.Module, ours: nn.Module, inputs: Inputs, tolerance: float = 1e-9) -> None:
    with exact_diffusers():
        expected = run(theirs, inputs, torch.float64)
    with fastdiff.use_reference():
        actual = run(ours, inputs, torch.float64)
    assert max_error(actual.sample, expected.sample) < tolerance * expected.sample.abs().max()
    assert actual.gradients.keys() == expected.gradients.keys()
    # Some gradients are zero but for rounding (a key's bias, say), so the scale is that of the largest, too.
    largest = max(gradient.abs().max() for gradient in expected.gradients.values())
    for name, gradient in expected.gradients.items():
        allowed = tolerance * (gradient.abs().max() + 1e-4 * largest)
        assert max_error(actual.gradients[name], gradient) <= allowed, name


def assert_as_exact_as_diffusers(theirs: nn.Module, ours: nn.Module, inputs: Inputs, dtype: torch.dtype) -> None:
    """The error against float64 of result and gradients, at most twice that of diffusers in the same dtype."""
    # Rounded, so that float64 has the same numbers.
    theirs, ours = (copy.deepcopy(model).to(dtype).float() for model in (theirs, ours))
    inputs = {name: _cast(name, operand, dtype).float() if operand.is_floating_point() else operand
              for name, operand in inputs.items()}  # fmt: skip
    with exact_diffusers():
        exact = run(theirs, inputs, torch.float64)
    expected, actual = run(theirs, inputs, dtype), run(ours, inputs, dtype)
    assert actual.sample.dtype == dtype
    assert_as_exact(actual.sample, expected.sample, exact.sample)
    # A gradient may have a dozen elements, whose largest error is a matter of luck: each counts by its mean square, as
    # a part of its own size or of a ten-thousandth of the largest.
    largest = max(rms(gradient) for gradient in exact.gradients.values())

    def error(result: Run) -> float:
        parts = [
            rms(result.gradients[name].double() - gradient) / max(rms(gradient), 1e-4 * largest)
            for name, gradient in exact.gradients.items()
        ]
        return math.sqrt(sum(part**2 for part in parts) / len(parts))

    assert error(actual) <= 2 * error(expected) + 1e-6


def assert_folders_are_shared(theirs: nn.Module, ours: nn.Module, inputs: Inputs, folder: Path) -> None:
    """What either saves the other loads, and gives the results of what was saved."""
    expected, expected_theirs = ours(**inputs).sample, theirs(**inputs).sample
    theirs.save_pretrained(folder / "theirs")
    theirs.save_pretrained(folder / "shards", max_shard_size="20KB")
    assert len(list((folder / "shards").glob("*.safetensors"))) > 2
    ours.save_pretrained(folder / "ours")
    for name in ("theirs", "shards", "ours"):
        loaded = type(ours).from_pretrained(folder / name)
        assert loaded.config == ours.config and not loaded.training
        assert torch.equal(loaded(**inputs).sample, expected)
    assert torch.equal(type(theirs).from_pretrained(folder / "ours")(**inputs).sample, expected_theirs)


def assert_checkpointing_gives_the_same(model: nn.Module, inputs: Inputs) -> None:
    """Results and gradients, and it does run the blocks again, of every kind the first."""
    for name, blocks in model.named_children():
        if name.endswith("transformer_blocks") and len(blocks) > 0:
            _assert_runs_again(model, blocks[0], inputs)


def _assert_runs_again(model: nn.Module, block: nn.Module, inputs: Inputs) -> None:
    calls = []
    block.register_forward_pre_hook(lambda *_: calls.append(1))

    def gradients() -> list[Tensor]:
        torch.manual_seed(3)  # of dropout
        sample = model(**inputs).sample
        return [sample, *torch.autograd.grad(sample.square().sum(), list(model.parameters()), materialize_grads=True)]

    plain = gradients()
    assert len(calls) == 1
    model.enable_gradient_checkpointing()
    checkpointed = gradients()
    assert len(calls) == 3
    with torch.no_grad():
        model(**inputs)
    assert len(calls) == 4
    model.disable_gradient_checkpointing()
    assert all(map(torch.equal, checkpointed, plain))


def assert_compiles(model: nn.Module, inputs: Inputs) -> None:
    """Without a graph break, forward and backward."""
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    sample, expected = compiled(**inputs).sample, model(**inputs).sample
    torch.testing.assert_close(sample, expected, rtol=1e-4, atol=1e-5)
    parameters = [p for p in model.parameters() if p.requires_grad]
    actual, expected = (
        torch.autograd.grad(y.square().sum(), parameters, materialize_grads=True) for y in (sample, expected)
    )
    largest = max(gradient.abs().max().item() for gradient in expected)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * largest)


def full_width_pair(theirs_class: type, ours_class: type, config: dict) -> tuple[nn.Module, nn.Module]:
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


def assert_same_in_float32(theirs: nn.Module, ours: nn.Module, inputs: Inputs) -> None:
    with torch.no_grad():
        expected, actual = theirs(**inputs).sample, ours(**inputs).sample
    assert max_error(actual, expected) < 1e-4 * expected.abs().max()


def max_error(actual: Tensor, expected: Tensor) -> float:
    return (actual - expected).abs().max().item()


def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


@contextlib.contextmanager
def exact_diffusers() -> Iterator[None]:
    """diffusers without the steps that are float32 in a model of any dtype."""
    from diffusers.models import embeddings, normalization
    from diffusers.models.transformers import transformer_flux

    def timestep_embedding(timesteps, embedding_dim, flip_sin_to_cos, downscale_freq_shift, scale):
        assert flip_sin_to_cos and scale == 1
        index = torch.arange(embedding_dim // 2, dtype=torch.float64)
        frequencies = 10000 ** (-index / (embedding_dim // 2 - downscale_freq_shift))
        angle = timesteps.double()[:, None] * frequencies
        return torch.cat((angle.cos(), angle.sin()), dim=-1)

    def rms_norm(self, x):
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight

    def rotary(x, tables, sequence_dim):
        assert sequence_dim == 1
        cos, sin = (table[None, :, None].double() for table in tables)
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        return x * cos + torch.stack((-second, first), dim=-1).flatten(-2) * sin

    with (
        mock.patch.object(embeddings, "get_timestep_embedding", timestep_embedding),
        mock.patch.object(normalization.RMSNorm, "forward", rms_norm),
        mock.patch.object(transformer_flux, "apply_rotary_emb", rotary),
    ):
        yield


def _is_activation(name: str, operand: Tensor) -> bool:
    return operand.is_floating_point() and name not in ALWAYS_FLOAT32


def _cast(name: str, operand: Tensor, dtype: torch.dtype) -> Tensor:
    return operand.to(dtype) if _is_activation(name, operand) else operand.clone()
