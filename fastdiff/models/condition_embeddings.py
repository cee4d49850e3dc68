"""What the transformers make of timestep and class, or of timestep, guidance scale and pooled text: one vector."""

from __future__ import annotations

from torch import Tensor, nn

from fastdiff import ops
from fastdiff.models.embeddings import TimestepEmbedding

TIMESTEP_CHANNELS = 256
"""Width of the raw embedding in all of them."""


class CombinedTimestepLabelEmbeddings(nn.Module):
    """Timestep and class of DiT (arXiv:2212.09748): (N, 256) raw embedding and (N,) labels -> (N, channels).

    The class after the last stands for none, as classifier-free guidance needs it.
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(TIMESTEP_CHANNELS, channels)
        self.class_embedder = _LabelEmbedding(num_classes + 1, channels)

    def forward(self, raw_timestep: Tensor, class_labels: Tensor) -> Tensor:
        return self.timestep_embedder(raw_timestep) + self.class_embedder(class_labels)


class _LabelEmbedding(nn.Module):
    """A module around a table, because diffusers' key is class_embedder.embedding_table."""

    def __init__(self, num_labels: int, channels: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_labels, channels)

    def forward(self, class_labels: Tensor) -> Tensor:
        return self.embedding_table(class_labels)


class CombinedTimestepTextProjEmbeddings(nn.Module):
    """Timestep, pooled text and, with `guidance`, guidance scale of SD3 and FLUX: -> (N, channels).

    Args:
        channels: of the result.
        pooled_channels: of the pooled text.
        timestep_scale: brings the timestep and the guidance scale to the range of a diffusion's 0 ... 1000.
        guidance: whether there is an embedding of the guidance scale.
    """

    def __init__(
        self, channels: int, pooled_channels: int, *, timestep_scale: float = 1.0, guidance: bool = False
    ) -> None:
        super().__init__()
        self.timestep_scale = timestep_scale
        self.timestep_embedder = TimestepEmbedding(TIMESTEP_CHANNELS, channels)
        self.guidance_embedder = TimestepEmbedding(TIMESTEP_CHANNELS, channels) if guidance else None
        self.text_embedder = TimestepEmbedding(pooled_channels, channels)  # the same two layers

    def forward(self, timestep: Tensor, pooled: Tensor, guidance: Tensor | None = None) -> Tensor:
        """timestep (N,), pooled (N, pooled_channels), guidance (N,) where there is an embedding for it."""
        embedding = self.timestep_embedder(self._raw(timestep))
        if self.guidance_embedder is not None and guidance is not None:
            embedding = embedding + self.guidance_embedder(self._raw(guidance))
        return embedding + self.text_embedder(pooled)

    def _raw(self, timestep: Tensor) -> Tensor:
        return ops.timestep_embedding(
            timestep,
            TIMESTEP_CHANNELS,
            flip_sin_to_cos=True,
            downscale_freq_shift=0,
            scale=self.timestep_scale,
            dtype=self.timestep_embedder.linear_1.weight.dtype,
        )
