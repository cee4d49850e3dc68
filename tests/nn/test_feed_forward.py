"""The feed-forward modules against diffusers' own: the same weights give the same results and gradients."""

from __future__ import annotations

import pytest
import torch
from diffusers_parity import assert_same

from fastdiff.nn import GEGLU, FeedForward


@pytest.mark.parametrize("bias", (True, False))
def test_geglu(bias) -> None:
    activations = pytest.importorskip("diffusers.models.activations")
    assert_same(GEGLU(24, 40, bias), activations.GEGLU(24, 40, bias), torch.randn(2, 9, 24))


@pytest.mark.parametrize(
    "settings",
    (
        {},
        {"activation_fn": "gelu-approximate"},
        {"activation_fn": "gelu", "bias": False},
        {"dim_out": 12, "mult": 2},
        {"dim_out": 12, "inner_dim": 20, "final_dropout": True, "bias": False},
    ),
    ids=str,
)
def test_feed_forward(settings) -> None:
    attention = pytest.importorskip("diffusers.models.attention")
    assert_same(FeedForward(24, **settings), attention.FeedForward(24, **settings), torch.randn(2, 9, 24))


@pytest.mark.parametrize("final_dropout", (False, True))
def test_dropout_is_where_diffusers_has_it(final_dropout) -> None:
    attention = pytest.importorskip("diffusers.models.attention")
    settings = {"dropout": 0.5, "final_dropout": final_dropout}
    ours, theirs = FeedForward(24, **settings), attention.FeedForward(24, **settings)
    ours.load_state_dict(theirs.state_dict())
    x, results = torch.randn(2, 9, 24), []
    for module in (ours.train(), theirs.train()):
        torch.manual_seed(0)
        results.append(module(x))
    torch.testing.assert_close(*results)


def test_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"activation_fn must be one of .*'gelu-approximate'.*, got 'swiglu'"):
        FeedForward(24, activation_fn="swiglu")


def test_device_and_dtype() -> None:
    for activation in FeedForward.ACTIVATIONS:
        module = FeedForward(8, activation_fn=activation, dtype=torch.bfloat16, device="meta")
        assert {(p.dtype, p.device.type) for p in module.parameters()} == {(torch.bfloat16, "meta")}
