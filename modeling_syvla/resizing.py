"""Changing the length of the action chunk, the number of query tokens, or the camera views of a trained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .configuration_syvla import checked_views


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


def resize_views(model: Any, views: Sequence[str], renamed: Mapping[str, str] | None = None) -> None:
    """Give a model other camera views, in place; every other weight stays as it is.

    Only the expert's view embeddings depend on the views. Those of views that stay are kept, in whatever order; a new view
    starts with the mean of all old ones (ours: within the range that the expert has seen). The processor's `views` must be
    set to the same names.

    Args:
        model: A [`SyVLAModel`], not wrapped by an adapter or by distributed training.
        views: The new names, in order.
        renamed: New name to the old view whose embedding it takes over.

    Raises:
        ValueError: If the names are unusable, or one takes over a view that does not exist.
    """
    names, old = checked_views(views), list(model.config.views)
    sources = {name: (renamed or {}).get(name, name) for name in names}
    unknown = sorted(source for name, source in sources.items() if source != name and source not in old)
    if unknown or set(renamed or {}) - set(names):
        raise ValueError(f"views: expected to rename some of {old} to some of {names}, got {dict(renamed or {})}")
    if model.config.action_head == "flow_matching":
        embedding = model.expert.view_embedding
        weight = embedding.weight.detach()
        rows = [weight[old.index(source)] if source in old else weight.mean(dim=0) for source in sources.values()]
        new = nn.Embedding(len(names), weight.shape[1], _weight=torch.stack(rows))
        new.weight.requires_grad_(embedding.weight.requires_grad)
        model.expert.view_embedding = new.train(embedding.training)
    model.config.views = names


def resize_queries(model: Any, num_query_tokens: int) -> None:
    """Give a model another number of Feature Query Tokens N, in place; every other weight stays as it is.

    The first `min(old, new)` tokens are kept; further ones are drawn as in a fresh model, from torch's global generator.
    The processor's `num_query_tokens` must be set to the same value. Needed for Table 5 of the paper.

    Args:
        model: A [`SyVLAModel`], not wrapped by an adapter or by distributed training.
        num_query_tokens: N, the new number.

    Raises:
        ValueError: If it is no positive integer, or the model regresses its actions from exactly N states.
    """
    if isinstance(num_query_tokens, bool) or not isinstance(num_query_tokens, int) or num_query_tokens < 1:
        raise ValueError(f"num_query_tokens: expected a positive integer, got {num_query_tokens!r}")
    old = model.action_queries
    rows, width = old.weight.shape
    if num_query_tokens == rows:
        return
    if model.config.action_head == "l1_regression":
        raise ValueError(f"num_query_tokens: the regression head of this model was made for {rows} query tokens")
    new = nn.Embedding(num_query_tokens, width, device=old.weight.device, dtype=old.weight.dtype)
    model._init_weights(new)
    kept = min(rows, num_query_tokens)
    with torch.no_grad():
        new.weight[:kept] = old.weight[:kept]
    new.weight.requires_grad_(old.weight.requires_grad)
    model.action_queries = new.train(old.training)
    model.config.num_query_tokens = num_query_tokens
