"""The preconditionings of EDM (arXiv:2206.00364, table 1) and EDM2 around their networks."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.models import config_checks
from fastdiff.models.edm2 import EDM2UNet, MPConv, MPFourier
from fastdiff.models.edm_layout import noise_of_each_sample
from fastdiff.models.edm_unets import DhariwalUNet, SongUNet
from fastdiff.models.exact_buffers import ExactBuffers
from fastdiff.models.input_checks import require_feature_map
from fastdiff.models.pretrained import PretrainedModel

_NETWORKS: dict[str, type[PretrainedModel]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}


class Coefficients(NamedTuple):
    """``D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)``, each (N,) (arXiv:2206.00364, equation 7)."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def edm_coefficients(sigma: Tensor, sigma_data: float) -> Coefficients:
    """Input and target of the network have unit variance (arXiv:2206.00364, appendix B.6)."""
    deviation = torch.sqrt(sigma**2 + sigma_data**2)
    return Coefficients(
        c_skip=sigma_data**2 / deviation**2,
        c_out=sigma * sigma_data / deviation,
        c_in=1 / deviation,
        c_noise=sigma.log() / 4,
    )


@dataclass(frozen=True)
class _PrecondConfig(ABC):
    """The keys that all preconditionings have.

    Args:
        img_resolution, img_channels, label_dim: those of the network.
        use_fp16: run the network in float16, but for a CPU, whatever the dtype of its weights.
        model_kwargs: all other keys of the network's configuration. They may as well stand beside those of the
            preconditioning, as NVlabs has them.
    """

    img_resolution: int
    img_channels: int
    label_dim: int = 0
    use_fp16: bool = False
    model_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Fills `model_kwargs` up, so that equal networks have equal configurations."""
        if not isinstance(self.model_kwargs, Mapping):
            raise ValueError(f"model_kwargs must map keys to values, got {self.model_kwargs!r}")
        config_checks.require_positive(self, "img_channels")
        given = self.given()
        for key in given.keys() & self.model_kwargs.keys():
            raise ValueError(f"{key} must not be in model_kwargs: the preconditioning sets it")
        values = dataclasses.asdict(self.network_class().parse_config({**given, **self.model_kwargs}))
        object.__setattr__(self, "model_kwargs", {key: value for key, value in values.items() if key not in given})

    @abstractmethod
    def network_class(self) -> type[PretrainedModel]: ...

    @abstractmethod
    def given(self) -> dict[str, Any]:
        """The keys of the network's configuration that the preconditioning sets."""

    def network(self) -> PretrainedModel:
        """A new network."""
        return self.network_class()(**self.given(), **self.model_kwargs)


@dataclass(frozen=True)
class _EDMPrecondConfig(_PrecondConfig):
    model_type: str = "SongUNet"

    def __post_init__(self) -> None:
        config_checks.require_choice(self, model_type=tuple(_NETWORKS))
        super().__post_init__()

    def network_class(self) -> type[PretrainedModel]:
        return _NETWORKS[self.model_type]

    def given(self) -> dict[str, Any]:
        return {
            "img_resolution": self.img_resolution,
            "in_channels": self.img_channels,
            "out_channels": self.img_channels,
            "label_dim": self.label_dim,
        }


