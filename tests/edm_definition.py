"""The networks of EDM and EDM2 in plain PyTorch, from a state_dict and the papers' formulas, for any floating dtype."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Weights = Mapping[str, Tensor]


def defined(model: nn.Module, definition: Callable[..., Tensor]) -> nn.Module:
    """A copy of the model that computes ``definition(weights, config, ...)`` with its weights."""
    twin = copy.deepcopy(model)

    def forward(*inputs: Any, **named: Any) -> Tensor:
        return definition(dict(twin.named_parameters()) | dict(twin.named_buffers()), twin.config, *inputs, **named)

    twin.forward = forward
    return twin


def below(weights: Weights, prefix: str) -> Weights:
    """The weights of a submodule, under their names in it."""
    return {name.removeprefix(f"{prefix}."): w for name, w in weights.items() if name.startswith(f"{prefix}.")}


def halving(size: int, taps: Sequence[float]) -> Tensor:
    """(size / 2, size): each row is the filter, around two pixels, with zeros beyond the border."""
    matrix = torch.zeros(size // 2, size, dtype=torch.float64)
    for row in range(size // 2):
        for index, tap in enumerate(taps):
            column = 2 * row + index - (len(taps) // 2 - 1)
            if 0 <= column < size:
                matrix[row, column] += tap / sum(taps)
    return matrix


def moved(x: Tensor, kind: str, taps: Sequence[float]) -> Tensor:
    """To half the resolution for "down"; for "up" to the double, by the adjoint, which keeps constants."""
    if kind not in ("down", "up"):
        return x
    height, width = x.shape[2:]
    if kind == "down":
        rows, columns = halving(height, taps), halving(width, taps)
    else:
        rows, columns = 2 * halving(2 * height, taps).T, 2 * halving(2 * width, taps).T
    return torch.einsum("ih,nchw,jw->ncij", rows.to(x.dtype), x, columns.to(x.dtype))


def conv(weights: Weights, name: str, x: Tensor) -> Tensor:
    weight = weights[f"{name}.weight"]
    return F.conv2d(x, weight, weights.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def group_norm(weights: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    channels = x.shape[1]
    groups = x.unflatten(1, (min(32, channels // 4), -1)).flatten(2)
    variance, mean = torch.var_mean(groups, dim=2, correction=0, keepdim=True)
    normal = ((groups - mean) / torch.sqrt(variance + eps)).reshape(x.shape)
    weight, bias = (weights[f"{name}.{part}"].view(-1, 1, 1) for part in ("weight", "bias"))
    return normal * weight + bias


def attention(qkv: Tensor, heads: int, normal: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """qkv (N, 3 C, H, W), whose channel 3 * (head * d + c) + i is channel c of query, key or value i of a head."""
    channels = qkv.shape[1] // 3
    width = channels // heads
    results = []
    for head in range(heads):
        first = 3 * head * width
        query, key, value = (normal(qkv[:, first + i : first + 3 * width : 3].flatten(2)) for i in range(3))
        weights = torch.softmax(query.transpose(1, 2) @ key / math.sqrt(width), dim=2)
        results.append(value @ weights.transpose(1, 2))
    return torch.cat(results, dim=1).unflatten(2, qkv.shape[2:])


def edm_block(weights: Weights, x: Tensor, emb: Tensor, kind: str, config: Any, *, song: bool) -> Tensor:
    eps, scale = (1e-6, math.sqrt(0.5)) if song else (1e-5, 1.0)
    taps = config.resample_filter if song else (1, 1)
    h = conv(weights, "conv0", moved(F.silu(group_norm(weights, "norm0", x, eps)), kind, taps))
    condition = linear(weights, "affine", emb)[:, :, None, None]
    if song:
        h = F.silu(group_norm(weights, "norm1", h + condition, eps))
    else:
        channels = h.shape[1]
        h = F.silu(condition[:, channels:] + group_norm(weights, "norm1", h, eps) * (condition[:, :channels] + 1))
    x = moved(x, kind, taps)
    x = scale * (conv(weights, "conv1", h) + (conv(weights, "skip", x) if "skip.weight" in weights else x))
    if "qkv.weight" in weights:
        qkv = conv(weights, "qkv", group_norm(weights, "norm2", x, eps))
        x = scale * (x + conv(weights, "proj", attention(qkv, 1 if song else x.shape[1] // 64)))
    return x


def waves(noise: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    angle = noise[:, None].double() * frequencies.double()
    return angle.sin(), angle.cos()


def song_unet(
    weights: Weights,
    config: Any,
    x: Tensor,
    noise_labels: Tensor,
    class_labels: Tensor | None = None,
    augment_labels: Tensor | None = None,
) -> Tensor:
    half = weights["map_layer0.weight"].shape[1] // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / (half - 1))
    if config.embedding_type == "fourier":
        frequencies = 2 * math.pi * weights["map_noise.freqs"].double()
    emb = torch.cat(waves(noise_labels, frequencies), dim=1).to(x.dtype)
    if class_labels is not None:
        emb = emb + linear(weights, "map_label", class_labels * math.sqrt(config.label_dim))
    if augment_labels is not None:
        emb = emb + linear(weights, "map_augment", augment_labels)
    emb = F.silu(linear(weights, "map_layer1", F.silu(linear(weights, "map_layer0", emb))))

    taps, picture, result = config.resample_filter, x, None

    def block(name: str, x: Tensor) -> Tensor:
        nonlocal picture, result
        level, kind = name.split("_")
        x = edm_block(below(weights, name), x, emb, kind, config, song=True)
        if kind == "down" and config.encoder_type == "skip":
            picture = moved(picture, "down", taps)
            x = x + conv(weights, f"{level}_aux_skip", picture)
        elif kind == "down" and config.encoder_type == "residual":
            # The filter comes last: it sees what the convolution makes of the border, not zeros.
            wide = conv(weights, f"{level}_aux_residual", F.pad(picture, (4, 4, 4, 4)))
            x = picture = (x + moved(wide, "down", taps)[:, :, 2:-2, 2:-2]) / math.sqrt(2)
        elif level.startswith("dec.") and kind == f"block{config.num_blocks}" and f"{level}_aux_conv.weight" in weights:
            y = conv(weights, f"{level}_aux_conv", F.silu(group_norm(weights, f"{level}_aux_norm", x, 1e-6)))
            result = y if result is None else y + moved(result, "up", taps)
        return x

    u_net(config, x, lambda name, x: conv(weights, name, x), block, lambda x, skip: torch.cat((x, skip), dim=1))
    assert result is not None
    return result


def dhariwal_unet(
    weights: Weights,
    config: Any,
    x: Tensor,
    noise_labels: Tensor,
    class_labels: Tensor | None = None,
    augment_labels: Tensor | None = None,
) -> Tensor:
    half = weights["map_layer0.weight"].shape[1] // 2
    sines, cosines = waves(noise_labels, 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half))
    emb = torch.cat((cosines, sines), dim=1).to(x.dtype)
    if augment_labels is not None:
        emb = emb + linear(weights, "map_augment", augment_labels)
    emb = linear(weights, "map_layer1", F.silu(linear(weights, "map_layer0", emb)))
    if class_labels is not None:
        emb = emb + linear(weights, "map_label", class_labels)
    emb = F.silu(emb)

    def block(name: str, x: Tensor) -> Tensor:
        return edm_block(below(weights, name), x, emb, name.rpartition("_")[2], config, song=False)

    x = u_net(config, x, lambda name, x: conv(weights, name, x), block, lambda x, skip: torch.cat((x, skip), dim=1))
    return conv(weights, "out_conv", F.silu(group_norm(weights, "out_norm", x, 1e-5)))


def u_net(config: Any, x: Tensor, stem: Callable, block: Callable, join: Callable) -> Tensor:
    """Down and up again, without the output layer."""
    skips = []
    depths = range(len(config.channel_mult))
    for depth in depths:
        name = "enc.{0}x{0}".format(config.img_resolution >> depth)
        x = stem(f"{name}_conv", x) if depth == 0 else block(f"{name}_down", x)
        skips.append(x)
        for index in range(config.num_blocks):
            x = block(f"{name}_block{index}", x)
            skips.append(x)
    for depth in reversed(depths):
        name = "dec.{0}x{0}".format(config.img_resolution >> depth)
        for first in ("in0", "in1") if depth == depths[-1] else ("up",):
            x = block(f"{name}_{first}", x)
        for index in range(config.num_blocks + 1):
            x = block(f"{name}_block{index}", join(x, skips.pop()))
    assert not skips
    return x


def unit(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Of unit magnitude over `dims`."""
    return x / (x.square().mean(dim=tuple(dims), keepdim=True).sqrt() + 1e-4)


