"""Prompts to what a network is told of them: each family's way through its tokenizers and text encoders."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class TextEncoding(NamedTuple):
    text: Tensor
    """(N, L, C)"""
    pooled: Tensor | None = None
    """(N, P)"""


Parts = Mapping[str, Any]
"""Tokenizers and text encoders by the names that diffusers' pipelines have for them."""
Encode = Callable[[Parts, Sequence[str], int | None, int], TextEncoding]
"""(parts, prompts, length of T5's texts in tokens or None, channels of the text) -> encoding"""


def stable_diffusion(parts: Parts, prompts: Sequence[str], length: int | None, channels: int) -> TextEncoding:
    """The last hidden state of one CLIP."""
    tokenizer, encoder = _pair(parts, "")
    tokens = _tokens(tokenizer, prompts, _length(tokenizer, encoder))
    mask = tokens.attention_mask.to(encoder.device) if getattr(encoder.config, "use_attention_mask", False) else None
    return TextEncoding(encoder(tokens.input_ids.to(encoder.device), attention_mask=mask)[0])


def stable_diffusion_xl(parts: Parts, prompts: Sequence[str], length: int | None, channels: int) -> TextEncoding:
    """The last hidden state but one of each CLIP, side by side, and what the last CLIP pools."""
    suffixes = [suffix for suffix in ("", "_2") if parts.get(f"text_encoder{suffix}") is not None] or [""]
    encoded = [_clip(*_pair(parts, suffix), prompts) for suffix in suffixes]
    return TextEncoding(torch.cat([text for text, _ in encoded], dim=-1), encoded[-1].pooled)


def stable_diffusion_3(parts: Parts, prompts: Sequence[str], length: int | None, channels: int) -> TextEncoding:
    """Two CLIPs side by side, padded with zeros to T5's channels, and then T5: zeros, if there is none."""
    clips = [_clip(*_pair(parts, suffix), prompts) for suffix in ("", "_2")]
    text = torch.cat([clip.text for clip in clips], dim=-1)
    length = 256 if length is None else length
    if parts.get("text_encoder_3") is None:
        t5 = text.new_zeros(len(prompts), length, channels)
    else:
        t5 = _t5(*_pair(parts, "_3"), prompts, length).to(text)
    text = F.pad(text, (0, t5.shape[-1] - text.shape[-1]))
    return TextEncoding(torch.cat((text, t5), dim=1), torch.cat([_given(clip.pooled) for clip in clips], dim=-1))


def flux(parts: Parts, prompts: Sequence[str], length: int | None, channels: int) -> TextEncoding:
    """T5, and what CLIP pools."""
    tokenizer, clip = _pair(parts, "")
    tokens = _tokens(tokenizer, prompts, _length(tokenizer, clip))
    pooled = clip(tokens.input_ids.to(clip.device)).pooler_output
    return TextEncoding(_t5(*_pair(parts, "_2"), prompts, 512 if length is None else length), pooled)


def _pair(parts: Parts, suffix: str) -> tuple[Any, Any]:
    names = f"tokenizer{suffix}", f"text_encoder{suffix}"
    for name in names:
        if parts.get(name) is None:
            raise ValueError(f"a prompt needs the pipeline's {name}, which is absent: give prompt_embeds in its place")
    return parts[names[0]], parts[names[1]]


def _clip(tokenizer: Any, encoder: Any, prompts: Sequence[str]) -> TextEncoding:
    tokens = _tokens(tokenizer, prompts, _length(tokenizer, encoder))
    output = encoder(tokens.input_ids.to(encoder.device), output_hidden_states=True)
    return TextEncoding(output.hidden_states[-2], output[0])


def _length(tokenizer: Any, encoder: Any) -> int:
    """Of CLIP's texts in tokens. A tokenizer that says none has a number beyond all integers of its library."""
    return min(tokenizer.model_max_length, encoder.config.max_position_embeddings)


def _t5(tokenizer: Any, encoder: Any, prompts: Sequence[str], length: int) -> Tensor:
    return encoder(_tokens(tokenizer, prompts, length).input_ids.to(encoder.device))[0]


def _given(pooled: Tensor | None) -> Tensor:
    assert pooled is not None
    return pooled


def _tokens(tokenizer: Any, prompts: Sequence[str], length: int) -> Any:
    prompts = list(prompts)
    longest = max((len(ids) for ids in tokenizer(prompts).input_ids), default=0)
    if longest > length:
        warnings.warn(f"a prompt of {longest} tokens is cut: the text encoder takes {length}", stacklevel=_caller())
    return tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")


def _caller() -> int:
    """The stacklevel of a warning, of this function's caller, for the code that called the pipeline."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("fastdiff.", "torch.")):
        level, frame = level + 1, frame.f_back
    return level
