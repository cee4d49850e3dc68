from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def kernels_where_built(reference_without_extension: None) -> None:
    """Training is the same with the kernels and without."""
