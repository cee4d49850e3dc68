import os
from collections.abc import Iterator

import pytest
import torch
from backends import BACKENDS, Backend, backend

import fastdiff

# The processes that pytest-xdist starts share the cores.
torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))


@pytest.fixture(params=BACKENDS)
def device(request: pytest.FixtureRequest) -> Backend:
    return backend(request.param)


@pytest.fixture
def reference_without_extension() -> Iterator[None]:
    """For what is the same with the kernels and without: use them where they are built."""
    if fastdiff.build_info()["extension"]:
        yield
    else:
        with fastdiff.use_reference():
            yield
