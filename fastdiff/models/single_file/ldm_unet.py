"""The U-Net of latent diffusion (arXiv:2112.10752): Stable Diffusion 1 and 2, and SDXL with its refiner."""

from __future__ import annotations

from typing import Any

from fastdiff.models.single_file.layout import Layout, NotTold, Part, Place, Rules

_HEADS, _HEAD_DIM = 8, 64
"""Stable Diffusion 1 has so many heads at every width; its successors have heads of such a width."""
_UNCLIP_TEXT = 1024
"""Width of the text in Stable Diffusion 2, whose unCLIP variant has a second condition, too, as SDXL has."""


def _infer(part: Part) -> dict[str, Any]:
    conv_in, conv_out = part.shape("input_blocks.0.0.weight", 4), part.shape("out.2.weight", 4)
    stages = _stages(part)
    channels = tuple(part.shape(f"input_blocks.{stage[0]}.0.out_layers.3.weight", 4)[0] for stage in stages)
    depths = [part.count(f"input_blocks.{stage[0]}.1.transformer_blocks.{{n}}") for stage in stages]
    attends = [depth > 0 for depth in depths]
    middle = "middle_block.1.transformer_blocks.0"
    text_channels = part.shape(f"{middle}.attn2.to_k.weight", 2)[1]
    only_cross = tuple(
        depth > 0 and _width_of_keys(part, stage[0]) != width
        for depth, stage, width in zip(depths, stages, channels, strict=True)
    )
    depths[-1] = depths[-1] or part.count("middle_block.1.transformer_blocks.{n}")
    condition = _second_condition(part, text_channels)
    linear = len(part.shape("middle_block.1.proj_in.weight")) == 2
    return {
        "sample_size": _sample_size(condition, linear, conv_in[1]),
        "in_channels": conv_in[1],
        "out_channels": conv_out[0],
        "down_block_types": tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
        "only_cross_attention": only_cross if any(only_cross) else False,
        "block_out_channels": channels,
        "layers_per_block": _one_or_all(tuple(map(len, stages))),
        "transformer_layers_per_block": _one_or_all(tuple(depth or 1 for depth in depths), set(depths) - {0}),
        "cross_attention_dim": text_channels,
        "attention_head_dim": _heads(part, channels, linear),
        "use_linear_projection": linear,
        **condition,
    }


def _stages(part: Part) -> list[list[int]]:
    """The numbers of the input blocks of each resolution."""
    stages: list[list[int]] = [[]]
    for number in range(1, part.count("input_blocks.{n}")):
        if f"input_blocks.{number}.0.op.weight" in part:
            stages.append([])
        else:
            stages[-1].append(number)
    if not all(stages):
        raise ValueError(f"{part.path} has no residual block between two changes of resolution of its input_blocks")
    return stages


def _width_of_keys(part: Part, number: int) -> int:
    return part.shape(f"input_blocks.{number}.1.transformer_blocks.0.attn1.to_k.weight", 2)[1]


def _heads(part: Part, channels: tuple[int, ...], linear: bool) -> int | tuple[int, ...] | NotTold:
    """attention_head_dim, which is their number."""
    if not linear or "label_emb.weight" in part:  # that is the upscaler of Stable Diffusion 2
        return _HEADS
    uneven = [width for width in channels if width % _HEAD_DIM]
    if uneven:
        return NotTold(f"as the width {uneven[0]} is no multiple of {_HEAD_DIM}")
    return tuple(width // _HEAD_DIM for width in channels)


def _second_condition(part: Part, text_channels: int) -> dict[str, Any]:
    if "label_emb.weight" in part:
        return {"num_class_embeds": part.shape("label_emb.weight", 2)[0]}
    if "label_emb.0.0.weight" not in part:
        return {}
    width = part.shape("label_emb.0.0.weight", 2)[1]
    if text_channels == _UNCLIP_TEXT:
        return {"class_embed_type": "projection", "projection_class_embeddings_input_dim": width}
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": width,
    }


def _sample_size(condition: dict[str, Any], linear: bool, in_channels: int) -> int:
    """The size it was trained at, in latents, which no tensor shows: where variants differ, that of the later one."""
    if "addition_embed_type" in condition or "num_class_embeds" in condition:
        return 128
    return 96 if linear and in_channels == 4 else 64  # what is for inpainting or depth was not trained at 96


def _one_or_all(values: tuple[int, ...], distinct: set[int] | None = None) -> int | tuple[int, ...]:
    """One number where all that matter are the same."""
    distinct = set(values) if distinct is None else distinct
    return distinct.pop() if len(distinct) == 1 else values


def _rules(config: Any) -> Rules:
    layers = config.per_stage("layers_per_block")
    last = len(layers) - 1
    rules: dict[str, str | Place] = {
        "time_embed.0.{p}": "time_embedding.linear_1.{p}",
        "time_embed.2.{p}": "time_embedding.linear_2.{p}",
        "label_emb.weight": "class_embedding.weight",
        "label_emb.0.0.{p}": f"{_condition(config)}.linear_1.{{p}}",
        "label_emb.0.2.{p}": f"{_condition(config)}.linear_2.{{p}}",
        "input_blocks.0.0.{p}": "conv_in.{p}",
        **_resnet("middle_block.0", "mid_block.resnets.0"),
        "middle_block.1.{rest}": "mid_block.attentions.0.{rest}",  # the names within are the same
        **_resnet("middle_block.2", "mid_block.resnets.1"),
        "out.0.{p}": "conv_norm_out.{p}",
        "out.2.{p}": "conv_out.{p}",
    }
    number = 1
    for stage in range(last + 1):
        for layer in range(layers[stage]):
            rules |= _resnet(f"input_blocks.{number}.0", f"down_blocks.{stage}.resnets.{layer}")
            rules[f"input_blocks.{number}.1.{{rest}}"] = f"down_blocks.{stage}.attentions.{layer}.{{rest}}"
            number += 1
        if stage < last:
            rules[f"input_blocks.{number}.0.op.{{p}}"] = f"down_blocks.{stage}.downsamplers.0.conv.{{p}}"
            number += 1
    number = 0
    for stage in range(last + 1):
        for layer in range(layers[last - stage] + 1):
            rules |= _resnet(f"output_blocks.{number}.0", f"up_blocks.{stage}.resnets.{layer}")
            # Behind the last one's attention, or in its place.
            for place in (1, 2):
                rules[f"output_blocks.{number}.{place}.conv.{{p}}"] = f"up_blocks.{stage}.upsamplers.0.conv.{{p}}"
            rules[f"output_blocks.{number}.1.{{rest}}"] = f"up_blocks.{stage}.attentions.{layer}.{{rest}}"
            number += 1
    return rules


def _condition(config: Any) -> str:
    return "class_embedding" if config.addition_embed_type is None else "add_embedding"


def _resnet(old: str, new: str) -> Rules:
    return {
        f"{old}.in_layers.0.{{p}}": f"{new}.norm1.{{p}}",
        f"{old}.in_layers.2.{{p}}": f"{new}.conv1.{{p}}",
        f"{old}.emb_layers.1.{{p}}": f"{new}.time_emb_proj.{{p}}",
        f"{old}.out_layers.0.{{p}}": f"{new}.norm2.{{p}}",
        f"{old}.out_layers.3.{{p}}": f"{new}.conv2.{{p}}",
        f"{old}.skip_connection.{{p}}": f"{new}.conv_shortcut.{{p}}",
    }


LAYOUT = Layout(mark="input_blocks.0.0.weight", infer=_infer, rules=_rules, prefixes=("model.diffusion_model.",))
