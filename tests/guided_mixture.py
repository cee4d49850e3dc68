"""What guidance does, on data known in closed form: shared by the tests and by docs/figures/plot_guidance.py.

Two classes lie side by side in the plane, each a tree of Gaussians, as in arXiv:2406.02507, figure 1. The networks are
perfect for blurred classes: like one whose training ended too early, they draw some samples that lie off the class.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.diffusion import EDM, GaussianMixture
from fastdiff.sampling import Guidance, sample

PROCESS = EDM(sigma_min=0.005, sigma_max=20.0)
BLUR, MORE_BLUR = 0.05, 0.12  # of the networks, and of the bad one that autoguidance leads away from
INTERVAL = (0.04, 0.5)  # of sigma / alpha
POINTS = 5  # Gaussians along a branch
KINDS = ("classifier-free", "interval", "autoguidance")


def tree(trunk: float) -> GaussianMixture:
    """A tree with its foot at the origin, its trunk at the angle `trunk` in degrees: 31 branches in five orders."""
    gaussians = torch.tensor(list(_branch(0.0, 0.0, math.radians(trunk), 0.55, 1.0, 5)), dtype=torch.float64)
    weights = gaussians[:, 3]
    return GaussianMixture(gaussians[:, :2], gaussians[:, 2], weights / weights.sum())


def _branch(
    x: float, y: float, angle: float, length: float, weight: float, orders: int
) -> Iterator[tuple[float, float, float, float]]:
    """(x, y, deviation, weight) along a branch from (x, y), then along all that grow from its end."""
    for point in range(POINTS):
        along = length * (point + 0.5) / POINTS
        yield x + along * math.cos(angle), y + along * math.sin(angle), 0.06 * length, weight
    if orders > 1:
        x, y = x + length * math.cos(angle), y + length * math.sin(angle)
        for turn in (-27, 27):
            yield from _branch(x, y, angle + math.radians(turn), 0.68 * length, 0.6 * weight, orders - 1)


def blurred(mixture: GaussianMixture, deviation: float) -> GaussianMixture:
    return GaussianMixture(mixture.means, (mixture.deviations**2 + deviation**2).sqrt(), mixture.weights)


def union(a: GaussianMixture, b: GaussianMixture) -> GaussianMixture:
    means, deviations = torch.cat((a.means, b.means)), torch.cat((a.deviations, b.deviations))
    return GaussianMixture(means, deviations, torch.cat((a.weights, b.weights)) / 2)


CLASS, OTHER = tree(40), tree(150)


def network(mixture: GaussianMixture, blur: float = BLUR):
    return blurred(mixture, blur).denoiser(PROCESS, "edm")


def guidance(kind: str, scale: float) -> Guidance:
    """Of a kind in KINDS, for the network of CLASS."""
    if kind == "autoguidance":
        return Guidance(network(CLASS, MORE_BLUR), scale)
    return Guidance(network(union(CLASS, OTHER)), scale, interval=INTERVAL if kind == "interval" else (0.0, math.inf))


def draw(guidance: Guidance | None, count: int, sampler: str = "heun", steps: int = 24) -> Tensor:
    """(count, 2) float64 samples of the network of CLASS."""
    options = {"sampler": sampler, "steps": steps, "process": PROCESS, "prediction": "edm", "guidance": guidance}
    return sample(network(CLASS), (count, 2), **options).double()


@dataclass(frozen=True)
class Effect:
    """What became of the class."""

    off_class: float
    """Share of the samples that are less likely under the class than all but 0.5 % of its own."""
    shift: float
    """Of the mean, along the line from the mean of the other class."""
    spread: float
    """Root of the mean squared distance from the mean, over that of the class."""
    lost: int
    """Branches, of 31, that got less than a quarter of their share."""


def effect(x: Tensor) -> Effect:
    """Of samples (N, 2) float64."""
    (mean, covariance), (other_mean, _) = CLASS.moments(), OTHER.moments()
    away = torch.nn.functional.normalize(mean - other_mean, dim=0)
    members = torch.softmax(_log_joint(x), dim=1).mean(0)
    got, share = (values.view(-1, POINTS).sum(1) for values in (members, CLASS.weights))
    return Effect(
        off_class=(_log_joint(x).logsumexp(1) < _least_likely()).double().mean().item(),
        shift=((x.mean(0) - mean) @ away).item(),
        spread=math.sqrt(x.T.cov().trace() / covariance.trace()),
        lost=int((got < share / 4).sum()),
    )


def _log_joint(x: Tensor) -> Tensor:
    """(N, K) log of weight times density of each Gaussian of CLASS."""
    squared_distance = torch.cdist(x, CLASS.means).square()
    variance = CLASS.deviations**2
    return CLASS.weights.log() - 0.5 * squared_distance / variance - torch.log(2 * math.pi * variance)


@functools.cache
def _least_likely() -> float:
    own = CLASS.sample(20_000, torch.Generator().manual_seed(0))
    return _log_joint(own).logsumexp(1).quantile(0.005).item()