class _Precond(PretrainedModel, ABC):
    """A denoiser made of a network."""

    config: Any

    @property
    def network(self) -> PretrainedModel:
        return self.model  # type: ignore[return-value]

    @classmethod
    def parse_config(cls, values: dict[str, Any]) -> Any:
        """The configuration from its keys and, beside them or in "model_kwargs", those of the network."""
        own = {field.name for field in dataclasses.fields(cls.config_class)}
        kept = {key: value for key, value in values.items() if key in own or key.startswith("_")}
        of_network = {key: value for key, value in values.items() if key not in kept}
        model_kwargs = kept.get("model_kwargs", {})
        if isinstance(model_kwargs, Mapping):  # of anything else the configuration complains
            model_kwargs = {**model_kwargs, **of_network}
        return super().parse_config({**kept, "model_kwargs": model_kwargs})

    def enable_gradient_checkpointing(self, enable: bool = True) -> None:
        super().enable_gradient_checkpointing(enable)
        self.network.enable_gradient_checkpointing(enable)

    @abstractmethod
    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Those of the noise levels `sigma` (N,), float32 or float64."""

    def _denoised(
        self, x: Tensor, sigma: Tensor | float, force_fp32: bool, **labels: Tensor | None
    ) -> tuple[Tensor, Coefficients]:
        require_feature_map("x", x, self.config.img_channels)
        _check_sigma(sigma)
        sigma = sigma.flatten() if isinstance(sigma, Tensor) else sigma
        coefficients = self.coefficients(noise_of_each_sample("sigma", sigma, x))
        precision = torch.promote_types(x.dtype, torch.float32)
        c_skip, c_out, c_in = (c.to(precision)[:, None, None, None] for c in coefficients[:3])
        y = self.network((c_in * x).to(self._network_dtype(x, force_fp32)), coefficients.c_noise, **labels)
        return c_skip * x + c_out * y[:, : x.shape[1]].to(precision), coefficients

    def _network_dtype(self, x: Tensor, force_fp32: bool) -> torch.dtype:
        if force_fp32:
            return torch.promote_types(self.dtype, torch.float32)
        return torch.float16 if self.config.use_fp16 and x.device.type != "cpu" else self.dtype


def _check_sigma(sigma: Tensor | float) -> None:
    """Positive, where that can be told without waiting for a device."""
    on_cpu = not isinstance(sigma, Tensor) or sigma.device.type == "cpu"
    if on_cpu and not torch.compiler.is_compiling() and not (torch.as_tensor(sigma) > 0).all():
        raise ValueError(f"sigma must be positive, got {sigma}")


class _EDMPrecond(_Precond):
    """A preconditioning in table 1 of EDM."""

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self.config = self.parse_config(values)
        self.model = self.config.network()

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        force_fp32: bool = False,
        *,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """D(x; sigma), the clean picture that is expected.

        Args:
            x: (N, img_channels, H, W), clean picture + sigma * noise.
            sigma: a positive number, or a tensor of no dimension, (N,) or (N, 1, 1, 1); kept in float32 or float64.
            class_labels: (N, label_dim), one-hot; None is no class.
            force_fp32: run the network in float32 in any case.
            augment_labels: (N, augment_dim); None is a picture as it is.

        Returns:
            (N, img_channels, H, W) in float32, or in float64 as `x`.

        Raises:
            ValueError: a shape that does not fit, labels of which the configuration knows nothing, or, where it is a
                number or on a CPU, a `sigma` that is not positive.
        """
        return self._denoised(x, sigma, force_fp32, class_labels=class_labels, augment_labels=augment_labels)[0]


@dataclass(frozen=True)
class VPPrecondConfig(_EDMPrecondConfig):
    """The configuration of :class:`VPPrecond`: names, defaults and meanings of NVlabs/edm.

    Args:
        beta_d, beta_min: the variance-preserving schedule, ``sigma(t)^2 = exp(beta_d t^2 / 2 + beta_min t) - 1``.
        M: number of timesteps that the network knows.
        epsilon_t: the least time of training.
    """

    beta_d: float = 19.9
    beta_min: float = 0.1
    M: int = 1000
    epsilon_t: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        config_checks.require_positive(self, "M")


class VPPrecond(_EDMPrecond):
    """The variance-preserving preconditioning: F is the noise with its sign changed, told in steps of M.

    Args:
        **values: the fields of :class:`VPPrecondConfig` and of the network's configuration.
    """

    config_class = VPPrecondConfig
    config: VPPrecondConfig

    @property
    def sigma_min(self) -> float:
        return self._sigma(self.config.epsilon_t)

    @property
    def sigma_max(self) -> float:
        return self._sigma(1.0)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        beta_d, beta_min = self.config.beta_d, self.config.beta_min
        exponent = torch.log1p(sigma**2)
        time = 2 * exponent / (beta_min + torch.sqrt(beta_min**2 + 2 * beta_d * exponent))
        return Coefficients(torch.ones_like(sigma), -sigma, torch.rsqrt(sigma**2 + 1), (self.config.M - 1) * time)

    def _sigma(self, time: float) -> float:
        return math.sqrt(math.expm1(0.5 * self.config.beta_d * time**2 + self.config.beta_min * time))


@dataclass(frozen=True)
class VEPrecondConfig(_EDMPrecondConfig):
    """The configuration of :class:`VEPrecond`: names, defaults and meanings of NVlabs/edm.

    Args:
        sigma_min, sigma_max: the noise levels of training.
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0


