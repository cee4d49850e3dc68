"""The timestep and its embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastdiff.nn import Linear


def of_each_sample(name: str, value: Tensor | float, batch: Tensor) -> Tensor:
    """A number, or a tensor of no dimension or (N,), as (N,) on the device of a batch (N, ...)."""
    tensor = torch.as_tensor(value, device=batch.device)
    if tensor.dim() > 1 or (tensor.dim() == 1 and tensor.shape[0] not in (1, batch.shape[0])):
        raise ValueError(
            f"{name} must be a number or a tensor of shape () or ({batch.shape[0]},), got shape {tuple(tensor.shape)}"
        )
    return tensor.expand(batch.shape[0])


class GaussianFourierEmbedding(nn.Module):
    """Fixed random Fourier features of log(timestep) (arXiv:2011.13456, appendix C): (N,) -> (N, 2 * channels)."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels) * scale, requires_grad=False)

    def forward(self, timestep: Tensor) -> Tensor:
        angle = timestep.float().log()[:, None] * self.weight.float() * (2 * math.pi)
        return torch.cat((angle.sin(), angle.cos()), dim=-1)


class TimestepEmbedding(nn.Module):
    """The two-layer perceptron behind the raw embedding: (N, in_channels) -> (N, out_channels).

    Args:
        condition_channels: width of a second input that is projected and added to the first, such as the embedding of
            the guidance scale in latent consistency models (arXiv:2310.04378, section 4.2); None is without.
    """

    def __init__(self, in_channels: int, out_channels: int, condition_channels: int | None = None) -> None:
        super().__init__()
        self.linear_1 = Linear(in_channels, out_channels)
        self.cond_proj = None if condition_channels is None else Linear(condition_channels, in_channels, bias=False)
        self.linear_2 = Linear(out_channels, out_channels)

    def forward(self, embedding: Tensor, condition: Tensor | None = None) -> Tensor:
        if self.cond_proj is not None and condition is not None:
            embedding = embedding + self.cond_proj(condition)
        return self.linear_2(nn.functional.silu(self.linear_1(embedding)))


def class_embedding(
    embed_type: str | None,
    num_class_embeds: int | None,
    raw_channels: int,
    time_channels: int,
    label_channels: int | None = None,
) -> nn.Module | None:
    """What makes of class labels a summand of the time embedding, by diffusers' ``class_embed_type``.

    Args:
        raw_channels: width of the raw embedding of a timestep, for the labels that "timestep" takes as such.
        label_channels: width of the labels that "projection" and "simple_projection" take.
    """
    if embed_type == "timestep":
        return TimestepEmbedding(raw_channels, time_channels)
    if embed_type == "identity":
        return nn.Identity()
    if embed_type in ("projection", "simple_projection"):
        assert label_channels is not None  # checked by the configuration
        if embed_type == "simple_projection":
            return Linear(label_channels, time_channels)
        return TimestepEmbedding(label_channels, time_channels)
    if num_class_embeds is not None:
        return nn.Embedding(num_class_embeds, time_channels)
    return None


def label_width(embed_type: str | None, time_channels: int, label_channels: int | None = None) -> int | None:
    """Numbers in the class label of a sample, for what :func:`class_embedding` gives; None is a single one."""
    if embed_type == "identity":
        return time_channels
    return label_channels if embed_type in ("projection", "simple_projection") else None
