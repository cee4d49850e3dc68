"""Checks that the configurations of the models share. Every error names the key, what was given and what is allowed."""

from __future__ import annotations

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


def require_entries(config: Any, **allowed: Sequence[Any]) -> None:
    """Each key holds one of its allowed entries for each of block_out_channels."""
    for key, values in allowed.items():
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