class VEPrecond(_EDMPrecond):
    """The variance-exploding preconditioning.

    Args:
        **values: the fields of :class:`VEPrecondConfig` and of the network's configuration.
    """

    config_class = VEPrecondConfig
    config: VEPrecondConfig

    def coefficients(self, sigma: Tensor) -> Coefficients:
        return Coefficients(torch.ones_like(sigma), sigma, torch.ones_like(sigma), torch.log(0.5 * sigma))


@dataclass(frozen=True)
class IDDPMPrecondConfig(_EDMPrecondConfig):
    """The configuration of :class:`IDDPMPrecond`: names, defaults and meanings of NVlabs/edm.

    Args:
        C_1: least ratio of neighbouring signal levels.
        C_2: offset of the cosine schedule.
        M: number of timesteps that the network knows.
    """

    C_1: float = 0.001
    C_2: float = 0.008
    M: int = 1000
    model_type: str = "DhariwalUNet"

    def __post_init__(self) -> None:
        super().__post_init__()
        config_checks.require_positive(self, "M")

    def given(self) -> dict[str, Any]:
        # The second half is the variance that iDDPM learns, of which EDM makes no use.
        return {**super().given(), "out_channels": 2 * self.img_channels}

    def levels(self) -> list[float]:
        """u_0 > ... > u_M = 0 (arXiv:2206.00364, appendix C.3)."""

        def alpha_bar(step: int) -> float:
            return math.sin(0.5 * math.pi * step / (self.M * (self.C_2 + 1))) ** 2

        levels = [0.0]
        for step in range(self.M, 0, -1):
            ratio = max(alpha_bar(step - 1) / alpha_bar(step), self.C_1)
            levels.append(math.sqrt((levels[-1] ** 2 + 1) / ratio - 1))
        return levels[::-1]


