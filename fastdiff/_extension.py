"""Loads the compiled extension once and remembers why it could not be loaded."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch  # noqa: F401  (the extension uses the libraries that torch loads)

_C: ModuleType | None = None
load_error: ImportError | None = None
try:
    _C = import_module("fastdiff._C")
except ImportError as error:
    load_error = error


def require() -> ModuleType:
    """The compiled module, or an ImportError that says why it is missing."""
    if _C is None:
        raise ImportError(
            f"fastdiff's compiled extension could not be loaded ({load_error}). Reinstall with 'pip install .'; "
            "'with fastdiff.use_reference():' runs every op in pure PyTorch meanwhile."
        ) from load_error
    return _C
