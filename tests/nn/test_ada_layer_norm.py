"""The adaptive norms against diffusers' own: the same weights give the same results and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from accuracy import assert_as_exact
from diffusers_parity import assert_same

import fastdiff
from fastdiff.nn import AdaLayerNormContinuous, AdaLayerNormZero, AdaLayerNormZeroSingle, SD35AdaLayerNormZeroX

OF_BLOCKS = (AdaLayerNormZero, AdaLayerNormZeroSingle, SD35AdaLayerNormZeroX)
CONTINUOUS = (
    {},
    {"elementwise_affine": False, "eps": 1e-6},
    {"bias": False},
    {"norm_type": "rms_norm"},
    {"norm_type": "rms_norm", "elementwise_affine": False, "bias": False},
)


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("ours", OF_BLOCKS)
def test_norms_of_blocks(ours, bias) -> None:
    normalization = pytest.importorskip("diffusers.models.normalization")
    theirs = getattr(normalization, ours.__name__)
    assert_same(ours(24, bias=bias), theirs(24, bias=bias), torch.randn(3, 9, 24), emb=torch.randn(3, 24))


@pytest.mark.parametrize("settings", CONTINUOUS, ids=str)
def test_continuous(settings) -> None:
    normalization = pytest.importorskip("diffusers.models.normalization")
    ours, theirs = AdaLayerNormContinuous(24, 16, **settings), normalization.AdaLayerNormContinuous(24, 16, **settings)
    assert_same(ours, theirs, torch.randn(3, 9, 24), torch.randn(3, 16))


@pytest.mark.parametrize("settings", CONTINUOUS, ids=str)
def test_continuous_in_bfloat16(settings) -> None:
    """The condition may be float32, as in diffusers."""
    normalization = pytest.importorskip("diffusers.models.normalization")
    ours = AdaLayerNormContinuous(24, 16, **settings, dtype=torch.bfloat16)
    theirs = normalization.AdaLayerNormContinuous(24, 16, **settings)
    theirs.load_state_dict(ours.state_dict())  # rounded, so that float64 has the same numbers
    x, condition = torch.randn(3, 300, 24).bfloat16(), torch.randn(3, 16)
    y = ours(x, condition)
    assert y.dtype == torch.bfloat16
    exact = copy.deepcopy(theirs).double()(x.double(), condition.double())
    assert_as_exact(y, theirs.bfloat16()(x, condition), exact)


def test_small_deviation_shows_eps() -> None:
    """Where the deviation is as small as the root of eps, another eps would show. Gradients of x are up to 1000."""
    normalization = pytest.importorskip("diffusers.models.normalization")
    x = 1e-3 * torch.randn(3, 9, 24)
    for ours in OF_BLOCKS:
        assert_same(ours(24), getattr(normalization, ours.__name__)(24), x, emb=torch.randn(3, 24), atol=1e-3)
    theirs = normalization.AdaLayerNormContinuous(24, 16, eps=1e-4)
    assert_same(AdaLayerNormContinuous(24, 16, eps=1e-4), theirs, x, torch.randn(3, 16), atol=1e-3)


def test_switch_runs_the_definition() -> None:
    norm, x, emb = AdaLayerNormZero(24), torch.randn(3, 9, 24), torch.randn(3, 24)
    with fastdiff.use_reference():
        want = norm(x, emb)
    for a, b in zip(norm(x, emb), want, strict=True):
        torch.testing.assert_close(a, b)


def test_unknown_norm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"norm_type must be one of \('layer_norm', 'rms_norm'\), got 'group_norm'"):
        AdaLayerNormContinuous(24, 16, norm_type="group_norm")
