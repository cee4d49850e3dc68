from __future__ import annotations

import torch
from torch import Tensor

from fastdiff import _dispatch, _extension, _switch, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def add_noise(
    clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor, target_clean: Tensor, target_noise: Tensor
) -> tuple[Tensor, Tensor]:
    """A batch of training a diffusion model: what the network sees and what it should say, in one pass.

    ``noisy = alpha * clean + sigma * noise`` (Denoising Diffusion Probabilistic Models, arXiv:2006.11239, equation 4)
    and ``target = target_clean * clean + target_noise * noise``, for any prediction: (0, 1) for the noise, (-sigma,
    alpha) for v, (-1, 1) for a flow. Arithmetic is float32 for every dtype. Differentiable in clean and noise.

    Args:
        clean: (N, *) float32, bfloat16 or float16. Any strides; read in place where samples lie one behind the other.
        noise: of clean's shape, dtype and device.
        alpha, sigma, target_clean, target_noise: (N,) float32 or float64, all of one dtype, on clean's device.

    Returns:
        (noisy, target): new dense tensors of clean's shape, dtype and order of dimensions.

    Raises:
        TypeError: an argument that is not a tensor, or of another dtype.
        ValueError: a shape or device that does not fit.
    """
    _check(clean, noise, alpha=alpha, sigma=sigma, target_clean=target_clean, target_noise=target_noise)
    if _switch.reference_depth:
        return reference.add_noise(clean, noise, alpha, sigma, target_clean, target_noise)
    _extension.require()
    arguments = (clean, noise, alpha, sigma, target_clean, target_noise)
    return _dispatch.call(torch.ops.fastdiff.add_noise.default, *arguments)


def _check(clean, noise, **coefficients) -> None:
    for name, tensor in (("clean", clean), ("noise", noise), *coefficients.items()):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.device != clean.device:
            raise ValueError(f"{name} must be on clean's device {clean.device}, got {tensor.device}")
    if clean.dtype not in DTYPES and not (_switch.reference_depth and clean.is_floating_point()):
        raise TypeError(f"clean must be float32, bfloat16 or float16, got {clean.dtype}")
    if noise.dtype != clean.dtype:
        raise TypeError(f"noise must have clean's dtype {clean.dtype}, got {noise.dtype}")
    if clean.dim() == 0:
        raise ValueError("clean must have a batch dimension, got a scalar")
    if noise.shape != clean.shape:
        raise ValueError(f"noise must have clean's shape {tuple(clean.shape)}, got {tuple(noise.shape)}")
    dtype = coefficients["alpha"].dtype
    for name, tensor in coefficients.items():
        if tensor.dtype not in (torch.float32, torch.float64) or tensor.dtype != dtype:
            raise TypeError(f"{name} must be float32 or float64 like alpha, got {tensor.dtype}")
        if tensor.shape != clean.shape[:1]:
            raise ValueError(f"{name} must have shape ({clean.shape[0]},), got {tuple(tensor.shape)}")


def _fake(clean, noise, alpha, sigma, target_clean, target_noise):
    return torch.empty_like(clean), torch.empty_like(clean)


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[2:])


def _backward(ctx, d_noisy, d_target):
    alpha, sigma, target_clean, target_noise = ctx.saved_tensors
    # The transposed map.
    d_clean, d_noise = _dispatch.call(
        torch.ops.fastdiff.add_noise.default, d_noisy, d_target, alpha, target_clean, sigma, target_noise
    )
    return d_clean, d_noise, None, None, None, None


if _extension._C is not None:
    torch.library.register_fake("fastdiff::add_noise", _fake)
    torch.library.register_autograd("fastdiff::add_noise", _backward, setup_context=_setup_context)
