"""DiT as its authors publish it (arXiv:2212.09748), exported to safetensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.models.patch_embed import position_table
from fastdiff.models.single_file.layout import Layout, NotTold, Part, Place, Rules, copies, split
from fastdiff.models.transformer_blocks import BLOCK_EPS


def _heads(channels: int) -> int | NotTold:
    """Of DiT-XL 16; of DiT-S, B and L as many as are 64 wide."""
    if channels == 1152:
        return 16
    return NotTold(f"as the width {channels} is no multiple of 64") if channels % 64 else channels // 64


def _infer(part: Part) -> dict[str, Any]:
    channels, in_channels, patch_size, _ = part.shape("x_embedder.proj.weight", 4)
    heads = _heads(channels)
    return {
        "num_attention_heads": heads,
        "attention_head_dim": channels // heads if isinstance(heads, int) else heads,
        "in_channels": in_channels,
        "out_channels": part.shape("final_layer.linear.weight", 2)[0] // patch_size**2,
        "num_layers": part.count("blocks.{n}"),
        "sample_size": math.isqrt(part.shape("pos_embed", 3)[1]) * patch_size,
        "patch_size": patch_size,
        "num_embeds_ada_norm": part.shape("y_embedder.embedding_table.weight", 2)[0] - 1,  # the last stands for none
        # As the original code has them, unlike diffusers.
        "norm_eps": BLOCK_EPS,
        "freq_shift": 0,
    }


def _rules(config: Any) -> Rules:
    def embedding(name: str) -> Place:
        """Of each block its own in the model, one for all in the file."""
        return copies(*(f"transformer_blocks.{layer}.norm1.emb.{name}" for layer in range(config.num_layers)))

    return {
        "pos_embed": _positions(config),
        "x_embedder.proj.{p}": "pos_embed.proj.{p}",
        "t_embedder.mlp.0.{p}": embedding("timestep_embedder.linear_1.{p}"),
        "t_embedder.mlp.2.{p}": embedding("timestep_embedder.linear_2.{p}"),
        "y_embedder.embedding_table.weight": embedding("class_embedder.embedding_table.weight"),
        "blocks.{n}.adaLN_modulation.1.{p}": "transformer_blocks.{n}.norm1.linear.{p}",
        "blocks.{n}.attn.qkv.{p}": split(*(f"transformer_blocks.{{n}}.attn1.to_{x}.{{p}}" for x in "qkv")),
        "blocks.{n}.attn.proj.{p}": "transformer_blocks.{n}.attn1.to_out.0.{p}",
        "blocks.{n}.mlp.fc1.{p}": "transformer_blocks.{n}.ff.net.0.proj.{p}",
        "blocks.{n}.mlp.fc2.{p}": "transformer_blocks.{n}.ff.net.2.{p}",
        "final_layer.adaLN_modulation.1.{p}": "proj_out_1.{p}",  # (shift, scale) in both, unlike in SD3 and FLUX
        "final_layer.linear.{p}": "proj_out_2.{p}",
    }


def _positions(config: Any) -> Place:
    """Nowhere: the model works them out, and a table of other numbers would be lost on it."""
    channels = config.num_attention_heads * config.attention_head_dim
    side = config.sample_size // config.patch_size

    def make(tensor: Tensor, _: Sequence[torch.Size]) -> Sequence[Tensor]:
        table = position_table(channels, side, side, side).flatten(0, 1)
        allowed = 1e-4 + torch.finfo(tensor.dtype).eps
        if tensor.shape != (1, *table.shape) or (tensor[0].float() - table).abs().max() > allowed:
            raise ValueError(f"must hold the sines and cosines of {side} x {side} places, which it does not")
        return []

    return Place((), make)


LAYOUT = Layout(mark="y_embedder.embedding_table.weight", infer=_infer, rules=_rules)
