"""The probability-flow ODE, solved with steps that adapt to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastdiff.diffusion import Process, get_prediction
from fastdiff.diffusion.broadcasting import per_sample
from fastdiff.sampling.denoiser import Denoiser, predicted, starting_noise
from fastdiff.sampling.rates import rates

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(times (N,) float64 on the host, state (N, ...)) -> its derivative in time (N, ...)."""

# Dormand and Prince, A family of embedded Runge-Kutta formulae (1980): RK5(4)7M.
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # of fifth minus fourth order


@torch.no_grad()
def rk45(
    denoiser: Denoiser,
    noise_or_shape: Tensor | Sequence[int],
    *,
    process: Process,
    prediction: str,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    seeds: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw samples by the probability-flow ODE with adaptive steps (arXiv:2011.13456, section 4.3).

    Every sample has steps of its own, so it does not depend on the rest of its batch.

    Args:
        denoiser: as :func:`fastdiff.sampling.sample` takes it.
        noise_or_shape: the starting noise (N, ...), standard normal, or its shape.
        process: in continuous time; the ODE runs from its first to its last time.
        prediction: what the network returns.
        rtol, atol: of the local error, relative to the state and absolute, as a root mean square over a sample.
        seeds, device: as for :func:`fastdiff.sampling.sample`.

    Returns:
        (N, ...) in units of data, in the dtype of the noise.

    Raises:
        ValueError: a process in discrete time.
        RuntimeError: the steps become too small for the accuracy of the times.
    """
    noise, _ = starting_noise(noise_or_shape, seeds, device)
    bounds = torch.tensor([process.first_time, process.last_time], dtype=torch.float64)
    start = noise * process.start_scale(bounds[:1]).item()
    flow = probability_flow(denoiser, process, prediction)
    end, _ = integrate(flow, start, *bounds.tolist(), rtol=rtol, atol=atol)
    return end * process.data_scale(bounds[1:]).item()


def probability_flow(denoiser: Denoiser, process: Process, prediction: str) -> Velocity:
    """``dx/dt = alpha' x0 + sigma' eps``, the ODE whose marginals are the process's.

    It is that of arXiv:2011.13456, equation 13, without the division by sigma^2, and on the straight path the velocity
    of flow matching.
    """

    def velocity(times: Tensor, x: Tensor) -> Tensor:
        now = rates(process, times)
        of_x, of_prediction = torch.einsum(
            "nk,nkj->jn",
            torch.stack((now.alpha_rate, now.sigma_rate), dim=-1),
            get_prediction(prediction).solve(now.alpha, now.sigma),
        )
        precision = torch.promote_types(x.dtype, torch.float32)
        output = predicted(denoiser, x, process.timestep(times).to(x.device, precision))
        return per_sample(of_x, x) * x + per_sample(of_prediction, x) * output

    return velocity


def integrate(
    velocity: Velocity, x: Tensor, start: float, end: float, *, rtol: float = 1e-5, atol: float = 1e-5
) -> tuple[Tensor, int]:
    """Solve ``dx/dt = velocity(t, x)`` from `start` to `end` by Dormand and Prince's method of order 5(4).

    Args:
        x: (N, ...) the state at `start`.
        rtol, atol: see :func:`rk45`.

    Returns:
        (state at `end`, number of calls of `velocity`).
    """
    span = end - start
    times = torch.full((len(x),), start, dtype=torch.float64)
    steps = torch.full_like(times, 0.01 * span)
    slope, calls = velocity(times, x), 1
    while bool((times != end).any()):
        steps = torch.where((times + steps - end) * span > 0, end - times, steps)
        slopes = [slope]
        for node, weights in zip(_NODES[1:], _STAGES[1:], strict=True):
            stage = x + per_sample(steps, x) * sum(w * k for w, k in zip(weights, slopes, strict=True))
            slopes.append(velocity(times + node * steps, stage))
        calls += len(_NODES) - 1
        error = per_sample(steps, x) * sum(w * k for w, k in zip(_ERROR, slopes, strict=True))
        scale = atol + rtol * torch.maximum(x.abs(), stage.abs())
        norm = (error / scale).flatten(1).square().mean(1).sqrt().double().cpu()
        # NaN is accepted: no step is small enough to mend it, and it should reach the result.
        accepted = ~(norm > 1) & (times != end)
        last = (steps - (end - times)).abs() <= 1e-12 * abs(span)
        times = torch.where(accepted, torch.where(last, torch.full_like(times, end), times + steps), times)
        mask = per_sample(accepted, x)
        x, slope = torch.where(mask, stage, x), torch.where(mask, slopes[-1], slope)
        steps = steps * (0.9 * norm.clamp(min=1e-10) ** -0.2).clamp(0.2, 10.0).nan_to_num(1.0)
        if bool(((steps.abs() < 1e-12 * abs(span)) & (times != end)).any()):
            raise RuntimeError(f"the steps became smaller than 1e-12 of the interval at t = {times.tolist()}")
    return x, calls
