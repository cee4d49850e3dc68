"""diffusers without the steps that are float32 in a model of any dtype, which would hide all other differences."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor, nn

from fastdiff import reference
from fastdiff.models.embeddings import GaussianFourierEmbedding
from fastdiff.nn import Timesteps


class ExactTimesteps(nn.Module):
    """The embedding of the timestep in float64 throughout."""

    def __init__(self, like: Timesteps | GaussianFourierEmbedding) -> None:
        super().__init__()
        self.like = like

    def forward(self, timesteps: Tensor) -> Tensor:
        like = self.like
        if isinstance(like, GaussianFourierEmbedding):
            angle = 2 * math.pi * timesteps.double().log()[:, None] * like.weight.double()
            return torch.cat((angle.sin(), angle.cos()), dim=1)
        return reference.timestep_embedding(
            timesteps.double(),
            like.num_channels,
            flip_sin_to_cos=like.flip_sin_to_cos,
            downscale_freq_shift=like.downscale_freq_shift,
            dtype=torch.float64,
        ).to(torch.float64)


def use_exact_timesteps(theirs: nn.Module, ours: nn.Module) -> None:
    """In two U-Nets, in place of their own, so that results in every dtype can be compared."""
    for name, embedding in list(ours.named_children()):
        if name in ("time_proj", "add_time_proj") and not isinstance(embedding, nn.Embedding):
            exact = ExactTimesteps(embedding)
            for model in (theirs, ours):
                setattr(model, name, exact)


@contextlib.contextmanager
def exact_diffusers(model: nn.Module) -> Iterator[None]:
    """In the transformers, for the results in float64 of a model; nothing where it is not of diffusers."""
    if not type(model).__module__.startswith("diffusers."):
        yield
        return
    from diffusers.models import embeddings, normalization
    from diffusers.models.transformers import transformer_flux

    def timestep_embedding(timesteps, embedding_dim, flip_sin_to_cos, downscale_freq_shift, scale):
        assert flip_sin_to_cos and scale == 1
        index = torch.arange(embedding_dim // 2, dtype=torch.float64)
        frequencies = 10000 ** (-index / (embedding_dim // 2 - downscale_freq_shift))
        angle = timesteps.double()[:, None] * frequencies
        return torch.cat((angle.cos(), angle.sin()), dim=-1)

    def rms_norm(self, x):
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight

    def rotary(x, tables, sequence_dim):
        assert sequence_dim == 1
        cos, sin = (table[None, :, None].double() for table in tables)
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        return x * cos + torch.stack((-second, first), dim=-1).flatten(-2) * sin

    with (
        mock.patch.object(embeddings, "get_timestep_embedding", timestep_embedding),
        mock.patch.object(normalization.RMSNorm, "forward", rms_norm),
        mock.patch.object(transformer_flux, "apply_rotary_emb", rotary),
    ):
        yield
