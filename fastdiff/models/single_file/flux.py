"""FLUX.1 as Black Forest Labs publishes it."""

from __future__ import annotations

from typing import Any

from fastdiff.models.single_file.layout import Layout, NotTold, Part, Rules, split, swapped

_AXES_DIMS_ROPE = {128: (16, 56, 56)}  # by the width of a head


def _infer(part: Part) -> dict[str, Any]:
    channels, in_channels = part.shape("img_in.weight", 2)
    out_channels = part.shape("final_layer.linear.weight", 2)[0]
    head_dim = part.shape("double_blocks.0.img_attn.norm.query_norm.scale", 1)[0]
    return {
        "in_channels": in_channels,
        "out_channels": None if out_channels == in_channels else out_channels,
        "num_layers": part.count("double_blocks.{n}"),
        "num_single_layers": part.count("single_blocks.{n}"),
        "attention_head_dim": head_dim,
        "num_attention_heads": channels // head_dim,
        "joint_attention_dim": part.shape("txt_in.weight", 2)[1],
        "pooled_projection_dim": part.shape("vector_in.in_layer.weight", 2)[1],
        "guidance_embeds": "guidance_in.in_layer.weight" in part,
        "axes_dims_rope": _AXES_DIMS_ROPE.get(head_dim, NotTold(f"as heads are {head_dim} wide")),
    }


def _rules(config: Any) -> Rules:
    double, block = "double_blocks.{n}", "transformer_blocks.{n}"
    single, single_block = "single_blocks.{n}", "single_transformer_blocks.{n}"
    return {
        "img_in.{p}": "x_embedder.{p}",
        "txt_in.{p}": "context_embedder.{p}",
        "time_in.in_layer.{p}": "time_text_embed.timestep_embedder.linear_1.{p}",
        "time_in.out_layer.{p}": "time_text_embed.timestep_embedder.linear_2.{p}",
        "guidance_in.in_layer.{p}": "time_text_embed.guidance_embedder.linear_1.{p}",
        "guidance_in.out_layer.{p}": "time_text_embed.guidance_embedder.linear_2.{p}",
        "vector_in.in_layer.{p}": "time_text_embed.text_embedder.linear_1.{p}",
        "vector_in.out_layer.{p}": "time_text_embed.text_embedder.linear_2.{p}",
        f"{double}.img_mod.lin.{{p}}": f"{block}.norm1.linear.{{p}}",
        f"{double}.img_attn.qkv.{{p}}": split(*(f"{block}.attn.to_{x}.{{p}}" for x in "qkv")),
        f"{double}.img_attn.norm.query_norm.scale": f"{block}.attn.norm_q.weight",
        f"{double}.img_attn.norm.key_norm.scale": f"{block}.attn.norm_k.weight",
        f"{double}.img_attn.proj.{{p}}": f"{block}.attn.to_out.0.{{p}}",
        f"{double}.img_mlp.0.{{p}}": f"{block}.ff.net.0.proj.{{p}}",
        f"{double}.img_mlp.2.{{p}}": f"{block}.ff.net.2.{{p}}",
        f"{double}.txt_mod.lin.{{p}}": f"{block}.norm1_context.linear.{{p}}",
        f"{double}.txt_attn.qkv.{{p}}": split(*(f"{block}.attn.add_{x}_proj.{{p}}" for x in "qkv")),
        f"{double}.txt_attn.norm.query_norm.scale": f"{block}.attn.norm_added_q.weight",
        f"{double}.txt_attn.norm.key_norm.scale": f"{block}.attn.norm_added_k.weight",
        f"{double}.txt_attn.proj.{{p}}": f"{block}.attn.to_add_out.{{p}}",
        f"{double}.txt_mlp.0.{{p}}": f"{block}.ff_context.net.0.proj.{{p}}",
        f"{double}.txt_mlp.2.{{p}}": f"{block}.ff_context.net.2.{{p}}",
        f"{single}.modulation.lin.{{p}}": f"{single_block}.norm.linear.{{p}}",
        f"{single}.linear1.{{p}}": split(
            *(f"{single_block}.attn.to_{x}.{{p}}" for x in "qkv"), f"{single_block}.proj_mlp.{{p}}"
        ),
        f"{single}.norm.query_norm.scale": f"{single_block}.attn.norm_q.weight",
        f"{single}.norm.key_norm.scale": f"{single_block}.attn.norm_k.weight",
        f"{single}.linear2.{{p}}": f"{single_block}.proj_out.{{p}}",
        "final_layer.adaLN_modulation.1.{p}": swapped("norm_out.linear.{p}"),
        "final_layer.linear.{p}": "proj_out.{p}",
    }


LAYOUT = Layout(
    mark="double_blocks.0.img_attn.qkv.weight", infer=_infer, rules=_rules, prefixes=("model.diffusion_model.",)
)
