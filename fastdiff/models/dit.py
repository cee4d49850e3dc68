from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff import ops
from fastdiff.models.condition_embeddings import TIMESTEP_CHANNELS, CombinedTimestepLabelEmbeddings
from fastdiff.models.config_checks import (
    require_choice,
    require_patches,
    require_positive,
    require_positive_or_none,
)
from fastdiff.models.embeddings import of_each_sample
from fastdiff.models.patch_embed import PatchEmbed, grid_size, unpatchify
from fastdiff.models.pretrained import PretrainedModel
from fastdiff.models.transformer_blocks import BLOCK_EPS, Transformer2DOutput, finish_block
from fastdiff.nn import AdaLayerNormZero, Attention, FeedForward, Linear

CLASS_DROPOUT = 0.1
"""Share of the labels that training replaces by "no class"; as in diffusers not part of the configuration."""

# DiT was a Transformer2DModel in older versions of diffusers: its keys that DiT has no use for, where they are unset.
_FORMER_KEYS: dict[str, Any] = {
    "attention_type": "default",
    "caption_channels": None,
    "cross_attention_dim": None,
    "double_self_attention": False,
    "interpolation_scale": None,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "use_additional_conditions": None,
    "use_linear_projection": False,
}


@dataclass(frozen=True)
class DiTTransformer2DConfig:
    """The configuration of :class:`DiTTransformer2DModel`: diffusers' keys, defaults and meanings, and one key more.

    ``freq_shift`` is 1 in diffusers, which has no such key, and 0 in the original code: the raw embedding of a timestep
    has frequencies 10000 ** (-i / (128 - freq_shift)), which is another one altogether for large timesteps. It is saved
    only where it is 0, with a warning that diffusers will compute something else.
    ``norm_num_groups`` and ``upcast_attention`` are read and change nothing: there is no group norm, and scores are
    float32 in any case.

    Raises:
        ValueError: a value that is not supported or does not fit the others, with its key and what is allowed.
    """

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int | None = None
    num_layers: int = 28
    dropout: float = 0.0
    norm_num_groups: int = 32
    attention_bias: bool = True
    sample_size: int = 32
    patch_size: int = 2
    activation_fn: str = "gelu-approximate"
    num_embeds_ada_norm: int = 1000
    upcast_attention: bool = False
    norm_type: str = "ada_norm_zero"
    norm_elementwise_affine: bool = False
    norm_eps: float = 1e-5
    freq_shift: int = 1

    def __post_init__(self) -> None:
        require_positive(self, "num_attention_heads", "attention_head_dim", "in_channels", "num_layers")
        require_positive(self, "sample_size", "patch_size", "num_embeds_ada_norm")
        require_choice(self, norm_type=("ada_norm_zero",), activation_fn=FeedForward.ACTIVATIONS, freq_shift=(0, 1))
        require_positive_or_none(self, "out_channels")
        require_patches(self)


