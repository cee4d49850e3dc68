import pytest
from backends import BACKENDS, Backend, backend


@pytest.fixture(params=BACKENDS)
def device(request: pytest.FixtureRequest) -> Backend:
    return backend(request.param)
