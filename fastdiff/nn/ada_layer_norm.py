"""Layer normalisation with scale and shift from the embedding of timestep and condition, on one fused kernel.

The norms of diffusers' DiT, SD3 and FLUX (adaLN-Zero, Scalable Diffusion Models with Transformers, arXiv:2212.09748,
section 3.2), with their ``state_dict`` keys. Mind the order in which a projection holds its parts: shift before scale
in the blocks, scale before shift in the last layer.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff import ops
from fastdiff.nn.linear import Linear

_BLOCK_EPS = 1e-6


class AdaLayerNormZero(nn.Module):
    """The first norm of a block with two branches. ``state_dict``: ``linear``, as diffusers' ``AdaLayerNormZero``.

    diffusers' own table of class labels (``num_embeddings``) is not part of it: give the embedding.

    Args:
        embedding_dim: channels of the tokens and of the embedding.
        bias: give the projection a bias.

    >>> norm = AdaLayerNormZero(64)
    >>> y, gate_msa, shift_mlp, scale_mlp, gate_mlp = norm(torch.randn(2, 16, 64), torch.randn(2, 64))
    """

    def __init__(self, embedding_dim: int, *, bias: bool = True, device=None, dtype=None) -> None:
        super().__init__()
        self.linear = Linear(embedding_dim, 6 * embedding_dim, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor, emb: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x (N, L, C) and emb (N, C) -> the normalised x, and gate_msa, shift_mlp, scale_mlp, gate_mlp, each (N, C)."""
        shift_msa, scale_msa, *others = self.linear(F.silu(emb)).chunk(6, dim=1)
        return ops.layer_norm_modulate(x, scale_msa, shift_msa, eps=_BLOCK_EPS)[0], *others


class SD35AdaLayerNormZeroX(nn.Module):
    """The first norm of a block with two attentions. ``state_dict``: ``linear``, as diffusers' module of this name.

    Args:
        embedding_dim: channels of the tokens and of the embedding.
        bias: give the projection a bias.

    >>> norm = SD35AdaLayerNormZeroX(64)
    >>> y, gate_msa, shift_mlp, scale_mlp, gate_mlp, y2, gate_msa2 = norm(torch.randn(2, 16, 64), torch.randn(2, 64))
    """

    def __init__(self, embedding_dim: int, *, bias: bool = True, device=None, dtype=None) -> None:
        super().__init__()
        self.linear = Linear(embedding_dim, 9 * embedding_dim, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor, emb: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x (N, L, C) and emb (N, C) -> what :class:`AdaLayerNormZero` gives, then x for the second attention, and its
        gate."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp, shift2, scale2, gate2 = self.linear(F.silu(emb)).chunk(9, 1)
        y = ops.layer_norm_modulate(x, scale, shift, eps=_BLOCK_EPS)[0]
        y2 = ops.layer_norm_modulate(x, scale2, shift2, eps=_BLOCK_EPS)[0]
        return y, gate, shift_mlp, scale_mlp, gate_mlp, y2, gate2


class AdaLayerNormZeroSingle(nn.Module):
    """The norm of a block with one branch. ``state_dict``: ``linear``, as diffusers' ``AdaLayerNormZeroSingle``.

    Args:
        embedding_dim: channels of the tokens and of the embedding.
        bias: give the projection a bias.

    >>> norm = AdaLayerNormZeroSingle(64)
    >>> y, gate = norm(torch.randn(2, 16, 64), torch.randn(2, 64))
    """

    def __init__(self, embedding_dim: int, *, bias: bool = True, device=None, dtype=None) -> None:
        super().__init__()
        self.linear = Linear(embedding_dim, 3 * embedding_dim, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor, emb: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, L, C) and emb (N, C) -> the normalised x, and the gate of the branch, (N, C)."""
        shift, scale, gate = self.linear(F.silu(emb)).chunk(3, dim=1)
        return ops.layer_norm_modulate(x, scale, shift, eps=_BLOCK_EPS)[0], gate


class AdaLayerNormContinuous(nn.Module):
    """The last norm of a model. ``state_dict``: ``linear``, ``norm``, as diffusers' ``AdaLayerNormContinuous``.

    Args:
        embedding_dim: channels of the tokens.
        conditioning_embedding_dim: channels of the embedding.
        elementwise_affine: give the norm a weight, and with bias a bias, for each channel.
        eps: added to the variance, or to the mean square.
        bias: give the projection and the norm a bias; an RMS norm never has one.
        norm_type: "layer_norm" or "rms_norm".

    >>> norm = AdaLayerNormContinuous(64, 32, elementwise_affine=False, eps=1e-6)
    >>> y = norm(torch.randn(2, 16, 64), torch.randn(2, 32))
    """

    NORMS = {"layer_norm": "layer", "rms_norm": "rms"}

    def __init__(
        self,
        embedding_dim: int,
        conditioning_embedding_dim: int,
        elementwise_affine: bool = True,
        eps: float = 1e-5,
        bias: bool = True,
        norm_type: str = "layer_norm",
        device=None,
        dtype=None,
    ) -> None:
        if norm_type not in self.NORMS:
            raise ValueError(f"norm_type must be one of {tuple(self.NORMS)}, got {norm_type!r}")
        super().__init__()
        made_as = {"device": device, "dtype": dtype}
        self.linear = Linear(conditioning_embedding_dim, 2 * embedding_dim, bias=bias, **made_as)
        self.eps = eps
        self.norm_type = norm_type
        # Holds the parameters; the kernel does its work.
        self.norm: nn.Module
        if norm_type == "layer_norm":
            self.norm = nn.LayerNorm(embedding_dim, eps, elementwise_affine, bias, **made_as)
        else:
            self.norm = nn.RMSNorm(embedding_dim, eps, elementwise_affine, **made_as)

    def forward(self, x: Tensor, conditioning_embedding: Tensor) -> Tensor:
        """x (N, L, C) and conditioning_embedding (N, conditioning_embedding_dim) -> (N, L, C)."""
        scale, shift = self.linear(F.silu(conditioning_embedding).to(x.dtype)).chunk(2, dim=1)
        return ops.layer_norm_modulate(
            x,
            scale,
            shift,
            eps=self.eps,
            norm=self.NORMS[self.norm_type],
            weight=getattr(self.norm, "weight", None),
            bias=getattr(self.norm, "bias", None),
        )[0]
