"""What all models have: folders on disk in diffusers' format, and gradient checkpointing."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastdiff._files import replacing
from fastdiff.models.exact_buffers import exact_names
from fastdiff.models.hub import find_folder
from fastdiff.models.single_file import convert, find_part, infer_config
from fastdiff.models.weights import (
    WEIGHTS_NAME,
    WEIGHTS_PATTERNS,
    read_head,
    read_json,
    read_tensors,
    read_weights,
    remove_shards,
    write_tensors,
)

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

CONFIG_NAME = "config.json"


class PretrainedModel(nn.Module):
    """A network with a frozen dataclass as its configuration, saved to and loaded from a folder.

    Only safetensors is read and written: loading a file runs no code from it.
    """

    config_class: ClassVar[type]
    former_class_names: ClassVar[tuple[str, ...]] = ()
    """What the model was called in the configurations of older versions of diffusers."""
    config: Any
    gradient_checkpointing = False

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights, of the first one."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """That of the weights, of the first one."""
        return next(self.parameters()).device

    def enable_gradient_checkpointing(self, enable: bool = True) -> None:
        """Keep for the backward pass what goes into each block only, and run the block again there.

        Training then takes a third more time, and memory that grows with the blocks by their inputs alone (Training
        Deep Nets with Sublinear Memory Cost, arXiv:1604.06174). Results and gradients are the same, dropout included.
        """
        self.gradient_checkpointing = enable

    def disable_gradient_checkpointing(self) -> None:
        self.enable_gradient_checkpointing(False)

    def run_block(self, block: nn.Module, *inputs: Any) -> Any:
        """``block(*inputs)``, checkpointed where that is enabled: how a model calls its blocks.

        The block must leave its inputs, lists among them, as they are.
        """
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    @classmethod
    def parse_config(cls, values: dict[str, Any]) -> Any:
        """The configuration from its keys. Keys that begin with an underscore (diffusers' notes) are left out."""
        values = {key: value for key, value in values.items() if not key.startswith("_")}
        known = [field.name for field in dataclasses.fields(cls.config_class)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"{cls.__name__} has no configuration key {unknown[0]!r}; the keys are {known}")
        return cls.config_class(**values)

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """A model with fresh weights from a dict with diffusers' keys, or from another model's ``config``."""
        values = dict(config) if isinstance(config, Mapping) else dataclasses.asdict(config)
        return cls(**{key: value for key, value in values.items() if not key.startswith("_")})

    @classmethod
    def from_pretrained(
        cls,
        folder_or_id: str | os.PathLike[str],
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """The model in a folder or on the Hugging Face hub, in evaluation mode.

        Args:
            folder_or_id: a folder, or the name of a model on the hub ("organisation/name"), which is fetched once.
            subfolder: of that, such as "unet" in the folder of a pipeline.
            revision: branch, tag or commit, of a model on the hub.
            dtype: of the floating-point weights; None is as stored.
            device: where the weights go; None is the CPU.

        Raises:
            FileNotFoundError: there is no such model, or one of its files is missing.
            ValueError: a file is damaged, the weights are not those of the configuration, or they are a pickle.
        """
        folder = find_folder(folder_or_id, [CONFIG_NAME, *WEIGHTS_PATTERNS], subfolder, revision)
        config = read_json(folder / CONFIG_NAME)
        if config.get("_class_name", cls.__name__) not in (cls.__name__, *cls.former_class_names):
            raise ValueError(f"{folder / CONFIG_NAME} is of a {config['_class_name']}, not of a {cls.__name__}")
        with torch.device("meta"):  # no time for initial values that are overwritten at once
            model = cls.from_config(config)
        state = read_weights(folder, dtype, device, exact=set(exact_names(model)))
        try:
            model.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise ValueError(f"the weights in {folder} do not fit its {CONFIG_NAME}: {error}") from error
        return model.eval()

    @classmethod
    def from_single_file(
        cls,
        path: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **values: Any,
    ) -> Self:
        """The model in a file of the layout that it was first published in, in evaluation mode.

        That may be a file with other networks beside this one, as those of Stable Diffusion. Weights of an average
        that lie beside others (``model_ema``) are not read. The configuration is what names and shapes of the tensors
        tell and, where they don't, what the published models of the family have.

        Args:
            path: of a safetensors file.
            dtype: of the weights; None is as stored. What keeps its dtype and stays on the CPU is, where it can be, a
                view of the file, which is mapped.
            device: where the weights go; None is the CPU.
            **values: keys of the configuration that are known better, such as the scaling_factor of an autoencoder in a
                file of its own, or the number of heads of a model of an unusual width.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the class has no such layout; the file is damaged, a pickle or of another model; a tensor is
                missing, superfluous, of another shape or quantised; or the file does not tell a key.
        """
        path = Path(path)
        part = find_part(cls, path, read_head(path))
        config = infer_config(cls, part, values)
        try:
            with torch.device("meta"):
                model = cls.from_config(config)
        except ValueError as error:
            raise ValueError(f"what {path} tells does not make a {cls.__name__}: {error}") from error
        names = {part.prefix + name for name in part.tensors}
        state = convert(model, part, read_tensors(path, names), dtype, device)
        model.load_state_dict(state, assign=True)
        return model.eval()

    def save_pretrained(self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> None:
        """Write the configuration and the weights (in `dtype`; None: as they are) to `folder`, which is created.

        A model that is there already stays as it was if the writing fails.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"_class_name": type(self).__name__, **self._config_to_save()}
        exact = set(exact_names(self))
        state = {
            key: value.detach().to("cpu", None if key in exact else dtype).contiguous()
            for key, value in self.state_dict().items()
        }
        with replacing(folder / CONFIG_NAME, folder / WEIGHTS_NAME) as (config_file, weights_file):
            config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            # "format" is what transformers and diffusers ask for.
            write_tensors(weights_file, state, {"format": "pt"})
        remove_shards(folder)

    def _config_to_save(self) -> dict[str, Any]:
        return dataclasses.asdict(self.config)
