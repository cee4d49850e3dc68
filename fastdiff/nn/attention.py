from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdiff import _switch, ops
from fastdiff.nn.kept import Keeper, may_keep
from fastdiff.nn.linear import Linear


class Attention(Keeper):
    """Multi-head self- or cross-attention with its projections, as the transformer blocks of diffusers have it.

    Same ``state_dict`` as `diffusers.models.attention_processor.Attention`: ``to_q``, ``to_k``, ``to_v``, ``to_out.0``.

    The keys and values of a text are worked out once for all steps of a prompt: as long as no gradient is asked for and
    the same tensor comes again, with the same weights, unchanged. A change in place, of the text or of the weights, is
    seen by the tensor's version, which every operation of PyTorch counts up; writing through ``tensor.data`` or NumPy
    is seen on a CPU only, and there if it changes one of eight numbers spread over the tensor, as averages of weights
    and merged adapters do. ``forget()`` drops what is kept.

    Args:
        query_dim: channels of the hidden states.
        cross_attention_dim: channels of the text; None is self-attention.
        heads, dim_head: number and size of the heads.
        kv_heads: heads of key and value, a divisor of heads; None is as many.
        bias: give the three projections of the input a bias.
        out_bias: give the projection of the output one.

    >>> attend = Attention(320, cross_attention_dim=768, heads=8, dim_head=40)
    >>> y = attend(torch.randn(2, 4096, 320), torch.randn(2, 77, 768))
    """

    def __init__(
        self,
        query_dim: int,
        cross_attention_dim: int | None = None,
        heads: int = 8,
        dim_head: int = 64,
        *,
        kv_heads: int | None = None,
        bias: bool = False,
        out_bias: bool = True,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"kv_heads must divide the {heads} heads, got {kv_heads}")
        self.dim_head = dim_head
        context_dim = query_dim if cross_attention_dim is None else cross_attention_dim
        made_as = {"device": device, "dtype": dtype}
        self.to_q = Linear(query_dim, heads * dim_head, bias=bias, **made_as)
        self.to_k = Linear(context_dim, kv_heads * dim_head, bias=bias, **made_as)
        self.to_v = Linear(context_dim, kv_heads * dim_head, bias=bias, **made_as)
        # A list because diffusers' key is to_out.0.
        self.to_out = nn.ModuleList([Linear(heads * dim_head, query_dim, bias=out_bias, **made_as)])

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        kv_lengths: Tensor | None = None,
    ) -> Tensor:
        """Attend from the hidden states to the text, or to themselves where there is none.

        Args:
            hidden_states: (N, L, query_dim).
            encoder_hidden_states: (N, Lkv, cross_attention_dim), the text; None is self-attention.
            kv_lengths: (N,) how many of the first tokens attended to count, as in :func:`fastdiff.ops.attention`.

        Returns:
            (N, L, query_dim).
        """
        query = self._heads(self.to_q(hidden_states))
        if encoder_hidden_states is None:
            key, value = self._project(hidden_states)
        else:
            key, value = self._project_text(encoder_hidden_states)
        return self.to_out[0](ops.attention(query, key, value, kv_lengths=kv_lengths).flatten(2))

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (-1, self.dim_head))

    def _project(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self._heads(self.to_k(context)), self._heads(self.to_v(context))

    def _project_text(self, text: Tensor) -> tuple[Tensor, Tensor]:
        sources = (text, *self.to_k.parameters(), *self.to_v.parameters())
        if not (all(map(_is_plain, (self.to_k, self.to_v))) and may_keep(*sources)):
            return self._project(text)
        return self.keep(sources, _setting(text), lambda: self._project(text))


def _is_plain(projection: nn.Module) -> bool:
    """Whether the result is that of the parameters, and nobody listens: adapters have states of their own."""
    listeners = projection._forward_hooks or projection._forward_pre_hooks
    return type(projection) in (Linear, nn.Linear) and not listeners


def _setting(tensor: Tensor) -> tuple:
    """What else a projection depends on."""
    device = tensor.device.type
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device), _switch.reference_depth > 0
