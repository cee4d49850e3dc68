"""Checks that the configurations of the models share. Every error names the key, what was given and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def frozen(value: Any) -> Any:
    """A value from JSON, whose lists become tuples."""
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def freeze(config: Any, *keys: str) -> None:
    """Make the lists of a frozen dataclass, as JSON has them, tuples."""
    for key in keys:
        object.__setattr__(config, key, frozen(getattr(config, key)))


def require_choice(config: Any, **allowed: Sequence[Any]) -> None:
    for key, values in allowed.items():
        if getattr(config, key) not in values:
            raise ValueError(f"{key} must be one of {values}, got {getattr(config, key)!r}")


def require_at_least(least: int, config: Any, *keys: str) -> None:
    for key in keys:
        value = getattr(config, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{key} must be an integer of at least {least}, got {value!r}")


def require_positive(config: Any, *keys: str) -> None:
    require_at_least(1, config, *keys)


def require_positive_or_none(config: Any, *keys: str) -> None:
    require_positive(config, *(key for key in keys if getattr(config, key) is not None))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def require_between(low: float, high: float, config: Any, *keys: str) -> None:
    for key in keys:
        value = getattr(config, key)
        if not is_number(value) or not low <= value <= high:
            raise ValueError(f"{key} must lie in {low} ... {high}, got {value!r}")


def require_above_zero(config: Any, *keys: str) -> None:
    for key in keys:
        value = getattr(config, key)
        if not is_number(value) or value <= 0:
            raise ValueError(f"{key} must be a number above 0, got {value!r}")


def require_tuple(config: Any, *keys: str, least: int = 1) -> None:
    """Each key holds positive integers, `least` or more of them."""
    for key in keys:
        value = getattr(config, key)
        if not isinstance(value, tuple) or len(value) < least or not all(type(x) is int and x > 0 for x in value):
            raise ValueError(f"{key} must hold {least} or more positive integers, got {value!r}")


def require_entries(config: Any, **allowed: Sequence[Any]) -> None:
    """Each key holds one of its allowed entries for each of block_out_channels."""
    for key, values in allowed.items():
        if not isinstance(getattr(config, key), tuple):
            raise ValueError(f"{key} must be a list, got {getattr(config, key)!r}")
        require_length(config, key)
        for entry in getattr(config, key):
            if entry not in values:
                raise ValueError(f"{key} must hold only {values}, got {entry!r}")


def require_length(config: Any, *keys: str) -> None:
    """Each key that holds a tuple has one entry for each of block_out_channels."""
    for key in keys:
        value = getattr(config, key)
        if isinstance(value, tuple) and len(value) != len(config.block_out_channels):
            raise ValueError(
                f"{key} must have one entry for each of block_out_channels {config.block_out_channels}, got {value}"
            )


def require_groups(config: Any) -> None:
    """norm_num_groups divides the channels of every resolution."""
    groups = config.norm_num_groups
    for channels in config.block_out_channels:
        if not isinstance(groups, int) or groups < 1 or channels % groups:
            raise ValueError(
                f"norm_num_groups must divide every entry of block_out_channels {config.block_out_channels}, "
                f"got {groups}"
            )


def require_even_start(config: Any) -> None:
    """The first of block_out_channels is the width of a timestep's embedding, half of it sines and half cosines."""
    if config.block_out_channels[0] % 2:
        raise ValueError(f"block_out_channels must begin with an even number, got {config.block_out_channels}")


def require_patches(config: Any) -> None:
    """A transformer's width can hold the place of a patch, and a picture of sample_size at least one patch."""
    if config.num_attention_heads * config.attention_head_dim % 4:
        raise ValueError(
            "num_attention_heads * attention_head_dim must be a multiple of 4 (a sine and a cosine for each of two "
            f"axes), got {config.num_attention_heads} * {config.attention_head_dim}"
        )
    if config.sample_size < config.patch_size:
        raise ValueError(f"sample_size must be at least patch_size {config.patch_size}, got {config.sample_size}")
