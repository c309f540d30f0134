"""What a policy predicts at given moments, for several draws of the noise."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from .moments import Moments


@dataclass(frozen=True)
class Predictions:
    """Chunks of K draws at F moments.

    Attributes:
        actions: float32 (K, F, T, D), physical units.
        thoughts: F generated thoughts; None unless the policy thinks.
    """

    actions: np.ndarray
    thoughts: list[str] | None


def predict(
    policy: Any,
    dataset: Any,
    moments: Moments,
    *,
    draws: int,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = True,
) -> Predictions:
    """Asks the policy for `draws` chunks at each moment; the VLM reads each moment once.

    The noise of a draw depends on `seed`, episode, frame and number of the draw alone, not on the batch.

    Args:
        policy: [`SyVLAPolicy`] whose `view_cameras` map each view to itself.
        dataset: `RobotDataset` that the moments are of.
        moments: Where to ask.
        draws: K.
        seed: Seed of the noise.
        batch_size: Moments per call.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If `draws` or `batch_size` is below 1, or the policy answers with values that are not finite.
    """
    if draws < 1 or batch_size < 1:
        raise ValueError(f"expected draws >= 1 and batch_size >= 1, got {draws=} {batch_size=}")
    steps = moments.actions.shape[1]
    found: list[np.ndarray] = []
    thoughts: list[str] = []
    with tqdm(total=len(moments), desc="Predicting", unit="moment", disable=not progress) as bar:
        for low in range(0, len(moments), batch_size):
            rows = range(low, min(low + batch_size, len(moments)))
            items = [dataset[int(moments.indices[row])] for row in rows]
            inputs = policy.inputs(
                [item["images"] for item in items], [item["state"] for item in items], [item["text"] for item in items]
            )
            intention = policy.intention(inputs)
            thoughts += intention.thoughts or []
            chunks = []
            for draw in range(draws):
                seeds = [noise_seed(seed, int(moments.episodes[row]), int(moments.frames[row]), draw) for row in rows]
                chunks.append(policy.denoise(inputs, intention, seeds=seeds)[:, :steps])
            found.append(np.stack(chunks))
            bar.update(len(items))
    actions = np.concatenate(found, axis=1)
    if not np.isfinite(actions).all():
        bad = np.unique(moments.episodes[~np.isfinite(actions).all((0, 2, 3))])
        raise ValueError(
            f"the policy predicts values that are not finite, in episodes {bad[:10].tolist()}; its weights or "
            "statistics are broken"
        )
    return Predictions(actions, thoughts or None)


def noise_seed(seed: int, episode: int, frame: int, draw: int) -> int:
    """Seed of one draw's noise."""
    digest = hashlib.sha256(f"{seed}/{episode}/{frame}/{draw}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
