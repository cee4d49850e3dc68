from __future__ import annotations

import pytest

import fastdiff


@pytest.fixture(autouse=True)
def reference_without_extension():
    """Training is the same with the kernels and without; use them where they are built."""
    if fastdiff.build_info()["extension"]:
        yield
    else:
        with fastdiff.use_reference():
            yield
