"""Names and shapes of the tensors of published checkpoints, as the original code builds its modules."""

from __future__ import annotations

from collections.abc import Collection, Sequence

Shapes = dict[str, tuple[int, ...]]


def dense(name: str, out: int, *into: int, bias: bool = True) -> Shapes:
    """A linear layer or, with the size of a kernel, a convolution."""
    return {f"{name}.weight": (out, *into)} | ({f"{name}.bias": (out,)} if bias else {})


def norm(name: str, channels: int) -> Shapes:
    return dense(name, channels)


def two_layers(name: str, first: str, second: str, into: int, width: int) -> Shapes:
    return dense(f"{name}.{first}", width, into) | dense(f"{name}.{second}", width, width)


def prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def ldm_unet(
    *,
    model_channels: int = 320,
    channel_mult: Sequence[int] = (1, 2, 4, 4),
    num_res_blocks: int = 2,
    transformer_depth: Sequence[int] = (1, 1, 1, 0),
    middle_depth: int = 1,
    context_dim: int = 768,
    linear: bool = False,
    in_channels: int = 4,
    adm_in_channels: int | None = None,
    num_classes: int | None = None,
    disable_self_attentions: Sequence[bool] = (False,) * 4,
) -> Shapes:
    """``UNetModel`` of latent diffusion and of SDXL; `transformer_depth` is 0 where there is no attention."""
    time = 4 * model_channels
    widths = [model_channels * factor for factor in channel_mult]

    def resblock(name: str, into: int, out: int) -> Shapes:
        return {
            **norm(f"{name}.in_layers.0", into),
            **dense(f"{name}.in_layers.2", out, into, 3, 3),
            **dense(f"{name}.emb_layers.1", out, time),
            **norm(f"{name}.out_layers.0", out),
            **dense(f"{name}.out_layers.3", out, out, 3, 3),
            **(dense(f"{name}.skip_connection", out, into, 1, 1) if into != out else {}),
        }

    def transformer(name: str, width: int, depth: int, only_cross: bool = False) -> Shapes:
        kernel = () if linear else (1, 1)
        shapes = norm(f"{name}.norm", width) | dense(f"{name}.proj_in", width, width, *kernel)
        for layer in range(depth):
            block = f"{name}.transformer_blocks.{layer}"
            for attention, keys in (("attn1", context_dim if only_cross else width), ("attn2", context_dim)):
                for projection, into in (("to_q", width), ("to_k", keys), ("to_v", keys)):
                    shapes |= dense(f"{block}.{attention}.{projection}", width, into, bias=False)
                shapes |= dense(f"{block}.{attention}.to_out.0", width, width)
            shapes |= dense(f"{block}.ff.net.0.proj", 8 * width, width) | dense(f"{block}.ff.net.2", width, 4 * width)
            for number in (1, 2, 3):
                shapes |= norm(f"{block}.norm{number}", width)
        return shapes | dense(f"{name}.proj_out", width, width, *kernel)

    shapes = two_layers("time_embed", "0", "2", model_channels, time)
    if adm_in_channels is not None:
        shapes |= two_layers("label_emb.0", "0", "2", adm_in_channels, time)
    if num_classes is not None:
        shapes |= {"label_emb.weight": (num_classes, time)}
    shapes |= dense("input_blocks.0.0", model_channels, in_channels, 3, 3)
    skips, width, number = [model_channels], model_channels, 1
    for stage, out in enumerate(widths):
        for _ in range(num_res_blocks):
            shapes |= resblock(f"input_blocks.{number}.0", width, out)
            if transformer_depth[stage]:
                shapes |= transformer(
                    f"input_blocks.{number}.1", out, transformer_depth[stage], disable_self_attentions[stage]
                )
            width, number = out, number + 1
            skips.append(width)
        if stage < len(widths) - 1:
            shapes |= dense(f"input_blocks.{number}.0.op", width, width, 3, 3)
            number += 1
            skips.append(width)
    shapes |= resblock("middle_block.0", width, width) | transformer("middle_block.1", width, middle_depth)
    shapes |= resblock("middle_block.2", width, width)
    number = 0
    for stage, out in reversed(list(enumerate(widths))):
        for layer in range(num_res_blocks + 1):
            shapes |= resblock(f"output_blocks.{number}.0", width + skips.pop(), out)
            width, place = out, 1
            if transformer_depth[stage]:
                shapes |= transformer(
                    f"output_blocks.{number}.1", out, transformer_depth[stage], disable_self_attentions[stage]
                )
                place = 2
            if stage and layer == num_res_blocks:
                shapes |= dense(f"output_blocks.{number}.{place}.conv", out, out, 3, 3)
            number += 1
    return shapes | norm("out.0", width) | dense("out.2", 4, width, 3, 3)


