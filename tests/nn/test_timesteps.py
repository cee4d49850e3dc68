"""Timesteps against diffusers' own."""

from __future__ import annotations

import pytest
import torch

from fastdiff.nn import Timesteps


@pytest.mark.parametrize("arguments", ((256, True, 0), (128, False, 1), (33, True, 0.5, 1000)))
def test_drop_in_for_diffusers(arguments) -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    timesteps = torch.tensor([0.0, 0.25, 0.999])
    ours, theirs = Timesteps(*arguments), embeddings.Timesteps(*arguments)
    assert not ours.state_dict()
    torch.testing.assert_close(ours(timesteps), theirs(timesteps), rtol=0, atol=2e-4)
