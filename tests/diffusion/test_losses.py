from __future__ import annotations

import pytest
import torch

from fastdiff.diffusion import mse_loss


def test_mean_over_everything_but_the_batch():
    prediction = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]])
    target = torch.tensor([[[0.0, 0.0]], [[3.0, 1.0]]])
    assert mse_loss(prediction, target).tolist() == [2.5, 5.0]


def test_low_precision_is_squared_in_float32():
    prediction = torch.full((1, 4), 300.0, dtype=torch.float16)
    loss = mse_loss(prediction, torch.zeros_like(prediction))
    assert loss.dtype == torch.float32 and loss.item() == 90000.0  # beyond float16's largest number
    assert mse_loss(prediction.double(), torch.zeros(1, 4).double()).dtype == torch.float64


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="prediction must have target's shape"):
        mse_loss(torch.zeros(2, 3), torch.zeros(2, 1))