class DiTTransformer2DModel(PretrainedModel):
    """The diffusion transformer conditioned on a class, with adaLN-Zero (DiT, arXiv:2212.09748).

    Configuration and ``state_dict`` keys are those of diffusers' ``DiTTransformer2DModel``, so its checkpoints load,
    and so do those of its time as a ``Transformer2DModel``. Pictures need not be square.

    In training mode a tenth of the labels gives way to "no class", the same ones in all blocks; diffusers draws anew in
    each block.

    >>> model = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, num_layers=1, sample_size=16).eval()
    >>> model(torch.randn(2, 4, 16, 16), timestep=10, class_labels=torch.tensor([3, 1000])).sample.shape
    torch.Size([2, 4, 16, 16])

    Args:
        **values: the fields of :class:`DiTTransformer2DConfig`.
    """

    config_class = DiTTransformer2DConfig
    config: DiTTransformer2DConfig
    former_class_names = ("Transformer2DModel",)

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self.config = config = self.parse_config(values)
        channels = config.num_attention_heads * config.attention_head_dim
        out_channels = config.in_channels if config.out_channels is None else config.out_channels
        self.pos_embed = PatchEmbed(
            config.in_channels, channels, config.patch_size, base_size=config.sample_size // config.patch_size
        )
        self.transformer_blocks = nn.ModuleList(DiTBlock(channels, config) for _ in range(config.num_layers))
        self.proj_out_1 = Linear(channels, 2 * channels)
        self.proj_out_2 = Linear(channels, config.patch_size**2 * out_channels)

    @classmethod
    def parse_config(cls, values: dict[str, Any]) -> Any:
        """The configuration from its keys; those of a ``Transformer2DModel`` may be there where they are left unset."""
        unused = {key for key, unset in _FORMER_KEYS.items() if values.get(key, unset) in (unset, None)}
        return super().parse_config({key: value for key, value in values.items() if key not in unused})

    def _config_to_save(self) -> dict[str, Any]:
        values = super()._config_to_save()
        if values["freq_shift"] == 1:
            del values["freq_shift"]
        else:
            warnings.warn(
                "diffusers has no freq_shift and embeds timesteps as with 1: it computes something else than this",
                stacklevel=3,
            )
        return values

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor,
        return_dict: bool = True,
    ) -> Transformer2DOutput:
        """One evaluation of the network.

        Args:
            hidden_states: (N, in_channels, H, W), the noisy picture; H and W multiples of patch_size.
            timestep: a number, or a tensor of no dimension or (N,). Kept in float32 whatever the model's dtype.
            class_labels: (N,) integers; num_embeds_ada_norm is no class.
            return_dict: accepted for diffusers' sake; the result is a named tuple either way.

        Returns:
            ``.sample`` or ``[0]``: (N, out_channels, H, W).

        Raises:
            ValueError: a shape that does not fit.
        """
        height, width = grid_size("hidden_states", hidden_states, self.config.in_channels, self.config.patch_size)
        batch = hidden_states.shape[0]
        if class_labels.shape != (batch,):
            raise ValueError(f"class_labels must have shape ({batch},), got {tuple(class_labels.shape)}")
        if self.training:
            dropped = torch.rand(batch, device=class_labels.device) < CLASS_DROPOUT
            class_labels = class_labels.masked_fill(dropped, self.config.num_embeds_ada_norm)

        x = self.pos_embed(hidden_states)
        time = self._embed(of_each_sample("timestep", timestep, x))
        for block in self.transformer_blocks:
            x = self.run_block(block, x, time, class_labels)

        conditioning = cast(DiTBlock, self.transformer_blocks[0]).norm1.emb(time, class_labels)
        # Shift before scale here, unlike the last norm of SD3 and FLUX.
        shift, scale = self.proj_out_1(F.silu(conditioning)).chunk(2, dim=1)
        x = ops.layer_norm_modulate(x, scale, shift, eps=BLOCK_EPS)[0]
        return Transformer2DOutput(unpatchify(self.proj_out_2(x), height, width, self.config.patch_size))

    def _embed(self, timestep: Tensor) -> Tensor:
        """The raw embedding of (N,) timesteps."""
        return ops.timestep_embedding(
            timestep,
            TIMESTEP_CHANNELS,
            flip_sin_to_cos=True,
            downscale_freq_shift=self.config.freq_shift,
            dtype=self.proj_out_1.weight.dtype,
        )


class DiTBlock(nn.Module):
    """Self-attention and feed-forward, each with adaLN-Zero (arXiv:2212.09748, figure 3). Embeds its own condition."""

    def __init__(self, channels: int, config: DiTTransformer2DConfig) -> None:
        super().__init__()
        self.norm1 = _LabelledAdaLayerNormZero(channels, config.num_embeds_ada_norm)
        self.attn1 = Attention(
            channels, heads=config.num_attention_heads, dim_head=config.attention_head_dim, bias=config.attention_bias
        )
        self.dropout = nn.Dropout(config.dropout)
        self.norm3 = nn.LayerNorm(channels, config.norm_eps, config.norm_elementwise_affine)
        self.ff = FeedForward(channels, dropout=config.dropout, activation_fn=config.activation_fn)

    def forward(self, x: Tensor, time: Tensor, class_labels: Tensor) -> Tensor:
        """x (N, L, C), time (N, 256) the raw embedding, class_labels (N,) -> (N, L, C)."""
        y, gate, shift, scale, ff_gate = self.norm1(x, self.norm1.emb(time, class_labels))
        attended = self.dropout(self.attn1(y))
        return finish_block(self.ff, attended, gate, x, scale, shift, ff_gate, norm=self.norm3)


class _LabelledAdaLayerNormZero(AdaLayerNormZero):
    """With the embedding of timestep and class, of which each block of DiT has its own."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(channels)
        self.emb = CombinedTimestepLabelEmbeddings(num_classes, channels)
