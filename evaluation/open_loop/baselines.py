"""Predictions that need no learning, which a policy has to beat.

- hold: every action of the chunk is the present state, in the dimensions that action and state share.
- mean: every action is the mean of the training episodes' actions.
- nearest: the chunk that followed the most similar moment of the training episodes, among those with the same instruction
  where there are any; similar by state, or by state and small versions of the images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from .errors import moves
from .moments import Moments

THUMBNAIL = 8  # pixels on either side
_DISTANCES = 20_000_000  # computed at a time


@dataclass(frozen=True)
class BaselineChunks:
    """Chunks of a baseline, float32 (F, T, D), and the dimensions that it says anything about, bool (D,)."""

    actions: np.ndarray
    dimensions: np.ndarray


def hold_position(moments: Moments, references: Sequence[int]) -> BaselineChunks | None:
    """The present state throughout; None where no dimension is shared.

    Args:
        moments: Where.
        references: For each action dimension the state dimension that means the same, -1 where none does.
    """
    places = np.asarray(references)
    shared = places >= 0
    if not shared.any():
        return None
    held = np.where(shared, moments.states[:, np.maximum(places, 0)], np.float32(0))
    return BaselineChunks(np.broadcast_to(held[:, None], moments.actions.shape).astype(np.float32), shared)


def shared_dimensions(entry: Mapping[str, Any], state_names: Any, action_names: Any) -> list[int]:
    """The state dimension that means the same as each action dimension, -1 where none does.

    Those that delta actions are relative to, and else those of the same name. Without names nothing is known to be shared.
    """
    references = list(entry.get("delta_actions") or [-1] * int(entry["action_dim"]))
    states = list(entry.get("state_names") or state_names or [])
    actions = list(entry.get("action_names") or action_names or [])
    for dimension, name in enumerate(actions):
        if references[dimension] < 0 and states.count(name) == 1:
            references[dimension] = states.index(name)
    return references


def mean_action(moments: Moments, training_actions: np.ndarray) -> BaselineChunks:
    """The mean of the training actions (N, D) throughout."""
    mean = training_actions.mean(0, dtype=np.float64).astype(np.float32)
    return BaselineChunks(
        np.broadcast_to(mean, moments.actions.shape).astype(np.float32), np.ones(mean.shape[0], dtype=bool)
    )


def nearest_neighbor(
    moments: Moments, queries: np.ndarray, dataset: Any, candidates: np.ndarray, keys: np.ndarray, tasks: np.ndarray
) -> BaselineChunks:
    """The chunk that followed the nearest training frame, by Euclidean distance.

    Args:
        moments: F moments.
        queries: Their features, float32 (F, P).
        dataset: `RobotDataset` of the training episodes.
        candidates: int64 (N,), its frames to choose from.
        keys: Their features, (N, P).
        tasks: int64 (F,), number of each moment's instruction.
    """
    own = dataset.task_indices[candidates]
    steps = moments.actions.shape[1]
    chosen = np.empty(len(moments), dtype=np.int64)
    for task in np.unique(tasks):
        rows = np.flatnonzero(tasks == task)
        pool = np.flatnonzero(own == task)
        pool = pool if len(pool) else np.arange(len(candidates))
        squares = (keys[pool] ** 2).sum(1)
        block = max(1, _DISTANCES // len(pool))
        for low in range(0, len(rows), block):
            part = rows[low : low + block]
            distance = squares - 2 * queries[part] @ keys[pool].T  # the query's own square changes no order
            chosen[part] = candidates[pool[distance.argmin(1)]]
    chunks = np.stack([dataset.action_chunk(int(index))[0][:steps] for index in chosen])
    return BaselineChunks(chunks, np.ones(chunks.shape[-1], dtype=bool))


def state_features(states: np.ndarray, training_states: np.ndarray) -> np.ndarray:
    """States in standard deviations of the training states, float32 (N, D_state); constant dimensions are left out."""
    mean, spread = training_states.mean(0, dtype=np.float64), training_states.std(0, dtype=np.float64)
    moving = moves(training_states)
    width = max(1, int(moving.sum()))
    scaled: np.ndarray = ((states - mean)[:, moving] / spread[moving] / np.sqrt(width)).astype(np.float32)
    return scaled


def image_features(dataset: Any, indices: np.ndarray, progress: bool = True) -> np.ndarray:
    """Small versions of all views of some frames, float32 (N, P) in [0, 1]."""
    found = []
    for index in tqdm(indices, desc="Reading training images", unit="frame", disable=not progress, leave=False):
        images = dataset.read_images(int(index))
        small = [
            np.asarray(Image.fromarray(image).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)).ravel()
            for image in images.values()
        ]
        found.append(np.concatenate(small))
    return np.stack(found).astype(np.float32) / 255


def with_images(states: np.ndarray, images: np.ndarray, training_images: np.ndarray) -> np.ndarray:
    """State and image features side by side, in equal weight."""
    spread = max(float((training_images - training_images.mean(0)).std()), 1e-6)
    return np.concatenate([states, images / (spread * np.sqrt(images.shape[1]))], axis=1).astype(np.float32)
