"""The magnitude-preserving network of EDM2 (arXiv:2312.02696), with the names and state_dict keys of NVlabs/edm2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff.models import config_checks
from fastdiff.models.edm_blocks import attend_pixels
from fastdiff.models.edm_layout import (
    Place,
    check_filter,
    check_heads,
    check_sample,
    check_u_net,
    decoder_levels,
    encoder_levels,
    labels_of_each_sample,
    noise_of_each_sample,
)
from fastdiff.models.exact_buffers import ExactBuffers
from fastdiff.models.pretrained import PretrainedModel
from fastdiff.models.resampling import resample

_EPS = 1e-4
_SILU_MAGNITUDE = 0.596  # root mean square of SiLU of a standard normal number


def normalize(x: Tensor, dim: int) -> Tensor:
    """`x` by its magnitude over `dim`."""
    return x / _magnitude(x, (dim,)).to(x.dtype)


def _magnitude(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The root mean square over `dims`, which stay with the size 1, and a little more; in float32 or wider."""
    count = math.prod([x.shape[dim] for dim in dims])
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return norm / math.sqrt(count) + _EPS


def mp_silu(x: Tensor) -> Tensor:
    """SiLU of the magnitude of its input (equation 81)."""
    return F.silu(x) / _SILU_MAGNITUDE


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """``((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)`` (equation 88)."""
    length = math.hypot(1 - t, t)
    return torch.add(a * ((1 - t) / length), b, alpha=t / length)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Both along the channels, with parts 1 - t and t in what follows, whatever their widths (equation 103)."""
    channels_a, channels_b = a.shape[1], b.shape[1]
    scale = math.sqrt(channels_a + channels_b) / math.hypot(1 - t, t)
    return torch.cat((a * (scale * (1 - t) / math.sqrt(channels_a)), b * (scale * t / math.sqrt(channels_b))), dim=1)


class MPFourier(ExactBuffers):
    """Cosines of a noise level at fixed random frequencies and phases, of unit magnitude (equation 75)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, noise: Tensor) -> Tensor:
        """(N,) -> (N, channels) float64."""
        return math.sqrt(2) * torch.cos(noise.double()[:, None] * self.freqs.double() + self.phases.double())


