"""The bound itself: it must fail for what is worse than eager, in one draw or in many."""

import pytest
import torch
from accuracy import assert_as_exact, assert_draws_as_exact


def results(factor: float):
    exact = torch.randn(33, dtype=torch.float64)
    error = 1e-3 * torch.rand(33, dtype=torch.float64)
    return exact + factor * error, exact + error, exact


def test_three_times_eagers_error_fails() -> None:
    assert_as_exact(*results(1.9))
    with pytest.raises(AssertionError, match="dx: "):
        assert_as_exact(*results(3.0), "dx")


@pytest.mark.parametrize("elements, draws", [(33, 8), (5000, 4), (10**6, 1), (0, 8)])
def test_draws(elements, draws) -> None:
    seen = []

    def draw(factor: float):
        seen.append(factor)
        return {"y": results(1.0), "dx": results(factor)}

    assert_draws_as_exact(lambda: draw(1.9), elements)
    assert len(seen) == draws
    with pytest.raises(AssertionError, match="dx: "):
        assert_draws_as_exact(lambda: draw(3.0), elements)


def test_one_gross_error_in_any_draw_fails() -> None:
    factors = iter([1.0] * 7 + [100.0])
    with pytest.raises(AssertionError, match="over 8 draws"):
        assert_draws_as_exact(lambda: {"y": results(next(factors))}, 1)


def test_nan_fails() -> None:
    ours, eager, exact = results(1.0)
    ours[3] = torch.nan
    with pytest.raises(AssertionError):
        assert_as_exact(ours, eager, exact)