def mp_silu(x: Tensor) -> Tensor:
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    of_a, of_b = a.shape[1], b.shape[1]
    parts = ((1 - t) / math.sqrt(of_a) * a, t / math.sqrt(of_b) * b)
    return math.sqrt((of_a + of_b) / ((1 - t) ** 2 + t**2)) * torch.cat(parts, dim=1)


def mp_layer(weights: Weights, name: str, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
    weight = weights[f"{name}.weight"]
    weight = gain * unit(weight, range(1, weight.dim())) / math.sqrt(weight[0].numel())
    return F.linear(x, weight) if weight.dim() == 2 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)


def edm2_block(weights: Weights, x: Tensor, emb: Tensor, name: str, config: Any) -> Tensor:
    weights, is_encoder = below(weights, name), name.startswith("enc.")

    def project(x: Tensor) -> Tensor:
        return mp_layer(weights, "conv_skip", x) if "conv_skip.weight" in weights else x

    x = moved(x, name.rpartition("_")[2], config.resample_filter)
    if is_encoder:
        x = unit(project(x), [1])
    y = mp_layer(weights, "conv_res0", mp_silu(x))
    scale = mp_layer(weights, "emb_linear", emb, gain=weights["emb_gain"]) + 1
    y = mp_layer(weights, "conv_res1", mp_silu(y * scale[:, :, None, None]))
    x = mp_sum(x if is_encoder else project(x), y, config.res_balance)
    if "attn_qkv.weight" in weights:
        heads = x.shape[1] // config.channels_per_head
        y = attention(mp_layer(weights, "attn_qkv", x), heads, lambda x: unit(x, [1]))
        x = mp_sum(x, mp_layer(weights, "attn_proj", y), config.attn_balance)
    return x.clamp(-config.clip_act, config.clip_act)


def edm2_unet(
    weights: Weights, config: Any, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None
) -> Tensor:
    angle = noise_labels[:, None].double() * weights["emb_fourier.freqs"].double()
    features = math.sqrt(2) * torch.cos(angle + weights["emb_fourier.phases"].double())
    emb = mp_layer(weights, "emb_noise", features.to(x.dtype))
    if class_labels is not None:
        of_label = mp_layer(weights, "emb_label", class_labels * math.sqrt(config.label_dim))
        emb = mp_sum(emb, of_label, config.label_balance)
    emb = mp_silu(emb)
    x = torch.cat((x, torch.ones_like(x[:, :1])), dim=1)
    x = u_net(
        config,
        x,
        lambda name, x: mp_layer(weights, name, x),
        lambda name, x: edm2_block(weights, x, emb, name, config),
        lambda x, skip: mp_cat(x, skip, config.concat_balance),
    )
    return mp_layer(weights, "out_conv", x, gain=weights["out_gain"])
