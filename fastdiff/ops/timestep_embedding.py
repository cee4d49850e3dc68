from __future__ import annotations

import math

import torch
from torch import Tensor

from fastdiff import _dispatch, _extension, _switch, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def timestep_embedding(
    timestep: Tensor,
    channels: int,
    *,
    flip_sin_to_cos: bool = False,
    downscale_freq_shift: float = 1.0,
    scale: float = 1.0,
    max_period: float = 10000.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Sines and cosines of a timestep at geometrically spaced frequencies (arXiv:1706.03762, section 3.5).

    ``angle[n, k] = scale * timestep[n] * max_period ** (-k / (channels // 2 - downscale_freq_shift))``

    Two conventions are in use. DDPM (arXiv:2006.11239) is the default: sines first, and the slowest frequency is
    1 / max_period. Latent diffusion (arXiv:2112.10752), DiT, SD3 and FLUX have ``flip_sin_to_cos=True,
    downscale_freq_shift=0``.

    Angles are float64, so the result is right to float32's last digits at any timestep; in float32, as in other
    implementations, an angle of a thousand radians is off by 6e-5. Differentiable in timestep.

    For that it stays one operation under `torch.compile`, though what Inductor makes of the definition in float32 would
    save 25 of its 65 us a call.

    Args:
        timestep: (N,) of any integer or floating dtype. bfloat16 has rounded 750 to 752: keep timesteps in float32.
        channels: width of the embedding; an odd one ends in a zero.
        flip_sin_to_cos: cosines first.
        downscale_freq_shift: 1 makes the slowest frequency exactly 1 / max_period, 0 a step faster.
        scale: multiplies the timestep, as the 1000 that brings flow matching's 0 ... 1 to diffusion's range.
        max_period: a positive number.
        dtype: of the result; float32, bfloat16 or float16.

    Returns:
        (N, channels) of `dtype`, under autocast too.

    Raises:
        TypeError: a timestep that is not a tensor of real numbers, or another dtype.
        ValueError: a shape or number that does not fit.
    """
    _check(timestep, channels, downscale_freq_shift, max_period, dtype)
    if _switch.reference_depth:
        return reference.timestep_embedding(
            timestep,
            channels,
            flip_sin_to_cos=flip_sin_to_cos,
            downscale_freq_shift=downscale_freq_shift,
            scale=scale,
            max_period=max_period,
            dtype=dtype,
        )
    _extension.require()
    settings = (channels, bool(flip_sin_to_cos), float(downscale_freq_shift), float(scale), float(max_period), dtype)
    return _dispatch.call(torch.ops.fastdiff.timestep_embedding.default, timestep.double(), *settings)


def _check(timestep, channels, downscale_freq_shift, max_period, dtype) -> None:
    if not isinstance(timestep, Tensor):
        raise TypeError(f"timestep must be a tensor, got {type(timestep).__name__}")
    if timestep.dtype.is_complex or timestep.dtype == torch.bool:
        raise TypeError(f"timestep must hold real numbers, got {timestep.dtype}")
    if timestep.dim() != 1:
        raise ValueError(f"timestep must be (batch,), got shape {tuple(timestep.shape)}")
    if dtype not in DTYPES and not (_switch.reference_depth and dtype.is_floating_point):
        raise TypeError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
    if channels < 1:
        raise ValueError(f"channels must be positive, got {channels}")
    if channels > 1 and downscale_freq_shift == channels // 2:
        raise ValueError(f"downscale_freq_shift must not be channels // 2, got {downscale_freq_shift}")
    if not max_period > 0:
        raise ValueError(f"max_period must be positive, got {max_period}")


def _fake(timestep, channels, flip_sin_to_cos, downscale_freq_shift, scale, max_period, dtype):
    return timestep.new_empty((timestep.shape[0], channels), dtype=dtype)


def _setup_context(ctx, inputs, output) -> None:
    timestep, *ctx.settings = inputs
    ctx.save_for_backward(timestep)


def _backward(ctx, gradient):
    """By the op itself: the derivative of [sin, cos] is [cos, -sin] times the frequency."""
    (timestep,) = ctx.saved_tensors
    channels, flip_sin_to_cos, downscale_freq_shift, scale, max_period, _ = ctx.settings
    half = channels // 2
    exchanged = torch.ops.fastdiff.timestep_embedding(
        timestep, 2 * half, not flip_sin_to_cos, downscale_freq_shift, scale, max_period, torch.float32
    )
    first, second = (gradient[:, : 2 * half].double() * exchanged).chunk(2, dim=1)
    index = torch.arange(half, dtype=torch.float64, device=timestep.device)
    frequencies = scale * torch.exp(-math.log(max_period) / (half - downscale_freq_shift) * index)
    slope = (second - first if flip_sin_to_cos else first - second) @ frequencies
    return slope, None, None, None, None, None, None


if _extension._C is not None:
    torch.library.register_fake("fastdiff::timestep_embedding", _fake)
    torch.library.register_autograd("fastdiff::timestep_embedding", _backward, setup_context=_setup_context)
