"""Stable Diffusion 3 and 3.5 as Stability AI publishes them (MMDiT, arXiv:2403.03206)."""

from __future__ import annotations

import math
from typing import Any

from fastdiff.models.single_file.layout import Layout, NotTold, Part, Rules, split, swapped

_HEAD_DIM = 64


def _infer(part: Part) -> dict[str, Any]:
    channels, in_channels, patch_size, _ = part.shape("x_embedder.proj.weight", 4)
    layers = part.count("joint_blocks.{n}")
    places = part.shape("pos_embed", 3)[1]
    if math.isqrt(places) ** 2 != places:
        raise ValueError(f"{part.prefix}pos_embed of {part.path} must have a square number of places, got {places}")
    head_dim: int | NotTold = _HEAD_DIM
    qk_norm = "joint_blocks.0.x_block.attn.ln_q.weight" in part
    if qk_norm:
        head_dim = part.shape("joint_blocks.0.x_block.attn.ln_q.weight", 1)[0]
    elif channels % _HEAD_DIM:
        head_dim = NotTold(f"as the width {channels} is no multiple of {_HEAD_DIM}")
    return {
        "patch_size": patch_size,
        "in_channels": in_channels,
        "num_layers": layers,
        "attention_head_dim": head_dim,
        "num_attention_heads": channels // head_dim if isinstance(head_dim, int) else head_dim,
        "joint_attention_dim": part.shape("context_embedder.weight", 2)[1],
        "caption_projection_dim": channels,
        "pooled_projection_dim": part.shape("y_embedder.mlp.0.weight", 2)[1],
        "out_channels": part.shape("final_layer.linear.weight", 2)[0] // patch_size**2,
        "pos_embed_max_size": math.isqrt(places),
        "dual_attention_layers": tuple(
            layer for layer in range(layers) if f"joint_blocks.{layer}.x_block.attn2.qkv.weight" in part
        ),
        "qk_norm": "rms_norm" if qk_norm else None,
    }


def _rules(config: Any) -> Rules:
    last = config.num_layers - 1
    image, text, block = "joint_blocks.{n}.x_block", "joint_blocks.{n}.context_block", "transformer_blocks.{n}"
    return {
        "pos_embed": "pos_embed.pos_embed",
        "x_embedder.proj.{p}": "pos_embed.proj.{p}",
        "t_embedder.mlp.0.{p}": "time_text_embed.timestep_embedder.linear_1.{p}",
        "t_embedder.mlp.2.{p}": "time_text_embed.timestep_embedder.linear_2.{p}",
        "y_embedder.mlp.0.{p}": "time_text_embed.text_embedder.linear_1.{p}",
        "y_embedder.mlp.2.{p}": "time_text_embed.text_embedder.linear_2.{p}",
        "context_embedder.{p}": "context_embedder.{p}",
        f"{image}.adaLN_modulation.1.{{p}}": f"{block}.norm1.linear.{{p}}",
        f"{image}.attn.qkv.{{p}}": split(*(f"{block}.attn.to_{x}.{{p}}" for x in "qkv")),
        f"{image}.attn.ln_q.weight": f"{block}.attn.norm_q.weight",
        f"{image}.attn.ln_k.weight": f"{block}.attn.norm_k.weight",
        f"{image}.attn.proj.{{p}}": f"{block}.attn.to_out.0.{{p}}",
        f"{image}.attn2.qkv.{{p}}": split(*(f"{block}.attn2.to_{x}.{{p}}" for x in "qkv")),
        f"{image}.attn2.ln_q.weight": f"{block}.attn2.norm_q.weight",
        f"{image}.attn2.ln_k.weight": f"{block}.attn2.norm_k.weight",
        f"{image}.attn2.proj.{{p}}": f"{block}.attn2.to_out.0.{{p}}",
        f"{image}.mlp.fc1.{{p}}": f"{block}.ff.net.0.proj.{{p}}",
        f"{image}.mlp.fc2.{{p}}": f"{block}.ff.net.2.{{p}}",
        # The text ends in the last block, whose norm is of the kind of the model's last.
        f"joint_blocks.{last}.context_block.adaLN_modulation.1.{{p}}": swapped(
            f"transformer_blocks.{last}.norm1_context.linear.{{p}}"
        ),
        f"{text}.adaLN_modulation.1.{{p}}": f"{block}.norm1_context.linear.{{p}}",
        f"{text}.attn.qkv.{{p}}": split(*(f"{block}.attn.add_{x}_proj.{{p}}" for x in "qkv")),
        f"{text}.attn.ln_q.weight": f"{block}.attn.norm_added_q.weight",
        f"{text}.attn.ln_k.weight": f"{block}.attn.norm_added_k.weight",
        f"{text}.attn.proj.{{p}}": f"{block}.attn.to_add_out.{{p}}",
        f"{text}.mlp.fc1.{{p}}": f"{block}.ff_context.net.0.proj.{{p}}",
        f"{text}.mlp.fc2.{{p}}": f"{block}.ff_context.net.2.{{p}}",
        "final_layer.adaLN_modulation.1.{p}": swapped("norm_out.linear.{p}"),
        "final_layer.linear.{p}": "proj_out.{p}",
    }


LAYOUT = Layout(
    mark="joint_blocks.0.x_block.attn.qkv.weight", infer=_infer, rules=_rules, prefixes=("model.diffusion_model.",)
)
