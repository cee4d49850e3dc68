from collections.abc import Iterator

import pytest
from backends import BACKENDS, Backend, backend

import fastdiff


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
