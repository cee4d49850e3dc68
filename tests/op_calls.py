"""A call of every op as a model makes it, for the tests that hold for all ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff import ops

# All that return a tensor of the wanted dtype: not the raw bits of philox, not the in-place step.
OPS = tuple(sorted(set(ops.__all__) - {"StepColumn", "philox_bits", "sampler_step_"}))

KERNELS = {op: op for op in OPS} | {"philox_normal": "philox", "philox_uniform": "philox"}
"""Names under torch.ops.fastdiff."""


def _tables(tokens: int, width: int) -> tuple[Tensor, Tensor]:
    angles = torch.rand(tokens, width // 2).repeat_interleave(2, dim=-1)
    return angles.cos(), angles.sin()


def op_call(op: str, dtype: torch.dtype = torch.float32) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs), with activations of the dtype, and weights, tables and timesteps in float32."""

    def activation(*size: int) -> Tensor:
        return torch.randn(size).to(dtype)

    x = activation(2, 5, 16)
    given_dtype = {} if dtype == torch.float32 else {"dtype": dtype}  # torch.export takes no dtype as input
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "add_noise": ((activation(2, 4, 5, 3), activation(2, 4, 5, 3), *torch.rand(4, 2)), {}),
        "attention": (
            (activation(2, 5, 4, 8), activation(2, 7, 2, 8), activation(2, 7, 2, 8)),
            {"kv_lengths": torch.tensor([7, 3])},
        ),
        "gate_residual": ((x, activation(2, 16), activation(2, 5, 16)), {}),
        "geglu": ((x,), {"approximate": "tanh"}),
        "group_norm_silu": (
            (activation(2, 16, 5, 3), 4, torch.randn(16), torch.randn(16)),
            {"time_bias": activation(2, 16), "scale": activation(2, 16), "shift": activation(2, 16)},
        ),
        "layer_norm_modulate": (
            (x, activation(2, 16), activation(2, 16)),
            {
                "gate": activation(2, 16),
                "residual": activation(2, 5, 16),
                "weight": torch.randn(16),
                "bias": torch.randn(16),
            },
        ),
        "philox_normal": (((2, 5, 3), torch.tensor([3, 5])), given_dtype),
        "philox_uniform": (((2, 5, 3), torch.tensor([3, 5])), given_dtype),
        "qk_norm_rope": (
            (activation(2, 5, 3, 8), activation(2, 5, 3, 8), torch.randn(8), torch.randn(8), *_tables(3, 8)),
            {"text_tokens": 2},
        ),
        "sampler_step": (
            (activation(2, 4, 5, 3), activation(2, 4, 5, 3), torch.rand(3, len(ops.StepColumn)), 1),
            {
                "uncond_prediction": activation(2, 4, 5, 3),
                "history": (activation(2, 4, 5, 3),),
                "seeds": torch.tensor([3, 5]),
            },
        ),
        "timestep_embedding": ((torch.tensor([0.5, 999.0]), 16), given_dtype),
    }
    return calls[op]
