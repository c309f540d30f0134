"""Which robots an optimizer step has samples of, and which parts of the model no sample of it uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn


def present_embodiments(batches: Sequence[Any], config: Any) -> torch.Tensor:
    """Robots with actions in a step's micro-batches.

    Args:
        batches: Micro-batches of this process.
        config: The model's [`SyVLAConfig`].

    Returns:
        bool (1, E) in the order of `config.embodiments`; gathered along the first dimension, every process's.
    """
    ids = [entry["id"] for entry in config.embodiments.values()]
    found: set[int] = set()
    for batch in batches:
        if batch.get("actions") is not None:
            found |= set(batch["embodiment_ids"].tolist())
    return torch.tensor([[number in found for number in ids]], dtype=torch.bool)


def absent_parts(policy: Any, present: Sequence[bool]) -> Iterator[nn.Module]:
    """Modules that no sample of the step uses: coders of absent robots; without any robot all that acts.

    Args:
        policy: The [`SyVLAModel`].
        present: Per robot, in the order of `config.embodiments`.
    """
    if not any(present):
        yield from (policy.expert, policy.adapter)
        return
    for name, here in zip(policy.config.embodiments, present, strict=True):
        if not here:
            yield policy.expert.embodiments[name]
