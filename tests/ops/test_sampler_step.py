"""sampler_step against its definition, on every backend: the error may be twice that of eager PyTorch."""

from __future__ import annotations

import math

import torch

from fastdiff import ops
from fastdiff.ops import StepColumn


def row_of(**columns: float) -> torch.Tensor:
    """(1, 13), without guidance and clip where they are not named."""
    row = {"guidance": 1.0, "clip": math.inf, **columns}
    return torch.tensor([[row.get(column.name.lower(), 0.0) for column in StepColumn]])


def test_formula_of_every_column() -> None:
    """The docstring's formula in float64, written out here: the definition itself must be right."""
    x, p, u, *h = (torch.randn(3, 4, 5, dtype=torch.float64).float() for _ in range(7))
    rows = row_of(
        guidance=3.5, rescale=0.7, model_sample=1.2, model_guided=-0.4, clip=1.5, sample=0.9, guided=-0.3, model=0.8
    )
    rows[:, StepColumn.NOISE :] = torch.tensor([0.25, 0.4, -0.2, 0.1, 0.7])
    seeds = torch.tensor([5, -6, 7])
    result, model = ops.sampler_step(x, p, rows, uncond_prediction=u, history=h, seeds=seeds)
    x, p, u, *h = (tensor.double() for tensor in (x, p, u, *h))
    guided = u + 3.5 * (p - u)
    deviations = [tensor.flatten(1).std(1)[:, None, None] for tensor in (p, guided)]
    guided = 0.7 * guided * deviations[0] / deviations[1] + 0.3 * guided
    expected = (1.2 * x - 0.4 * guided).clamp(-1.5, 1.5)
    torch.testing.assert_close(model.double(), expected, rtol=1e-5, atol=1e-5)
    expected = 0.9 * x - 0.3 * guided + 0.8 * expected + 0.4 * h[0] - 0.2 * h[1] + 0.1 * h[2] + 0.7 * h[3]
    expected += 0.25 * ops.philox_normal((3, 4, 5), seeds, offset=1)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
