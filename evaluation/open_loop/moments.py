"""Moments of recorded episodes at which a policy is asked for a chunk, and what was recorded there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Moments:
    """F moments of a dataset, in the order of its frames.

    Attributes:
        indices: int64 (F,), the dataset's numbers of the frames.
        episodes: int64 (F,), episode of each.
        frames: int64 (F,), number of the frame within its episode.
        actions: float32 (F, T, D), recorded, physical units.
        real: bool (F, T), False beyond the end of the episode.
        states: float32 (F, D_state), physical units.
    """

    indices: np.ndarray
    episodes: np.ndarray
    frames: np.ndarray
    actions: np.ndarray
    real: np.ndarray
    states: np.ndarray

    @classmethod
    def of(cls, dataset: Any, stride: int = 1, steps: int | None = None, most: int | None = None) -> Moments:
        """Every `stride`-th frame of each episode of a `RobotDataset`, from its first on.

        Args:
            dataset: The dataset.
            stride: Frames between two moments.
            steps: Compare only so many steps of each chunk; None: all.
            most: Keep only so many moments, spread evenly; None: all.

        Raises:
            ValueError: If `stride` or `steps` is out of range.
        """
        if stride < 1:
            raise ValueError(f"stride: expected at least 1 frame, got {stride}")
        chunk = int(dataset.chunk_size)
        if steps is not None and not 1 <= steps <= chunk:
            raise ValueError(f"steps: expected 1 to {chunk}, the policy's chunk, got {steps}")
        starts, lengths = dataset.episode_starts, dataset.episode_lengths
        places = [start + np.arange(0, length, stride) for start, length in zip(starts, lengths, strict=True)]
        episodes = np.repeat(np.asarray(dataset.episodes), [len(place) for place in places])
        indices = np.concatenate(places)
        if most is not None and len(indices) > most:
            kept = np.unique(np.linspace(0, len(indices) - 1, most).round().astype(np.int64))
            indices, episodes = indices[kept], episodes[kept]
        chunks = [dataset.action_chunk(int(index)) for index in indices]
        first = starts[np.searchsorted(starts, indices, side="right") - 1]
        return cls(
            indices.astype(np.int64),
            episodes.astype(np.int64),
            (indices - first).astype(np.int64),
            np.stack([actions for actions, _ in chunks])[:, :steps],
            np.stack([~is_pad for _, is_pad in chunks])[:, :steps],
            dataset.states[indices],
        )

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class Dimensions:
    """Names and units of an action's D dimensions; a unit is empty where it is not known."""

    names: Sequence[str]
    units: Sequence[str]

    @classmethod
    def of(cls, entry: dict[str, Any], dataset: Any) -> Dimensions:
        """Of a robot's entry in the processor, else of the dataset, else by number."""
        count = int(entry["action_dim"])
        names = entry.get("action_names") or dataset.action_names or [f"action {i}" for i in range(count)]
        return cls([str(name) for name in names], [str(unit) for unit in entry.get("action_units") or [""] * count])

    def label(self, dimension: int) -> str:
        unit = self.units[dimension]
        return f"{self.names[dimension]} [{unit}]" if unit else self.names[dimension]
