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