def ldm_vae(
    *,
    ch: int = 128,
    ch_mult: Sequence[int] = (1, 2, 4, 4),
    num_res_blocks: int = 2,
    z_channels: int = 4,
    quant_conv: bool = True,
    attention_at: Collection[int] = (),
) -> Shapes:
    """``AutoencoderKL`` of latent diffusion; `attention_at` are stages with attention, from the highest resolution."""
    widths = [ch * factor for factor in ch_mult]

    def resblock(name: str, into: int, out: int) -> Shapes:
        return {
            **norm(f"{name}.norm1", into),
            **dense(f"{name}.conv1", out, into, 3, 3),
            **norm(f"{name}.norm2", out),
            **dense(f"{name}.conv2", out, out, 3, 3),
            **(dense(f"{name}.nin_shortcut", out, into, 1, 1) if into != out else {}),
        }

    def attention(name: str, width: int) -> Shapes:
        shapes = norm(f"{name}.norm", width)
        for projection in ("q", "k", "v", "proj_out"):
            shapes |= dense(f"{name}.{projection}", width, width, 1, 1)
        return shapes

    def middle(name: str, width: int) -> Shapes:
        return {
            **resblock(f"{name}.block_1", width, width),
            **attention(f"{name}.attn_1", width),
            **resblock(f"{name}.block_2", width, width),
        }

    shapes, width = dense("encoder.conv_in", ch, 3, 3, 3), ch
    for stage, out in enumerate(widths):
        for layer in range(num_res_blocks):
            shapes |= resblock(f"encoder.down.{stage}.block.{layer}", width, out)
            width = out
            if stage in attention_at:
                shapes |= attention(f"encoder.down.{stage}.attn.{layer}", width)
        if stage < len(widths) - 1:
            shapes |= dense(f"encoder.down.{stage}.downsample.conv", width, width, 3, 3)
    shapes |= middle("encoder.mid", width) | norm("encoder.norm_out", width)
    shapes |= dense("encoder.conv_out", 2 * z_channels, width, 3, 3)

    shapes |= dense("decoder.conv_in", width, z_channels, 3, 3) | middle("decoder.mid", width)
    for stage, out in reversed(list(enumerate(widths))):
        for layer in range(num_res_blocks + 1):
            shapes |= resblock(f"decoder.up.{stage}.block.{layer}", width, out)
            width = out
            if stage in attention_at:
                shapes |= attention(f"decoder.up.{stage}.attn.{layer}", width)
        if stage:
            shapes |= dense(f"decoder.up.{stage}.upsample.conv", width, width, 3, 3)
    shapes |= norm("decoder.norm_out", width) | dense("decoder.conv_out", 3, width, 3, 3)
    if quant_conv:
        shapes |= dense("quant_conv", 2 * z_channels, 2 * z_channels, 1, 1)
        shapes |= dense("post_quant_conv", z_channels, z_channels, 1, 1)
    return shapes