class MPConv(nn.Module):
    """A convolution, or with an empty `kernel` a linear layer, whose filters are normalised (equation 47).

    It computes in the dtype of its input; the norm is taken in float32 or wider.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int] = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        fan_in = self.weight[0].numel()
        weight = self._scaled(gain / (math.sqrt(fan_in) * self._magnitudes())).to(x.dtype)
        return F.linear(x, weight) if weight.dim() == 2 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)

    @torch.no_grad()
    def normalize_weight_(self) -> None:
        """Forced weight normalisation (equation 66): it keeps the effective learning rate from falling."""
        self.weight.copy_(self._scaled(1 / self._magnitudes()))

    def _magnitudes(self) -> Tensor:
        """That of each filter, (out_channels, 1, ...)."""
        return _magnitude(self.weight, tuple(range(1, self.weight.dim())))

    def _scaled(self, factor: Tensor) -> Tensor:
        """The weight times a factor for each filter, in the dtype of the factor: one pass over it."""
        return self.weight.to(factor.dtype) * factor


@dataclass(frozen=True)
class EDM2UNetConfig:
    """The configuration of :class:`EDM2UNet`: names, defaults and meanings of NVlabs/edm2. The defaults are of size S.

    Args:
        img_resolution: height and width of the pictures or latents; the keys of the weights and `attn_resolutions` go
            by it.
        img_channels: of those.
        label_dim: number of classes; 0 is none.
        model_channels, channel_mult: channels of a level are their product.
        channel_mult_noise, channel_mult_emb: widths of the embedding of the noise level and of all, in model_channels;
            None is those of the first level and of the widest.
        num_blocks: residual blocks of a level.
        attn_resolutions: the resolutions with self-attention.
        label_balance, concat_balance, res_balance, attn_balance: parts of the class in the embedding, of the skip in a
            concatenation, of the residual branch and of attention in their sums.
        resample_filter: taps along one axis.
        channels_per_head: of attention.
        dropout: within the blocks.
        clip_act: bound of the activations between blocks; None is none.

    Raises:
        ValueError: a value that is not supported or does not fit the others, with its key and what is allowed.
    """

    img_resolution: int
    img_channels: int
    label_dim: int = 0
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    channel_mult_noise: int | None = None
    channel_mult_emb: int | None = None
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (16, 8)
    label_balance: float = 0.5
    concat_balance: float = 0.5
    resample_filter: tuple[float, ...] = (1, 1)
    channels_per_head: int = 64
    dropout: float = 0.0
    res_balance: float = 0.3
    attn_balance: float = 0.3
    clip_act: float | None = 256.0

    def __post_init__(self) -> None:
        check_u_net(self)
        check_filter(self)
        config_checks.require_positive(self, "img_channels", "channels_per_head")
        config_checks.require_positive_or_none(self, "channel_mult_noise", "channel_mult_emb")
        config_checks.require_between(0, 1, self, "label_balance", "concat_balance", "res_balance", "attn_balance")
        if self.clip_act is not None:
            config_checks.require_above_zero(self, "clip_act")

    @property
    def noise_channels(self) -> int:
        mult = self.channel_mult[0] if self.channel_mult_noise is None else self.channel_mult_noise
        return self.model_channels * mult

    @property
    def emb_channels(self) -> int:
        mult = max(self.channel_mult) if self.channel_mult_emb is None else self.channel_mult_emb
        return self.model_channels * mult


class EDM2UNet(PretrainedModel):
    """The network of EDM2, configuration G: activations, weights and updates keep their magnitude (arXiv:2312.02696).

    Names of the constructor and ``state_dict`` keys are those of the `UNet` of NVlabs/edm2, so its weights load. This
    is the bare F of :class:`EDM2Precond`, whose ``unet`` it is.

    In training mode each pass first normalises the weights, in place. Autograd takes that for a change: two passes
    cannot share one backward pass. The network computes in the dtype of `x`: weights in float32 serve a pass in
    bfloat16, too.

    >>> model = EDM2UNet(img_resolution=16, img_channels=3, model_channels=64, channel_mult=(1, 1), num_blocks=1)
    >>> model(torch.randn(2, 3, 16, 16), torch.tensor([-0.3, 1.2])).shape
    torch.Size([2, 3, 16, 16])

    Args:
        **values: the fields of :class:`EDM2UNetConfig`.
    """

    config_class = EDM2UNetConfig
    config: EDM2UNetConfig

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self.config = config = self.parse_config(values)
        stem_channels = config.model_channels * config.channel_mult[0]
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = MPFourier(config.noise_channels)
        self.emb_noise = MPConv(config.noise_channels, config.emb_channels)
        self.emb_label = MPConv(config.label_dim, config.emb_channels) if config.label_dim else None
        # One more channel, of ones: there are no biases.
        self.encoder = encoder_levels(config, config.img_channels + 1, stem_channels)
        self.decoder = decoder_levels(config, self.encoder)
        stem, *places = (place for level in self.encoder for place in level.places)
        self.enc = nn.ModuleDict({stem.name: MPConv(stem.in_channels, stem.out_channels, (3, 3))})
        self.enc.update({place.name: EDM2Block(place, config, is_encoder=True) for place in places})
        places = [place for level in self.decoder for place in level.places]
        self.dec = nn.ModuleDict({place.name: EDM2Block(place, config, is_encoder=False) for place in places})
        self.out_conv = MPConv(stem_channels, config.img_channels, (3, 3))

    def forward(self, x: Tensor, noise_labels: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        """F(x; c_noise).

        Args:
            x: (N, img_channels, H, W), scaled by c_in; H and W multiples of 2 ** (levels - 1). Contiguous or
                channels-last.
            noise_labels: c_noise, a number or a tensor of no dimension or (N,); kept in float32 or float64.
            class_labels: (N, label_dim), one-hot; None is no class, which is a row of zeros.

        Returns:
            (N, img_channels, H, W), in the dtype and layout of `x`.

        Raises:
            ValueError: a shape that does not fit, or labels given to a model without.
        """
        check_sample(x, self.config.img_channels, self.encoder)
        noise = noise_of_each_sample("noise_labels", noise_labels, x)
        if self.training:
            self.normalize_weights_()
        emb = self._embed(x, noise, class_labels)
        x = F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0)
        skips = []
        for _, places in self.encoder:
            for place in places:
                block = self.enc[place.name]
                x = block(x) if place.kind == "conv" else self.run_block(block, x, emb)
                skips.append(x)
        for _, places in self.decoder:
            for place in places:
                if place.kind == "block":
                    x = mp_cat(x, skips.pop(), self.config.concat_balance)
                x = self.run_block(self.dec[place.name], x, emb)
        return self.out_conv(x, gain=self.out_gain)

    def normalize_weights_(self) -> None:
        """Normalise the weights of all layers in place: before the blocks run, which may run twice (checkpointing)."""
        for module in self.modules():
            if isinstance(module, MPConv):
                module.normalize_weight_()

    def _embed(self, x: Tensor, noise: Tensor, class_labels: Tensor | None) -> Tensor:
        """(N, emb_channels), through its SiLU, in the dtype of the weights."""
        config, dtype = self.config, self.emb_noise.weight.dtype
        emb = self.emb_noise(self.emb_fourier(noise).to(dtype))
        labels = labels_of_each_sample("class_labels", class_labels, config.label_dim, x, dtype)
        if self.emb_label is not None and labels is not None:
            # A one-hot row has the magnitude label_dim ** -0.5.
            emb = mp_sum(emb, self.emb_label(labels * math.sqrt(config.label_dim)), config.label_balance)
        return mp_silu(emb)


class EDM2Block(nn.Module):
    """A residual block of the way down or up, with optional self-attention (figure 21)."""

    def __init__(self, place: Place, config: EDM2UNetConfig, *, is_encoder: bool) -> None:
        super().__init__()
        channels = place.out_channels
        self.config = config
        self.mode = place.resample
        self.is_encoder = is_encoder
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(channels if is_encoder else place.in_channels, channels, (3, 3))
        self.emb_linear = MPConv(config.emb_channels, channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv_res1 = MPConv(channels, channels, (3, 3))
        self.conv_skip = None if place.in_channels == channels else MPConv(place.in_channels, channels, (1, 1))
        self.heads = 0
        if place.attention:
            self.heads = check_heads(channels, config.channels_per_head)
            self.attn_qkv = MPConv(channels, 3 * channels, (1, 1))
            self.attn_proj = MPConv(channels, channels, (1, 1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (N, in_channels, H, W), emb (N, emb_channels) -> (N, out_channels, H', W')."""
        x = resample(x, self.mode, self.config.resample_filter)
        if self.is_encoder:
            x = normalize(self._project(x), dim=1)
        scale = (self.emb_linear(emb, gain=self.emb_gain) + 1).to(x.dtype)
        y = self.conv_res0(mp_silu(x))
        y = self.conv_res1(self.dropout(mp_silu(y * scale[:, :, None, None])))
        x = mp_sum(x if self.is_encoder else self._project(x), y, self.config.res_balance)
        if self.heads:
            # The pixel norm of queries and keys makes of their product a cosine.
            y = attend_pixels(self.attn_qkv(x), self.heads, partial(normalize, dim=-2))
            x = mp_sum(x, self.attn_proj(y), self.config.attn_balance)
        bound = self.config.clip_act
        return x if bound is None else x.clamp(-bound, bound)

    def _project(self, x: Tensor) -> Tensor:
        return x if self.conv_skip is None else self.conv_skip(x)
