import pytest
import torch
from torch.nn import functional as F

import fastdiff


def test_replaces_group_norm_and_silu() -> None:
    theirs = torch.nn.GroupNorm(8, 32, eps=1e-6)
    torch.nn.init.normal_(theirs.weight)
    ours = fastdiff.nn.GroupNormSiLU(8, 32, eps=1e-6)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 32, 9, 9)
    torch.testing.assert_close(ours(x), F.silu(theirs(x)))


def test_identity_without_affine() -> None:
    ours = fastdiff.nn.GroupNormSiLU(4, 8, affine=False, activation="identity")
    x = torch.randn(3, 8, 5)
    torch.testing.assert_close(ours(x), F.group_norm(x, 4))
    assert "activation='identity'" in repr(ours)


def test_unknown_activation_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="activation must be one of"):
        fastdiff.nn.GroupNormSiLU(4, 8, activation="relu")
