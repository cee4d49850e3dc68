"""Checks of what a model is called with; the errors name the argument, what was given and what is allowed."""

from __future__ import annotations

from torch import Tensor


def require_feature_map(name: str, x: Tensor, channels: int) -> None:
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"{name} must be (N, {channels}, H, W), got shape {tuple(x.shape)}")


def require_multiples(name: str, x: Tensor, of: int) -> None:
    """Height and width of a feature map are whole multiples of `of`."""
    if x.shape[2] % of or x.shape[3] % of:
        raise ValueError(f"{name}'s height and width must be multiples of {of}, got {tuple(x.shape[2:])}")


def require_class_labels(class_labels: Tensor | None, embedded: bool, batch: int, width: int | None) -> None:
    """They are there if and only if the model embeds them: one number a sample, or `width` of them."""
    if embedded != (class_labels is not None):
        wanted = "are required by" if embedded else "must not be given to a model without"
        raise ValueError(f"class_labels {wanted} a class embedding (num_class_embeds, class_embed_type)")
    shape = (batch,) if width is None else (batch, width)
    if class_labels is not None and class_labels.shape != shape:
        raise ValueError(f"class_labels must be {shape}, got shape {tuple(class_labels.shape)}")
