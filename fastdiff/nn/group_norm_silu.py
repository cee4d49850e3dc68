from __future__ import annotations

from torch import Tensor, nn

from fastdiff import ops
from fastdiff.ops.group_norm_silu import ACTIVATIONS


class GroupNormSiLU(nn.GroupNorm):
    """:class:`torch.nn.GroupNorm` with its activation, time bias and scale/shift fused into one kernel.

    Same constructor and ``state_dict`` as ``torch.nn.GroupNorm``, so it replaces a GroupNorm that is followed by
    a SiLU (``activation="silu"``) or stands alone (``activation="identity"``).

    >>> norm = GroupNormSiLU(32, 320)
    >>> y = norm(torch.randn(2, 320, 8, 8), time_bias=torch.randn(2, 320))
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device=None,
        dtype=None,
        *,
        activation: str = "silu",
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
        super().__init__(num_groups, num_channels, eps, affine, device, dtype)
        self.activation = activation

    def forward(
        self,
        x: Tensor,
        time_bias: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """x (N, C, ...), time_bias, scale, shift (N, C) -> (N, C, ...), as :func:`fastdiff.ops.group_norm_silu`."""
        return ops.group_norm_silu(
            x,
            self.num_groups,
            self.weight,
            self.bias,
            eps=self.eps,
            time_bias=time_bias,
            scale=scale,
            shift=shift,
            activation=self.activation,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation!r}"
