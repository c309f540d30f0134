"""What the VLM hands to the action expert, for one batch or taken apart by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Intention:
    """What the VLM hands to the expert for B observations.

    Attributes:
        query_states: (B, N, D_vlm).
        mask: bool (B, N), False for padding; None without padding.
        thoughts: B texts, or None without thinking.
        plain_states: (B, N, D_vlm), of the same prompts without an advantage indicator; None without guidance by it.
        seconds: What each phase of the VLM's run took: `think`, `queries`. The samples of a batch share it.
    """

    query_states: torch.Tensor
    mask: torch.Tensor | None = None
    thoughts: list[str] | None = None
    plain_states: torch.Tensor | None = None
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)


def split_intention(intention: Intention) -> list[Intention]:
    """One intention per sample of a batch."""
    return [
        Intention(
            intention.query_states[row : row + 1],
            None if intention.mask is None else intention.mask[row : row + 1],
            None if intention.thoughts is None else intention.thoughts[row : row + 1],
            None if intention.plain_states is None else intention.plain_states[row : row + 1],
            intention.seconds,
        )
        for row in range(len(intention.query_states))
    ]


def join_intentions(intentions: Sequence[Intention]) -> Intention:
    """The inverse of `split_intention`, without `seconds`; states of unequal number are padded and masked."""
    longest = max(one.query_states.shape[1] for one in intentions)
    states = torch.cat([F.pad(one.query_states, (0, 0, 0, longest - one.query_states.shape[1])) for one in intentions])
    mask = None
    if any(one.mask is not None or one.query_states.shape[1] < longest for one in intentions):
        own = [torch.ones_like(one.query_states[..., 0], dtype=torch.bool) for one in intentions]
        masks = [whole if one.mask is None else one.mask for one, whole in zip(intentions, own, strict=True)]
        mask = torch.cat([F.pad(one, (0, longest - one.shape[1]), value=False) for one in masks])
    thoughts = [text for one in intentions for text in one.thoughts or [""]]
    plain = [one.plain_states for one in intentions if one.plain_states is not None]  # all have some, or none
    texts = None if all(one.thoughts is None for one in intentions) else thoughts
    return Intention(states, mask, texts, torch.cat(plain) if plain else None)
