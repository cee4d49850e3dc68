"""Checkpoints in the layouts that networks were first published in: one file, with other names for the tensors.

Each family has a module with its table of names and the rules that its configuration follows from.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastdiff.models.exact_buffers import exact_names
from fastdiff.models.single_file import dit, flux, ldm_unet, ldm_vae, sd3
from fastdiff.models.single_file.layout import Assumed, Layout, NotTold, Part, Place, Rules, Table
from fastdiff.models.weights import StoredTensor

if TYPE_CHECKING:
    from fastdiff.models.pretrained import PretrainedModel

LAYOUTS = {
    "AutoencoderKL": ldm_vae.LAYOUT,
    "DiTTransformer2DModel": dit.LAYOUT,
    "FluxTransformer2DModel": flux.LAYOUT,
    "SD3Transformer2DModel": sd3.LAYOUT,
    "UNet2DConditionModel": ldm_unet.LAYOUT,
}
"""By the name of the model's class."""

_DTYPES = ("F64", "F32", "F16", "BF16")
_DIFFUSERS = ("down_blocks.", "encoder.down_blocks.", "transformer_blocks.")


def layout_of(model_class: type) -> Layout:
    """Raises ValueError for a class without one."""
    for base in model_class.__mro__:
        if base.__name__ in LAYOUTS:
            return LAYOUTS[base.__name__]
    raise ValueError(f"{model_class.__name__} has no original layout of a single file; those are of {sorted(LAYOUTS)}")


def find_part(model_class: type, path: Path, tensors: Mapping[str, StoredTensor]) -> Part:
    """The part of a file that is a model of this class.

    Raises:
        ValueError: there is none, or one with weights that are not plain floating-point numbers.
    """
    layout = layout_of(model_class)
    part = layout.find(path, tensors)
    if part is None:
        found = [f"{name}.from_single_file" for name, other in LAYOUTS.items() if other.find(path, tensors)]
        if not found and any(name.startswith(_DIFFUSERS) for name in tensors):
            found = ["from_pretrained, of a folder with a config.json beside it: its names are diffusers'"]
        hint = f"; what it has is for {' and '.join(found)}" if found else ""
        raise ValueError(f"{path} has no {model_class.__name__} in its original layout, no {layout.mark}{hint}")
    for name, stored in part.tensors.items():
        if stored.dtype not in _DTYPES:
            raise ValueError(
                f"{part.prefix}{name} of {path} is stored as {stored.dtype}: quantised weights are not supported, only "
                f"those in {', '.join(_DTYPES)}"
            )
    return part


def infer_config(model_class: type, part: Part, given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the configuration, from names and shapes, and from what is given beside the file.

    Raises:
        ValueError: a tensor is missing that tells one, or nothing does.
    """
    values = {**layout_of(model_class).infer(part), **given}
    not_told = {key: value.reason for key, value in values.items() if isinstance(value, NotTold)}
    if not_told:
        keys, reason = " and ".join(not_told), next(iter(not_told.values()))
        raise ValueError(f"{part.path} does not tell {keys}, {reason}: give what is missing beside the path")
    for key, value in values.items():
        if isinstance(value, Assumed):
            warnings.warn(
                f"{part.path} does not tell {key}: {value.value} is taken, {value.reason}; give it beside the path",
                stacklevel=3,
            )
            values[key] = value.value
    return values


def convert(
    model: PretrainedModel,
    part: Part,
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> dict[str, Tensor]:
    """The state_dict of a model from the tensors of a file, by their names there, which are taken one at a time.

    Raises:
        ValueError: a tensor is missing, superfluous or of another shape.
    """
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    places = _places(layout_of(type(model)).rules(model.config), part, shapes)
    state, exact = {}, set(exact_names(model))
    for name, stored in tensors:
        place = places[name.removeprefix(part.prefix)]
        if stored.dim() == 0:
            raise ValueError(f"{name} of {part.path} is a single number")
        wanted = [shapes[target] for target in place.names]
        try:
            made = place.make(stored, wanted)
        except ValueError as error:
            raise ValueError(f"{name} of {part.path} {error}") from error
        for target, shape, tensor in zip(place.names, wanted, made, strict=True):
            if tensor.shape != shape:
                raise ValueError(
                    f"{name} of {part.path} has shape {tuple(stored.shape)}, which does not make up {target} of shape "
                    f"{tuple(shape)}"
                )
            state[target] = tensor.to(device, None if target in exact else dtype, copy=place.copy)
    return state


def _places(rules: Rules, part: Part, shapes: Mapping[str, torch.Size]) -> dict[str, Place]:
    """Of each tensor of the part. Every name of the model is taken once."""
    table = Table(rules)
    places: dict[str, Place] = {}
    missing, unknown = dict.fromkeys(shapes), []
    for name in part.tensors:
        place = table.place(name)
        if place is None or not missing.keys() >= set(place.names):
            unknown.append(part.prefix + name)
            continue
        places[name] = place
        for target in place.names:
            del missing[target]
    if unknown:
        raise ValueError(f"{part.path} has {_some(unknown)}, for which the model has no place")
    if missing:
        raise ValueError(f"{part.path} has nothing for {_some([*missing])} of the model")
    return places


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