class IDDPMPrecond(_EDMPrecond, ExactBuffers):
    """The preconditioning of improved DDPM and ADM (arXiv:2102.09672): noise levels are rounded to M of its own.

    NVlabs calls it iDDPMPrecond.

    Args:
        **values: the fields of :class:`IDDPMPrecondConfig` and of the network's configuration.
    """

    config_class = IDDPMPrecondConfig
    config: IDDPMPrecondConfig
    u: Tensor

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        levels = self.config.levels()
        self.register_buffer("u", torch.tensor(levels))
        self.sigma_min, self.sigma_max = levels[self.config.M - 1], levels[0]

    def coefficients(self, sigma: Tensor) -> Coefficients:
        step = self.config.M - 1 - self._nearest(sigma).to(sigma.dtype)
        return Coefficients(torch.ones_like(sigma), -sigma, torch.rsqrt(sigma**2 + 1), step)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The levels of the network that are nearest, of the shape and dtype of `sigma`."""
        return self.u[self._nearest(sigma.flatten())].to(sigma.dtype).reshape(sigma.shape)

    def _nearest(self, sigma: Tensor) -> Tensor:
        return (sigma[:, None] - self.u).abs().argmin(dim=1)


@dataclass(frozen=True)
class EDMPrecondConfig(_EDMPrecondConfig):
    """The configuration of :class:`EDMPrecond`: names, defaults and meanings of NVlabs/edm.

    Args:
        sigma_min, sigma_max: the noise levels that are supported; None is no upper bound.
        sigma_data: deviation of the data.
    """

    sigma_min: float = 0.0
    sigma_max: float | None = None
    sigma_data: float = 0.5
    model_type: str = "DhariwalUNet"

    def __post_init__(self) -> None:
        super().__post_init__()
        config_checks.require_above_zero(self, "sigma_data")
        if self.sigma_max == math.inf:  # which JSON does not know
            object.__setattr__(self, "sigma_max", None)


class EDMPrecond(_EDMPrecond):
    """EDM's own preconditioning (arXiv:2206.00364, section 5): input and target of the network have unit variance.

    ``sample(model, ..., process=VE(0.002, 80.0), prediction="sample")`` draws from it. The network alone,
    ``model.model``, is told to `sample` by ``process=EDM(), prediction="edm"``.

    >>> model = EDMPrecond(img_resolution=16, img_channels=3, model_type="SongUNet", model_channels=32, num_blocks=1)
    >>> model(torch.randn(2, 3, 16, 16), torch.tensor([0.5, 20.0])).shape
    torch.Size([2, 3, 16, 16])

    Args:
        **values: the fields of :class:`EDMPrecondConfig` and of the network's configuration.
    """

    config_class = EDMPrecondConfig
    config: EDMPrecondConfig

    def coefficients(self, sigma: Tensor) -> Coefficients:
        return edm_coefficients(sigma, self.config.sigma_data)


@dataclass(frozen=True)
class EDM2PrecondConfig(_PrecondConfig):
    """The configuration of :class:`EDM2Precond`: names, defaults and meanings of NVlabs/edm2.

    Args:
        sigma_data: deviation of the data.
        logvar_channels: width of the features of the uncertainty.
    """

    use_fp16: bool = True
    sigma_data: float = 0.5
    logvar_channels: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        config_checks.require_above_zero(self, "sigma_data")
        config_checks.require_positive(self, "logvar_channels")

    def network_class(self) -> type[PretrainedModel]:
        return EDM2UNet

    def given(self) -> dict[str, Any]:
        return {"img_resolution": self.img_resolution, "img_channels": self.img_channels, "label_dim": self.label_dim}


class EDM2Precond(_Precond):
    """EDM's preconditioning around :class:`EDM2UNet`, and the uncertainty of a noise level (arXiv:2312.02696).

    Names of the constructor and ``state_dict`` keys are those of the `Precond` of NVlabs/edm2: the network is ``unet``.
    Sampling is that of :class:`EDMPrecond`.

    >>> model = EDM2Precond(img_resolution=16, img_channels=3, model_channels=64, channel_mult=(1, 1), num_blocks=1)
    >>> denoised, logvar = model(torch.randn(2, 3, 16, 16), torch.tensor([0.5, 20.0]), return_logvar=True)
    >>> denoised.shape, logvar.shape
    (torch.Size([2, 3, 16, 16]), torch.Size([2]))

    Args:
        **values: the fields of :class:`EDM2PrecondConfig` and :class:`EDM2UNetConfig`.
    """

    config_class = EDM2PrecondConfig
    config: EDM2PrecondConfig

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self.config = self.parse_config(values)
        self.unet = self.config.network()
        self.logvar_fourier = MPFourier(self.config.logvar_channels)
        self.logvar_linear = MPConv(self.config.logvar_channels, 1)

    @property
    def network(self) -> PretrainedModel:
        return self.unet

    def coefficients(self, sigma: Tensor) -> Coefficients:
        return edm_coefficients(sigma, self.config.sigma_data)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        force_fp32: bool = False,
        return_logvar: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """D(x; sigma), the clean picture that is expected, and how uncertain it is.

        Args:
            x: (N, img_channels, H, W), clean picture + sigma * noise.
            sigma: a positive number, or a tensor of no dimension, (N,) or (N, 1, 1, 1); kept in float32 or float64.
            class_labels: (N, label_dim), one-hot; None is no class.
            force_fp32: run the network in float32 in any case.
            return_logvar: return u(sigma) of equation 21, too, for :func:`fastdiff.diffusion.learned_uncertainty`.

        Returns:
            (N, img_channels, H, W) in float32, or in float64 as `x`; with `return_logvar` that and (N,).

        Raises:
            ValueError: a shape that does not fit, labels given to a model without, or, where it is a number or on a
                CPU, a `sigma` that is not positive.
        """
        denoised, coefficients = self._denoised(x, sigma, force_fp32, class_labels=class_labels)
        if not return_logvar:
            return denoised
        if self.training:
            self.logvar_linear.normalize_weight_()
        features = self.logvar_fourier(coefficients.c_noise).to(denoised.dtype)
        return denoised, self.logvar_linear(features).squeeze(1)
