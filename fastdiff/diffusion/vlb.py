"""DDPM's variational bound, in bits per dimension, and variances that the network learns.

arXiv:2006.11239, equation 5, and arXiv:2102.09672, sections 3.1 and 3.3. Images lie in -1 ... 1, in 256 levels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastdiff.diffusion.broadcasting import per_sample
from fastdiff.diffusion.discrete import DiscreteVP


def posterior_log_variances(process: DiscreteVP) -> tuple[Tensor, Tensor]:
    """(T,) log variances of q(x_{t-1} | x_t, x0) and of the forward step, "fixed_small" and "fixed_large".

    The first entry of the smaller, which would be minus infinity, is replaced by the second.
    """
    t = torch.arange(process.num_train_timesteps, dtype=torch.float64)
    small = process.betas * (process.sigma(t - 1) / process.sigma(t)) ** 2
    small[0] = small[1] if len(small) > 1 else process.betas[0]
    return small.log(), process.betas.log()


def learned_log_variance(process: DiscreteVP, fraction: Tensor, t: Tensor) -> Tensor:
    """log variance of a learned reverse step (arXiv:2102.09672, equation 15).

    Args:
        fraction: (N, ...) what the network says, -1 for "fixed_small" and 1 for "fixed_large".
        t: (N,) whole times.
    """
    small, large = (_at(table, t, fraction) for table in posterior_log_variances(process))
    v = (fraction + 1) / 2
    return v * large + (1 - v) * small


def posterior_mean(process: DiscreteVP, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Mean of q(x_{t-1} | x_t, x0) (arXiv:2006.11239, equation 7), for x0 and x_t (N, ...) and t (N,)."""
    before, now = process.alpha(t - 1), process.alpha(t)
    variance, variance_before = process.sigma(t) ** 2, process.sigma(t - 1) ** 2
    beta = process.betas[t.long()]
    of_x0, of_x_t = before * beta / variance, now / before * variance_before / variance
    return per_sample(of_x0, x0) * x0 + per_sample(of_x_t, x0) * x_t


def vlb_term(
    process: DiscreteVP, x0: Tensor, x_t: Tensor, t: Tensor, predicted_x0: Tensor, log_variance: Tensor
) -> Tensor:
    """(N,) the bound's term of the times t, in bits per dimension: L_{t-1}, or for t = 0 the decoder's L_0.

    Args:
        x0: (N, ...) images in -1 ... 1.
        x_t: (N, ...) the same, noised to the times t (N,), whole numbers.
        predicted_x0: (N, ...) what the network says of x0.
        log_variance: (N, ...) of the reverse step; from :func:`learned_log_variance`, or one of the fixed.
    """
    mean = posterior_mean(process, predicted_x0, x_t, t)
    true_log_variance = _at(posterior_log_variances(process)[0], t, x0)
    kl = normal_kl(posterior_mean(process, x0, x_t, t), true_log_variance, mean, log_variance)
    decoder = -discretized_log_likelihood(x0, mean, log_variance)
    terms = torch.stack((kl.flatten(1).mean(1), decoder.flatten(1).mean(1))) / math.log(2)
    return torch.where(t.to(terms.device) == 0, terms[1], terms[0])


def prior_bits(process: DiscreteVP, x0: Tensor) -> Tensor:
    """(N,) the bound's term L_T: what is left of x0 (N, ...) at the last time, in bits per dimension."""
    last = torch.full((len(x0),), process.first_time, dtype=torch.float64)
    alpha, sigma = per_sample(process.alpha(last), x0), per_sample(process.sigma(last), x0)
    zero = torch.zeros_like(x0)
    return normal_kl(alpha * x0, 2 * sigma.log() + zero, zero, zero).flatten(1).mean(1) / math.log(2)


def normal_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """Elementwise KL(N(mean, variance) || N(other_mean, other_variance)) in nats."""
    difference = log_variance - other_log_variance
    return 0.5 * (difference.exp() - 1 - difference + (mean - other_mean) ** 2 * torch.exp(-other_log_variance))


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor, levels: int = 256) -> Tensor:
    """Elementwise log probability, in nats, of the level of x under a Gaussian (arXiv:2006.11239, equation 13).

    A level is the interval of x +- 1 / (levels - 1); the lowest and the highest reach to infinity.
    """
    half = 1 / (levels - 1)
    scale = torch.exp(-0.5 * log_variance)
    upper, lower = (x - mean + half) * scale, (x - mean - half) * scale
    inside = torch.special.ndtr(upper) - torch.special.ndtr(lower)
    # Far from the mean the difference is 0 in floating point: the density times the width is exact there.
    centre = -0.5 * ((x - mean) * scale) ** 2 - 0.5 * math.log(2 * math.pi) + torch.log(2 * half * scale)
    inside = torch.where(inside > 1e-12, inside.clamp(min=1e-30).log(), centre)
    lowest, highest = torch.special.log_ndtr(upper), torch.special.log_ndtr(-lower)
    return torch.where(x < -1 + half, lowest, torch.where(x > 1 - half, highest, inside))


def _at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    return per_sample(table[t.long()], like)
