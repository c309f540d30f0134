"""Changing the length of the action chunk of a trained model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def resize_chunk(model: Any, chunk_size: int) -> None:
    """Give a model another chunk size, in place; every other weight stays as it is.

    Only the position embedding of the action steps depends on the chunk size. Its first `min(old, new)` rows are kept;
    further rows start as copies of the last one, so that the model first repeats its last step there and learns the rest
    in training (ours: extrapolating learned embeddings leaves the range that the expert has seen). The processor's
    `chunk_size` must be set to the same value.

    Args:
        model: A [`SyVLAModel`], not wrapped by an adapter or by distributed training.
        chunk_size: T, the new number of actions predicted at once.

    Raises:
        ValueError: If `chunk_size` is no positive integer.
    """
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size: expected a positive integer, got {chunk_size!r}")
    old = model.expert.action_position_embedding
    rows, width = old.weight.shape
    if chunk_size != rows:
        source = torch.arange(chunk_size, device=old.weight.device).clamp(max=rows - 1)
        weight = nn.Parameter(old.weight.detach()[source].clone(), requires_grad=old.weight.requires_grad)
        new = nn.Embedding(chunk_size, width, _weight=weight)
        new.weight = weight  # the constructor makes a parameter of its own, which always requires gradients
        model.expert.action_position_embedding = new.train(old.training)
    model.config.chunk_size = chunk_size
