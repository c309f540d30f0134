"""Chunks that continue the running one, for robots that ask before it has run out (`ChunkExecutor(prefetch=...)`).

Training-free real-time chunking (Black et al. 2025, arXiv 2506.07339), as published or without gradients: a request carries
the part of the previous chunk that has not run when the observation is taken, and how many of its steps will run before the
answer arrives. Those first steps are frozen, so that robot and policy agree on them; as published they are drawn like the
others, with weight 1. The steps after them are drawn towards the previous chunk with decaying weight
(`syvla.modeling_syvla.flow_matching.continuation_weights`), and the flow fills in the rest. The server keeps nothing between
the requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from syvla.modeling_syvla.flow_matching import continuation_weights
from syvla.serving.contract.requests import PreviousChunk


def continue_chunk(
    processor: Any, embodiment: str, previous: PreviousChunk | None, state: np.ndarray, num_steps: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One sample's continuation as the model takes it: normalized actions (T, D_max) and weights (T,).

    Args:
        state: Raw state at the new observation, (D_state,): actions relative to the state are made relative to this one.

    Raises:
        ValueError: Another number of action dimensions than the robot has, or numbers that are not finite.
    """
    target, weights = torch.zeros(num_steps, width), torch.zeros(num_steps)
    if previous is None:
        return target, weights
    try:
        normalized = processor.normalize_actions(previous.actions[:num_steps], embodiment, state)
    except ValueError as error:
        raise ValueError(f"prev_chunk: {error}") from error
    overlap = len(normalized)
    target[:overlap, : normalized.shape[1]] = torch.from_numpy(normalized)
    return target, continuation_weights(min(previous.delay, overlap), overlap, num_steps)


def known_delays(previous: Sequence[PreviousChunk | None]) -> torch.Tensor | None:
    """How many actions of each chunk are known, int64 (B,); None where the chunks are continued in another way.

    Raises:
        ValueError: Both ways in one batch.
    """
    ways = {chunk.known for chunk in previous if chunk is not None}
    if len(ways) > 1:
        raise ValueError("known_actions: expected the same for the whole batch, got both")
    if ways != {True}:
        return None
    return torch.tensor([0 if chunk is None else chunk.delay for chunk in previous])


def shared_guidance(previous: Sequence[PreviousChunk | None] | None) -> float | None:
    """The guidance weight of a batch's previous chunks; None without guidance.

    Raises:
        ValueError: Different ones.
    """
    weights = {chunk.max_guidance_weight for chunk in previous or () if chunk is not None}
    if len(weights) > 1:
        raise ValueError(f"max_guidance_weight: expected the same for the whole batch, got {sorted(map(str, weights))}")
    return next(iter(weights), None)
