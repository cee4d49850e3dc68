"""The bound on every op's error: twice that of eager PyTorch in the same dtype, both against float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import mean

from torch import Tensor

# Of this many elements the largest error says something of the arithmetic; that of a few hundred is a matter of luck.
ELEMENTS = 20_000

Results = Mapping[str, tuple[Tensor, Tensor, Tensor]]  # name -> (ours, eager's, exact)


def max_error(a: Tensor, exact: Tensor) -> float:
    return (a.double() - exact).abs().max().item() if exact.numel() else 0.0


def float32_noise(exact: Tensor) -> float:
    """A few float32 roundings of the largest value, below which eager's error is a matter of luck."""
    return 1e-6 * max(1.0, exact.abs().max().item()) if exact.numel() else 1e-6


def assert_as_exact(ours: Tensor, eager: Tensor, exact: Tensor, name: str = "result") -> None:
    allowed = 2 * max_error(eager, exact) + float32_noise(exact)
    assert max_error(ours, exact) <= allowed, f"{name}: {max_error(ours, exact):.2e} > {allowed:.2e}"


def assert_draws_as_exact(draw: Callable[[], Results], elements: int) -> None:
    """Holds the largest error, on average over several draws: as many as it takes to see ELEMENTS, 8 at most.

    `elements` is the size of the activation. One draw of a small one fails without a fault now and then, where eager
    happens to round all of it well.
    """
    draws = [draw() for _ in range(max(1, min(8, ELEMENTS // max(elements, 1))))]
    for name in draws[0]:
        ours, eager, exact = zip(*(results[name] for results in draws), strict=True)
        allowed = 2 * mean(map(max_error, eager, exact)) + mean(map(float32_noise, exact))
        error = mean(map(max_error, ours, exact))
        assert error <= allowed, f"{name}: {error:.2e} > {allowed:.2e} over {len(draws)} draws"
