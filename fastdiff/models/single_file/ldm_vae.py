"""The autoencoder of latent diffusion (arXiv:2112.10752) and its successors: Stable Diffusion, SDXL, SD3 and FLUX."""

from __future__ import annotations

from typing import Any

from fastdiff.models.single_file.layout import Assumed, Layout, NotTold, Part, Place, Rules, linear


def _infer(part: Part) -> dict[str, Any]:
    stages = range(max(1, part.count("encoder.down.{n}")))
    latent_channels, in_channels = (
        part.shape("decoder.conv_in.weight", 4)[1],
        part.shape("encoder.conv_in.weight", 4)[1],
    )
    return {
        "in_channels": in_channels,
        "out_channels": part.shape("decoder.conv_out.weight", 4)[0],
        "down_block_types": tuple(
            "AttnDownEncoderBlock2D" if f"encoder.down.{stage}.attn.0.q.weight" in part else "DownEncoderBlock2D"
            for stage in stages
        ),
        "up_block_types": tuple(
            "AttnUpDecoderBlock2D" if f"decoder.up.{stage}.attn.0.q.weight" in part else "UpDecoderBlock2D"
            for stage in reversed(stages)
        ),
        "block_out_channels": tuple(part.shape(f"encoder.down.{stage}.block.0.conv2.weight", 4)[0] for stage in stages),
        "layers_per_block": part.count("encoder.down.0.block.{n}"),
        "latent_channels": latent_channels,
        "use_quant_conv": "quant_conv.weight" in part,
        "use_post_quant_conv": "post_quant_conv.weight" in part,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in part,
        **_scale(part, latent_channels),
    }


def _scale(part: Part, latent_channels: int) -> dict[str, Any]:
    """What names and shapes of the autoencoder itself do not tell: it is the rest of the file that does.

    With 16 channels a file that has no other network is likely FLUX's, as SD3's autoencoder comes with SD3.
    """
    if latent_channels == 16:
        if not part.others:
            scale = Assumed(0.3611, "that of FLUX (SD3's is 1.5305)")
            shift = Assumed(0.1159, "that of FLUX (SD3's is 0.0609)")
            return {"sample_size": 1024, "scaling_factor": scale, "shift_factor": shift}
        if any("double_blocks." in name for name in part.others):
            return {"sample_size": 1024, "scaling_factor": 0.3611, "shift_factor": 0.1159}
        return {"sample_size": 1024, "scaling_factor": 1.5305, "shift_factor": 0.0609}
    if "edm_mean" in part.others:
        return {"scaling_factor": NotTold("as its latents have means and deviations, edm_mean and edm_std")}
    if any(name.startswith("conditioner.") for name in part.others):
        return {"sample_size": 1024, "scaling_factor": 0.13025}
    if part.others:
        return {"sample_size": 512, "scaling_factor": 0.18215}
    reason = "that of Stable Diffusion 1 and 2 (SDXL's is 0.13025)"
    return {"sample_size": 512, "scaling_factor": Assumed(0.18215, reason)}


def _rules(config: Any) -> Rules:
    last = len(config.block_out_channels) - 1
    rules: dict[str, str | Place] = {"quant_conv.{p}": "quant_conv.{p}", "post_quant_conv.{p}": "post_quant_conv.{p}"}
    for half, stage in (("encoder", "down"), ("decoder", "up")):
        rules |= {
            f"{half}.conv_in.{{p}}": f"{half}.conv_in.{{p}}",
            **_resnet(f"{half}.mid.block_1", f"{half}.mid_block.resnets.0"),
            **_attention(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0"),
            **_resnet(f"{half}.mid.block_2", f"{half}.mid_block.resnets.1"),
            f"{half}.norm_out.{{p}}": f"{half}.conv_norm_out.{{p}}",
            f"{half}.conv_out.{{p}}": f"{half}.conv_out.{{p}}",
        }
        for number in range(last + 1):
            # The decoder counts its stages from the highest resolution, too, which it comes to last.
            index = number if half == "encoder" else last - number
            old, new = f"{half}.{stage}.{number}", f"{half}.{stage}_blocks.{index}"
            rules |= {
                **_resnet(f"{old}.block.{{n}}", f"{new}.resnets.{{n}}"),
                **_attention(f"{old}.attn.{{n}}", f"{new}.attentions.{{n}}"),
                f"{old}.{stage}sample.conv.{{p}}": f"{new}.{stage}samplers.0.conv.{{p}}",
            }
    return rules


def _resnet(old: str, new: str) -> Rules:
    return {
        f"{old}.norm1.{{p}}": f"{new}.norm1.{{p}}",
        f"{old}.conv1.{{p}}": f"{new}.conv1.{{p}}",
        f"{old}.norm2.{{p}}": f"{new}.norm2.{{p}}",
        f"{old}.conv2.{{p}}": f"{new}.conv2.{{p}}",
        f"{old}.nin_shortcut.{{p}}": f"{new}.conv_shortcut.{{p}}",
    }


def _attention(old: str, new: str) -> Rules:
    return {
        f"{old}.norm.{{p}}": f"{new}.group_norm.{{p}}",
        f"{old}.q.{{p}}": linear(f"{new}.to_q.{{p}}"),
        f"{old}.k.{{p}}": linear(f"{new}.to_k.{{p}}"),
        f"{old}.v.{{p}}": linear(f"{new}.to_v.{{p}}"),
        f"{old}.proj_out.{{p}}": linear(f"{new}.to_out.0.{{p}}"),
    }


LAYOUT = Layout(
    mark="decoder.mid.block_1.norm1.weight",
    infer=_infer,
    rules=_rules,
    prefixes=("first_stage_model.", "vae."),
    beside=("model_ema.", "loss."),
)
