"""The networks of EDM (arXiv:2206.00364): DDPM++, NCSN++ and ADM, with the names and state_dict keys of NVlabs/edm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff import ops
from fastdiff.models import config_checks
from fastdiff.models.edm_blocks import BlockSettings, FourierEmbedding, Resample, ResampledConv2d, UNetBlock, group_norm
from fastdiff.models.edm_layout import (
    Place,
    check_filter,
    check_sample,
    check_u_net,
    decoder_levels,
    dropped,
    encoder_levels,
    labels_of_each_sample,
    noise_of_each_sample,
)
from fastdiff.models.pretrained import PretrainedModel
from fastdiff.nn import Linear

_SONG_EPS, _ADM_EPS = 1e-6, 1e-5  # of the group norms


@dataclass(frozen=True)
class _EDMUNetConfig:
    """The keys of both networks."""

    img_resolution: int
    in_channels: int
    out_channels: int
    label_dim: int = 0
    augment_dim: int = 0
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.10
    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_u_net(self)
        config_checks.require_positive(self, "in_channels", "out_channels", "channel_mult_emb")
        config_checks.require_at_least(0, self, "augment_dim")
        config_checks.require_between(0, 1, self, "label_dropout")
        # Four channels a group at least, and a sine for each cosine.
        if self.model_channels % 4:
            raise ValueError(f"model_channels must be a multiple of 4, got {self.model_channels}")


@dataclass(frozen=True)
class SongUNetConfig(_EDMUNetConfig):
    """The configuration of :class:`SongUNet`: names, defaults and meanings of NVlabs/edm. The defaults are of DDPM++.

    Args:
        img_resolution: height and width of the pictures; the keys of the weights and `attn_resolutions` go by it.
        in_channels, out_channels: of the picture.
        label_dim: number of classes; 0 is none.
        augment_dim: width of the labels that say how a picture was augmented (section 5); 0 is none.
        model_channels, channel_mult: channels of a level are their product.
        channel_mult_emb: width of the embedding, in model_channels.
        num_blocks: residual blocks of a level.
        attn_resolutions: the resolutions with self-attention.
        dropout: within the blocks.
        label_dropout: part of the labels that training takes away, for classifier-free guidance.
        embedding_type: of the noise level, "positional" or "fourier".
        channel_mult_noise: width of that, in model_channels.
        encoder_type: "standard", or with the picture at every level: added ("skip") or in a branch of its own
            ("residual").
        decoder_type: "standard", or a sum of pictures of every level ("skip").
        resample_filter: (1, 1), or (1, 3, 3, 1) as in NCSN++.

    Raises:
        ValueError: a value that is not supported or does not fit the others, with its key and what is allowed.
    """

    embedding_type: str = "positional"
    channel_mult_noise: int = 1
    encoder_type: str = "standard"
    decoder_type: str = "standard"
    resample_filter: tuple[float, ...] = (1, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_filter(self)
        config_checks.require_positive(self, "channel_mult_noise")
        config_checks.require_choice(
            self,
            embedding_type=("positional", "fourier"),
            encoder_type=("standard", "skip", "residual"),
            decoder_type=("standard", "skip"),
        )


@dataclass(frozen=True)
class DhariwalUNetConfig(_EDMUNetConfig):
    """The configuration of :class:`DhariwalUNet`: names, defaults and meanings of NVlabs/edm.

    The keys mean what they mean in :class:`SongUNetConfig`. The defaults are those of ImageNet at 64 x 64.

    Raises:
        ValueError: a value that is not supported or does not fit the others, with its key and what is allowed.
    """

    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (32, 16, 8)


class _EDMUNet(PretrainedModel):
    """What both networks have: labels, the perceptron of the embedding, blocks on the way down and up."""

    config: Any

    def __init__(
        self, config: Any, settings: BlockSettings, *, stem_channels: int, noise_channels: int, attend_last: bool
    ) -> None:
        super().__init__()
        self.config = config
        self.map_augment = Linear(config.augment_dim, noise_channels, bias=False) if config.augment_dim else None
        self.map_layer0 = Linear(noise_channels, settings.emb_channels)
        self.map_layer1 = Linear(settings.emb_channels, settings.emb_channels)
        self.encoder = encoder_levels(config, config.in_channels, stem_channels)
        self.decoder = decoder_levels(config, self.encoder, attend_last=attend_last)
        stem, *places = (place for level in self.encoder for place in level.places)
        self.enc = nn.ModuleDict({stem.name: ResampledConv2d(stem.in_channels, stem.out_channels, 3)})
        self.enc.update({place.name: UNetBlock(place, settings) for place in places})
        places = [place for level in self.decoder for place in level.places]
        self.dec = nn.ModuleDict({place.name: UNetBlock(place, settings) for place in places})

    def _noise(self, x: Tensor, noise_labels: Tensor | float) -> Tensor:
        """(N,), after a check of `x`."""
        check_sample(x, self.config.in_channels, self.encoder)
        return noise_of_each_sample("noise_labels", noise_labels, x)

    def _labels(self, x: Tensor, class_labels: Tensor | None) -> Tensor | None:
        """(N, label_dim) in the dtype of the weights, some of them dropped in training; None of a model without."""
        config, dtype = self.config, self.map_layer0.weight.dtype
        labels = labels_of_each_sample("class_labels", class_labels, config.label_dim, x, dtype)
        if labels is not None and self.training and config.label_dropout:
            labels = dropped(labels, config.label_dropout)
        return labels

    def _augmented(self, emb: Tensor, x: Tensor, augment_labels: Tensor | None) -> Tensor:
        labels = labels_of_each_sample("augment_labels", augment_labels, self.config.augment_dim, x, emb.dtype)
        return emb if self.map_augment is None else emb + self.map_augment(labels)

    def _down(self, place: Place, x: Tensor, emb: Tensor) -> Tensor:
        block = self.enc[place.name]
        return block(x) if place.kind == "conv" else self.run_block(block, x, emb)

    def _up(self, place: Place, x: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
        if place.kind == "block":
            x = torch.cat((x, skips.pop()), dim=1)
        return self.run_block(self.dec[place.name], x, emb)


class SongUNet(_EDMUNet):
    """DDPM++ and NCSN++ of score-based diffusion (arXiv:2011.13456) as EDM has them (arXiv:2206.00364, table 7).

    Names of the constructor and ``state_dict`` keys are those of NVlabs/edm, so its weights load. This is the bare F of
    a preconditioning, such as :class:`EDMPrecond`, whose ``model`` it is.

    The network computes in the dtype of `x`: weights in float32 serve a pass in bfloat16, too.

    >>> model = SongUNet(img_resolution=16, in_channels=3, out_channels=3, model_channels=32, num_blocks=1)
    >>> model(torch.randn(2, 3, 16, 16), torch.tensor([-0.3, 1.2])).shape
    torch.Size([2, 3, 16, 16])

    Args:
        **values: the fields of :class:`SongUNetConfig`.
    """

    config_class = SongUNetConfig
    config: SongUNetConfig

    def __init__(self, **values: Any) -> None:
        config = self.parse_config(values)
        noise_channels = config.model_channels * config.channel_mult_noise
        settings = BlockSettings(
            emb_channels=config.model_channels * config.channel_mult_emb,
            dropout=config.dropout,
            eps=_SONG_EPS,
            skip_scale=math.sqrt(0.5),
            adaptive_scale=False,
            resample_filter=config.resample_filter,
            resample_proj=True,
        )
        super().__init__(
            config, settings, stem_channels=config.model_channels, noise_channels=noise_channels, attend_last=True
        )
        self.map_noise = FourierEmbedding(noise_channels) if config.embedding_type == "fourier" else None
        self.map_label = Linear(config.label_dim, noise_channels) if config.label_dim else None
        self._add_pictures_in()
        self._add_pictures_out()
        self._initialise()

    def _add_pictures_in(self) -> None:
        """The layers that bring the picture to every level of the way down."""
        config, channels, taps = self.config, self.config.in_channels, self.config.resample_filter
        for name, (down, *_) in self.encoder[1:]:
            if config.encoder_type == "skip":
                self.enc[f"{name}_aux_down"] = Resample("down", taps)
                self.enc[f"{name}_aux_skip"] = ResampledConv2d(channels, down.out_channels, 1)
            elif config.encoder_type == "residual":
                self.enc[f"{name}_aux_residual"] = ResampledConv2d(
                    channels, down.out_channels, 3, mode="down", taps=taps, filter_last=True
                )
                channels = down.out_channels

    def _add_pictures_out(self) -> None:
        """The layers that make a picture of the highest level of the way up, or of every level."""
        config = self.config
        levels = self.decoder if config.decoder_type == "skip" else self.decoder[-1:]
        for name, places in levels:
            if name != self.decoder[0].name and config.decoder_type == "skip":
                self.dec[f"{name}_aux_up"] = Resample("up", config.resample_filter)
            channels = places[-1].out_channels
            self.dec[f"{name}_aux_norm"] = group_norm(channels, _SONG_EPS)
            self.dec[f"{name}_aux_conv"] = ResampledConv2d(channels, config.out_channels, 3)

    def _initialise(self) -> None:
        scales = {"conv1": 1e-5, "proj": 1e-5, "qkv": math.sqrt(0.2)}
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                scale = 1e-5 if name.endswith("aux_conv") else scales.get(name.rpartition(".")[2], 1.0)
                nn.init.xavier_uniform_(module.weight, gain=scale)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """F(x; c_noise).

        Args:
            x: (N, in_channels, H, W), scaled by c_in; H and W multiples of 2 ** (levels - 1). Contiguous or
                channels-last.
            noise_labels: c_noise, a number or a tensor of no dimension or (N,); kept in float32 or float64.
            class_labels: (N, label_dim), one-hot; None is no class, which is a row of zeros.
            augment_labels: (N, augment_dim); None is a picture as it is, which is a row of zeros.

        Returns:
            (N, out_channels, H, W), in the dtype and layout of `x`.

        Raises:
            ValueError: a shape that does not fit, or labels of which the configuration knows nothing.
        """
        emb = self._embed(x, self._noise(x, noise_labels), class_labels, augment_labels)
        skips = []
        picture = x
        for name, places in self.encoder:
            for place in places:
                x = self._down(place, x, emb)
                if place.kind == "down":
                    x, picture = self._with_picture(name, x, picture)
                skips.append(x)
        result: Tensor | None = None
        for name, places in self.decoder:
            for place in places:
                x = self._up(place, x, skips, emb)
            if f"{name}_aux_conv" in self.dec:
                y = self.dec[f"{name}_aux_conv"](self.dec[f"{name}_aux_norm"](x))
                result = y if result is None else self.dec[f"{name}_aux_up"](result) + y
        assert result is not None  # the highest level makes a picture in any case
        return result

    def _embed(self, x: Tensor, noise: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """(N, emb_channels), through its SiLU, in the dtype of the weights."""
        weight = self.map_layer0.weight
        if self.map_noise is None:
            emb = ops.timestep_embedding(noise, weight.shape[1], dtype=weight.dtype)
        else:
            emb = self.map_noise(noise).to(weight.dtype)
        labels = self._labels(x, class_labels)
        if self.map_label is not None and labels is not None:
            emb = emb + self.map_label(labels * math.sqrt(self.config.label_dim))
        emb = self._augmented(emb, x, augment_labels)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def _with_picture(self, name: str, x: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
        """A level's map with the picture added, and the picture for the next level."""
        if self.config.encoder_type == "skip":
            picture = self.enc[f"{name}_aux_down"](picture)
            x = x + self.enc[f"{name}_aux_skip"](picture)
        elif self.config.encoder_type == "residual":
            x = picture = (x + self.enc[f"{name}_aux_residual"](picture)) * math.sqrt(0.5)
        return x, picture