def dit(
    *,
    hidden_size: int = 1152,
    depth: int = 28,
    patch_size: int = 2,
    input_size: int = 32,
    num_classes: int = 1000,
    in_channels: int = 4,
    learn_sigma: bool = True,
) -> Shapes:
    """``DiT``."""
    out_channels = in_channels * (2 if learn_sigma else 1)
    shapes = {
        "pos_embed": (1, (input_size // patch_size) ** 2, hidden_size),
        "y_embedder.embedding_table.weight": (num_classes + 1, hidden_size),
        **dense("x_embedder.proj", hidden_size, in_channels, patch_size, patch_size),
        **two_layers("t_embedder.mlp", "0", "2", 256, hidden_size),
        **dense("final_layer.linear", patch_size**2 * out_channels, hidden_size),
        **dense("final_layer.adaLN_modulation.1", 2 * hidden_size, hidden_size),
    }
    for layer in range(depth):
        shapes |= {
            **dense(f"blocks.{layer}.attn.qkv", 3 * hidden_size, hidden_size),
            **dense(f"blocks.{layer}.attn.proj", hidden_size, hidden_size),
            **dense(f"blocks.{layer}.mlp.fc1", 4 * hidden_size, hidden_size),
            **dense(f"blocks.{layer}.mlp.fc2", hidden_size, 4 * hidden_size),
            **dense(f"blocks.{layer}.adaLN_modulation.1", 6 * hidden_size, hidden_size),
        }
    return shapes


def mmdit(
    *,
    depth: int = 24,
    width: int | None = None,
    pos_embed_max_size: int = 192,
    context_dim: int = 4096,
    adm_in_channels: int = 2048,
    in_channels: int = 16,
    patch_size: int = 2,
    qk_norm: int | None = None,
    dual_attention: Collection[int] = (),
) -> Shapes:
    """``MMDiTX`` of SD3 and SD3.5; `qk_norm` is the width of a head whose queries and keys are normalised."""
    width = 64 * depth if width is None else width

    def attention(name: str, project: bool = True) -> Shapes:
        return {
            **dense(f"{name}.qkv", 3 * width, width),
            **(dense(f"{name}.proj", width, width) if project else {}),
            **({f"{name}.ln_q.weight": (qk_norm,), f"{name}.ln_k.weight": (qk_norm,)} if qk_norm else {}),
        }

    def block(name: str, pre_only: bool = False, dual: bool = False) -> Shapes:
        shapes = attention(f"{name}.attn", not pre_only) | (attention(f"{name}.attn2") if dual else {})
        if not pre_only:
            shapes |= dense(f"{name}.mlp.fc1", 4 * width, width) | dense(f"{name}.mlp.fc2", width, 4 * width)
        parts = 2 if pre_only else 9 if dual else 6
        return shapes | dense(f"{name}.adaLN_modulation.1", parts * width, width)

    shapes = {
        "pos_embed": (1, pos_embed_max_size**2, width),
        **dense("x_embedder.proj", width, in_channels, patch_size, patch_size),
        **two_layers("t_embedder.mlp", "0", "2", 256, width),
        **two_layers("y_embedder.mlp", "0", "2", adm_in_channels, width),
        **dense("context_embedder", width, context_dim),
        **dense("final_layer.linear", patch_size**2 * in_channels, width),
        **dense("final_layer.adaLN_modulation.1", 2 * width, width),
    }
    for layer in range(depth):
        shapes |= block(f"joint_blocks.{layer}.context_block", pre_only=layer == depth - 1)
        shapes |= block(f"joint_blocks.{layer}.x_block", dual=layer in dual_attention)
    return shapes


def flux(
    *,
    hidden_size: int = 3072,
    head_dim: int = 128,
    depth: int = 19,
    depth_single_blocks: int = 38,
    in_channels: int = 64,
    out_channels: int = 64,
    context_in_dim: int = 4096,
    vec_in_dim: int = 768,
    guidance_embed: bool = True,
) -> Shapes:
    """``Flux``."""

    def embedder(name: str, into: int) -> Shapes:
        return two_layers(name, "in_layer", "out_layer", into, hidden_size)

    def scales(name: str) -> Shapes:
        return {f"{name}.query_norm.scale": (head_dim,), f"{name}.key_norm.scale": (head_dim,)}

    shapes = {
        **dense("img_in", hidden_size, in_channels),
        **dense("txt_in", hidden_size, context_in_dim),
        **embedder("time_in", 256),
        **embedder("vector_in", vec_in_dim),
        **(embedder("guidance_in", 256) if guidance_embed else {}),
        **dense("final_layer.linear", out_channels, hidden_size),
        **dense("final_layer.adaLN_modulation.1", 2 * hidden_size, hidden_size),
    }
    for layer in range(depth):
        for stream in ("img", "txt"):
            name = f"double_blocks.{layer}.{stream}"
            shapes |= {
                **dense(f"{name}_mod.lin", 6 * hidden_size, hidden_size),
                **dense(f"{name}_attn.qkv", 3 * hidden_size, hidden_size),
                **scales(f"{name}_attn.norm"),
                **dense(f"{name}_attn.proj", hidden_size, hidden_size),
                **dense(f"{name}_mlp.0", 4 * hidden_size, hidden_size),
                **dense(f"{name}_mlp.2", hidden_size, 4 * hidden_size),
            }
    for layer in range(depth_single_blocks):
        name = f"single_blocks.{layer}"
        shapes |= {
            **dense(f"{name}.linear1", 7 * hidden_size, hidden_size),
            **dense(f"{name}.linear2", hidden_size, 5 * hidden_size),
            **scales(f"{name}.norm"),
            **dense(f"{name}.modulation.lin", 3 * hidden_size, hidden_size),
        }
    return shapes
