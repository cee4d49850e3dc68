from __future__ import annotations

from torch import Tensor, nn

from fastdiff import ops
from fastdiff.nn.linear import Linear


class GEGLU(nn.Module):
    """Projection to a hidden half and a gate, and :func:`fastdiff.ops.geglu` of them: (..., dim_in) -> (..., dim_out).

    Same constructor and ``state_dict`` (``proj``) as diffusers' ``GEGLU``.
    """

    def __init__(self, dim_in: int, dim_out: int, bias: bool = True, device=None, dtype=None) -> None:
        super().__init__()
        self.proj = Linear(dim_in, 2 * dim_out, bias=bias, device=device, dtype=dtype)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return ops.geglu(self.proj(hidden_states))


class _GELU(nn.Module):
    """Projection and GELU: no gate, and so nothing to fuse that PyTorch has not."""

    def __init__(self, dim_in: int, dim_out: int, approximate: str, bias: bool, device=None, dtype=None) -> None:
        super().__init__()
        self.proj = Linear(dim_in, dim_out, bias=bias, device=device, dtype=dtype)
        self.approximate = approximate

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.proj.gelu(hidden_states, self.approximate)


class FeedForward(nn.Module):
    """The two layers behind the attention of a transformer block: (..., dim) -> (..., dim_out).

    Same constructor and ``state_dict`` (``net.0.proj``, ``net.2``) as diffusers' ``FeedForward``.

    Args:
        dim: channels of the input.
        dim_out: channels of the output; None is dim.
        mult: how many times dim the layer between is wide.
        dropout: probability, after the activation.
        activation_fn: "geglu" (SD1.5, SDXL), "gelu-approximate" (by tanh: DiT, SD3, FLUX) or "gelu".
        final_dropout: the same dropout after the second layer, too.
        inner_dim: width of the layer between, in place of mult.
        bias: give both layers a bias.

    >>> feed = FeedForward(320)
    >>> y = feed(torch.randn(2, 64, 320))
    """

    ACTIVATIONS = ("geglu", "gelu-approximate", "gelu")

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        mult: float = 4,
        dropout: float = 0.0,
        activation_fn: str = "geglu",
        final_dropout: bool = False,
        inner_dim: int | None = None,
        bias: bool = True,
        device=None,
        dtype=None,
    ) -> None:
        if activation_fn not in self.ACTIVATIONS:
            raise ValueError(f"activation_fn must be one of {self.ACTIVATIONS}, got {activation_fn!r}")
        super().__init__()
        inner_dim = int(dim * mult) if inner_dim is None else inner_dim
        dim_out = dim if dim_out is None else dim_out
        activation: nn.Module
        if activation_fn == "geglu":
            activation = GEGLU(dim, inner_dim, bias, device, dtype)
        else:
            approximate = "tanh" if activation_fn == "gelu-approximate" else "none"
            activation = _GELU(dim, inner_dim, approximate, bias, device, dtype)
        output = Linear(inner_dim, dim_out, bias=bias, device=device, dtype=dtype)
        # A list with the dropout in it because diffusers' keys are net.0.proj and net.2.
        self.net = nn.ModuleList([activation, nn.Dropout(dropout), output])
        if final_dropout:
            self.net.append(nn.Dropout(dropout))

    def forward(self, hidden_states: Tensor) -> Tensor:
        for module in self.net:
            hidden_states = module(hidden_states)
        return hidden_states