class DhariwalUNet(_EDMUNet):
    """ADM (arXiv:2105.05233) as EDM has it (arXiv:2206.00364, table 7).

    Names of the constructor and ``state_dict`` keys are those of NVlabs/edm, so its weights load. This is the bare F of
    a preconditioning, such as :class:`EDMPrecond`, whose ``model`` it is. Heads of attention have 64 channels.

    The network computes in the dtype of `x`: weights in float32 serve a pass in bfloat16, too.

    >>> model = DhariwalUNet(img_resolution=16, in_channels=3, out_channels=3, model_channels=64, channel_mult=(1, 1),
    ...                      num_blocks=1, label_dim=10)
    >>> labels = torch.nn.functional.one_hot(torch.tensor([3, 7]), 10)
    >>> model(torch.randn(2, 3, 16, 16), torch.tensor([-0.3, 1.2]), labels).shape
    torch.Size([2, 3, 16, 16])

    Args:
        **values: the fields of :class:`DhariwalUNetConfig`.
    """

    config_class = DhariwalUNetConfig
    config: DhariwalUNetConfig

    def __init__(self, **values: Any) -> None:
        config = self.parse_config(values)
        settings = BlockSettings(
            emb_channels=config.model_channels * config.channel_mult_emb,
            dropout=config.dropout,
            eps=_ADM_EPS,
            channels_per_head=64,
        )
        super().__init__(
            config,
            settings,
            stem_channels=config.model_channels * config.channel_mult[0],
            noise_channels=config.model_channels,
            attend_last=False,
        )
        self.map_label = Linear(config.label_dim, settings.emb_channels, bias=False) if config.label_dim else None
        channels = config.model_channels * config.channel_mult[0]
        self.out_norm = group_norm(channels, _ADM_EPS)
        self.out_conv = ResampledConv2d(channels, config.out_channels, 3)
        self._initialise()

    def _initialise(self) -> None:
        """Otherwise as PyTorch: uniform, by the number of inputs."""
        for name, parameter in self.named_parameters():
            if name.startswith(("out_conv.", "map_augment.")) or name.split(".")[-2] in ("conv1", "proj"):
                nn.init.zeros_(parameter)
        if self.map_label is not None:
            nn.init.normal_(self.map_label.weight)

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """F(x; c_noise), with the arguments, result and errors of :meth:`SongUNet.forward`."""
        emb = self._embed(x, self._noise(x, noise_labels), class_labels, augment_labels)
        skips = []
        for _, places in self.encoder:
            for place in places:
                x = self._down(place, x, emb)
                skips.append(x)
        for _, places in self.decoder:
            for place in places:
                x = self._up(place, x, skips, emb)
        return self.out_conv(self.out_norm(x))

    def _embed(self, x: Tensor, noise: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """(N, emb_channels), through its SiLU, in the dtype of the weights."""
        weight = self.map_layer0.weight
        emb = ops.timestep_embedding(
            noise, weight.shape[1], flip_sin_to_cos=True, downscale_freq_shift=0, dtype=weight.dtype
        )
        emb = self.map_layer1(F.silu(self.map_layer0(self._augmented(emb, x, augment_labels))))
        labels = self._labels(x, class_labels)
        if self.map_label is not None:
            emb = emb + self.map_label(labels)
        return F.silu(emb)
