"""The known effects of guidance, with the kernels and the shipped samplers, on two classes known in closed form."""

from __future__ import annotations

import functools
import math

import pytest
from guided_mixture import CLASS, INTERVAL, OTHER, Effect, draw, effect, guidance, network, union

from fastdiff.sampling import Guidance

COUNT = 600  # the mean of so many is off by 0.02 by chance
SAMPLERS = ("heun", "dpmpp_2m", "unipc")


@functools.cache
def measured(sampler: str, kind: str | None, scale: float = 1.0) -> Effect:
    return effect(draw(kind and guidance(kind, scale), COUNT, sampler))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_without_guidance_much_lies_off_the_class(sampler: str) -> None:
    found = measured(sampler, None)
    assert found.off_class > 0.3
    assert abs(found.shift) < 0.06 and abs(found.spread - 1) < 0.1 and found.lost == 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_classifier_free_guidance_leads_away_from_the_other_class_at_the_cost_of_spread(sampler: str) -> None:
    """arXiv:2207.12598, figure 2: the more, the larger the scale."""
    effects = [measured(sampler, None), *(measured(sampler, "classifier-free", scale) for scale in (1.5, 2.0, 3.0))]
    for weaker, stronger in zip(effects, effects[1:], strict=False):
        assert stronger.shift > weaker.shift + 0.05
        assert stronger.spread < weaker.spread - 0.05
    assert effects[-1].shift > 0.2 and effects[-1].spread < 0.8 and effects[-1].lost >= 4
    assert effects[-1].off_class > effects[0].off_class  # beyond the class is off the class, too


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_high_noise_levels_do_the_harm(sampler: str) -> None:
    """arXiv:2404.07724, section 3: where the classes still overlap, guidance decides where a sample goes."""
    above = Guidance(network(union(CLASS, OTHER)), 3.0, interval=(INTERVAL[1], math.inf))
    high, interval, all_levels = (
        effect(draw(above, COUNT, sampler)),
        measured(sampler, "interval", 3.0),
        measured(sampler, "classifier-free", 3.0),
    )
    assert high.shift > 0.9 * all_levels.shift and high.spread < 1.1 * all_levels.spread
    assert interval.shift < 0.25 * all_levels.shift
    assert interval.spread > 1.2 * all_levels.spread and interval.lost < all_levels.lost / 2
    assert interval.off_class < measured(sampler, None).off_class < all_levels.off_class


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_autoguidance_clears_what_lies_off_the_class_and_keeps_all_of_it(sampler: str) -> None:
    """arXiv:2406.02507, figure 1: the bad network errs in the same places, and more."""
    plain, weak, strong = measured(sampler, None), *(measured(sampler, "autoguidance", s) for s in (2.0, 3.0))
    assert strong.off_class < weak.off_class < plain.off_class
    assert weak.off_class < 0.6 * plain.off_class and strong.off_class < 0.45 * plain.off_class
    assert abs(strong.shift - plain.shift) < 0.02  # of the same noise
    assert abs(strong.spread - 1) < 0.05 and strong.lost == 0
    same_scale = measured(sampler, "classifier-free", 3.0)
    assert strong.off_class < same_scale.off_class / 2
