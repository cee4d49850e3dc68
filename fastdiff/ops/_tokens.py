"""Checks of the ops that work on (batch, tokens, channels) and on what modulates it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff import _switch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_activations(x, **others) -> None:
    """x must be (batch, tokens, channels), and `others`, where they are there, must be like it."""
    for name, operand in (("x", x), *others.items()):
        if operand is None:
            continue
        _check_operand(x, name, operand)
        if operand.dtype != x.dtype:
            raise TypeError(f"{name} must have x's dtype {x.dtype}, got {operand.dtype}")
        if operand.dim() != 3:
            raise ValueError(f"{name} must be (batch, tokens, channels), got shape {tuple(operand.shape)}")
        if operand.shape != x.shape:
            raise ValueError(f"{name} must have x's shape {tuple(x.shape)}, got {tuple(operand.shape)}")


def promoted_under_autocast(x, residual):
    """x and residual as PyTorch's own sum sees them: autocast makes a branch bfloat16 beside a float32 residual."""
    if not (isinstance(x, Tensor) and isinstance(residual, Tensor)) or x.dtype == residual.dtype:
        return x, residual
    if not torch.is_autocast_enabled(x.device.type):
        return x, residual
    dtype = torch.promote_types(x.dtype, residual.dtype)
    return x.to(dtype), residual.to(dtype)


def per_token(x: Tensor, **modulations) -> list[Tensor]:
    """The modulations, each (batch, channels) or (batch, 1 or tokens, channels), in three dimensions."""
    batch, tokens, channels = x.shape
    result = []
    for name, operand in modulations.items():
        _check_operand(x, name, operand)
        if operand.shape not in ((batch, channels), (batch, 1, channels), (batch, tokens, channels)):
            raise ValueError(
                f"{name} must have shape {(batch, channels)}, {(batch, 1, channels)} or {(batch, tokens, channels)} "
                f"to fit x, got {tuple(operand.shape)}"
            )
        result.append(operand.unsqueeze(1) if operand.dim() == 2 else operand)
    return result


def check_parameters(x: Tensor, **parameters) -> None:
    """The parameters that are there must be (channels,)."""
    for name, operand in parameters.items():
        if operand is None:
            continue
        _check_operand(x, name, operand)
        if operand.shape != x.shape[2:]:
            raise ValueError(f"{name} must have shape {tuple(x.shape[2:])}, got {tuple(operand.shape)}")


def _check_operand(x, name, operand) -> None:
    if not isinstance(operand, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(operand).__name__}")
    if operand.dtype not in DTYPES and not (_switch.reference_depth and operand.is_floating_point()):
        raise TypeError(f"{name} must be float32, bfloat16 or float16, got {operand.dtype}")
    if operand.device != x.device:
        raise ValueError(f"{name} must be on x's device {x.device}, got {operand.device}")
