"""Exact likelihood of a diffusion model by the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.diffusion import Process
from fastdiff.sampling.denoiser import Denoiser
from fastdiff.sampling.ode import integrate, probability_flow

PROBE_OFFSET = 2**40  # of Philox, beyond the rows of any sampler


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    *,
    process: Process,
    prediction: str,
    divergence: str = "hutchinson",
    probes: int = 1,
    seeds: Sequence[int] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Tensor:
    """log p(x) in nats (arXiv:2011.13456, section 4.3 and appendix D.2): the flow to noise, and its change of volume.

    Args:
        denoiser: as :func:`fastdiff.sampling.sample` takes it; differentiable.
        x: (N, ...) states at the process's last time, which is as near to data as its network knows.
        process: in continuous time.
        prediction: what the network returns.
        divergence: "hutchinson" estimates it by random signs (arXiv:1810.01367), which is unbiased and costs one
            backward pass a probe; "exact" costs one for each dimension.
        probes: how many random vectors are averaged.
        seeds: N integers for the probes, default 0 ... N - 1.
        rtol, atol: of the ODE, see :func:`fastdiff.sampling.rk45`.

    Returns:
        (N,) log density of x, float32 or float64 like x; without a gradient, also where x has one.
    """
    if divergence not in ("hutchinson", "exact"):
        raise ValueError(f"divergence must be 'hutchinson' or 'exact', got {divergence!r}")
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    x = x.detach()  # the result has no gradient, and a graph over all steps of the ODE would be kept for none
    vectors = _probes(x, divergence, probes, seeds)
    flow = probability_flow(denoiser, process, prediction)

    def augmented(times: Tensor, state: Tensor) -> Tensor:
        with torch.enable_grad():
            point = state[:, :-1].reshape(x.shape).detach().requires_grad_()
            velocity = flow(times, point)
            trace = torch.zeros(len(x), dtype=x.dtype, device=x.device)
            for vector in vectors:
                (product,) = torch.autograd.grad(velocity, point, vector, retain_graph=True)
                trace += (product * vector).flatten(1).sum(1)
        trace = trace / (probes if divergence == "hutchinson" else 1)
        return torch.cat((velocity.detach().flatten(1), trace[:, None]), dim=1)

    first, last = process.first_time, process.last_time
    state = torch.cat((x.flatten(1), x.new_zeros(len(x), 1)), dim=1)
    state, _ = integrate(augmented, state, last, first, rtol=rtol, atol=atol)
    noise, volume = state[:, :-1], state[:, -1]
    deviation = process.start_scale(torch.tensor([first], dtype=torch.float64)).item()
    dimensions = noise.shape[1]
    prior = -0.5 * (noise / deviation).square().sum(1) - dimensions * math.log(deviation * math.sqrt(2 * math.pi))
    return prior + volume


def bits_per_dim(log_density: Tensor, dimensions: int, *, levels: int = 256, width: float = 2.0) -> Tensor:
    """Bits per dimension of data that has `levels` values over an interval of `width`, from log p in nats.

    For images scaled to -1 ... 1 with uniform noise of one level added (arXiv:1511.01844). With ``levels=width`` it is
    that of the density itself.
    """
    return -log_density / (dimensions * math.log(2)) + math.log2(levels / width)


def _probes(x: Tensor, divergence: str, probes: int, seeds: Sequence[int] | None) -> list[Tensor]:
    """Vectors whose products with the Jacobian add up to its trace."""
    if divergence == "exact":
        units = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
        return [unit.reshape(1, *x.shape[1:]).expand_as(x) for unit in units]
    seeds = range(len(x)) if seeds is None else seeds
    offsets = range(PROBE_OFFSET, PROBE_OFFSET + probes)
    normals = (ops.philox_normal(tuple(x.shape), seeds, offset=offset, device=x.device) for offset in offsets)
    return [torch.where(normal < 0, -1.0, 1.0).to(x.dtype) for normal in normals]
