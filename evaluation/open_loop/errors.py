"""Errors of predicted chunks, in physical units by dimension and step, and as one score to compare by.

The score is the mean absolute error of a single draw, the thing that a robot executes, in standard deviations of the training
episodes' actions, averaged over the dimensions that move. Steps beyond the end of an episode never count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from syvla.processing.normalization import spread_floors

from .moments import Moments

RESAMPLES = 2000  # of the episodes, for intervals
LEAST_EPISODES = 3  # below which an interval over episodes means nothing


@dataclass(frozen=True)
class Scale:
    """By what errors are divided to compare dimensions of different units.

    Attributes:
        spread: float64 (D,), standard deviation of the training episodes' actions.
        moving: bool (D,), False for dimensions that stand still there (`spread_floors`), which no score counts.
    """

    spread: np.ndarray
    moving: np.ndarray

    @classmethod
    def of(cls, actions: np.ndarray, units: Sequence[str] | None = None) -> Scale:
        """Of the training actions (N, D) and their units, where known.

        Raises:
            ValueError: If every dimension stands still.
        """
        moving = moves(actions, units)
        if not moving.any():
            raise ValueError("the recorded actions are constant in every dimension: there is nothing to predict")
        return cls(np.where(moving, actions.std(0, dtype=np.float64), 1.0), moving)


def moves(values: np.ndarray, units: Sequence[str] | None = None) -> np.ndarray:
    """Which dimensions of values (N, D) vary by more than the noise of something that stands still, bool (D,)."""
    statistics = {"mean": values.mean(0, dtype=np.float64), "std": values.std(0, dtype=np.float64)}
    least = np.maximum(
        1e-6 * np.maximum(1e-3, np.abs(statistics["mean"])), spread_floors(statistics, "mean_std", units)
    )
    return np.asarray(statistics["std"] > least)


@dataclass(frozen=True)
class ChunkErrors:
    """Absolute errors of one way to predict, mean over its draws.

    Attributes:
        absolute: float64 (F, T, D), physical units; NaN where nothing was recorded or nothing is predicted.
    """

    absolute: np.ndarray

    @classmethod
    def of(cls, moments: Moments, actions: np.ndarray, dimensions: np.ndarray | None = None) -> ChunkErrors:
        """Of chunks (F, T, D), or of K draws of them, (K, F, T, D).

        Args:
            moments: What was recorded.
            actions: What is predicted.
            dimensions: bool (D,), which dimensions are; None: all.
        """
        draws = actions if actions.ndim == 4 else actions[None]
        total = np.zeros(moments.actions.shape)
        for draw in draws:
            total += np.abs(draw.astype(np.float64) - moments.actions)
        known = moments.real[..., None] & (True if dimensions is None else dimensions)
        return cls(np.where(known, total / len(draws), np.nan))

    def by_dimension(self) -> np.ndarray:
        """float64 (D,), mean over moments and steps; NaN where nothing is predicted."""
        return _mean(self.absolute, (0, 1))

    def by_step(self) -> np.ndarray:
        """float64 (T, D), mean over moments; NaN where no episode is that long."""
        return _mean(self.absolute, 0)

    def scores(self, scale: Scale, dimensions: np.ndarray) -> np.ndarray:
        """float64 (F, T), score of each step, over `dimensions` that move; NaN where none was recorded."""
        chosen = scale.moving & dimensions
        return _mean(self.absolute[..., chosen] / scale.spread[chosen], -1)


def spread_of_draws(moments: Moments, actions: np.ndarray) -> np.ndarray | None:
    """float64 (T, D), standard deviation between K draws (K, F, T, D), root of its mean square over moments.

    None for a single draw.
    """
    if len(actions) < 2:
        return None
    variance = np.where(moments.real[..., None], actions.astype(np.float64).var(0, ddof=1), np.nan)
    return np.asarray(np.sqrt(_mean(variance, 0)))


@dataclass(frozen=True)
class Comparison:
    """The policy's score beside a baseline's, on the dimensions that the baseline predicts.

    Attributes:
        baseline: Its name.
        policy_score, baseline_score: In standard deviations.
        interval: 95% interval of policy minus baseline, by resampling episodes; None with fewer than `LEAST_EPISODES`.
        better_episodes: In how many episodes the policy's score is lower.
        episodes: Number of episodes.
        dimensions: Number of dimensions compared.
    """

    baseline: str
    policy_score: float
    baseline_score: float
    interval: tuple[float, float] | None
    better_episodes: int
    episodes: int
    dimensions: int

    @property
    def outcome(self) -> str:
        """ "better", "worse", or "unclear" where the interval holds zero or there is none."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "unclear"
        return "better" if self.interval[1] < 0 else "worse"

    def to_dict(self) -> dict[str, Any]:
        ratio = self.policy_score / self.baseline_score if self.baseline_score else None
        return {**vars(self), "ratio": ratio, "outcome": self.outcome}


def compare(
    name: str, moments: Moments, policy: ChunkErrors, baseline: ChunkErrors, dimensions: np.ndarray, scale: Scale
) -> Comparison | None:
    """The policy against a baseline; None where the dimensions that it predicts never move.

    Args:
        name: Of the baseline.
        moments: Where both predict.
        policy, baseline: Their errors.
        dimensions: bool (D,), what the baseline predicts.
        scale: See [`Scale`].
    """
    count = int((scale.moving & dimensions).sum())
    if not count:
        return None
    ours, theirs = (errors.scores(scale, dimensions) for errors in (policy, baseline))
    episodes = np.unique(moments.episodes)
    sums = np.array(
        [
            [np.nansum(ours[rows]), np.nansum(theirs[rows]), moments.real[rows].sum()]
            for rows in (moments.episodes == episode for episode in episodes)
        ]
    )
    interval = None
    if len(episodes) >= LEAST_EPISODES:
        drawn = np.random.default_rng(0).integers(0, len(episodes), (RESAMPLES, len(episodes)))
        total = sums[drawn].sum(1)
        low, high = np.percentile((total[:, 0] - total[:, 1]) / total[:, 2], [2.5, 97.5])
        interval = (float(low), float(high))
    total = sums.sum(0)
    better = int((sums[:, 0] < sums[:, 1]).sum())
    return Comparison(
        name, float(total[0] / total[2]), float(total[1] / total[2]), interval, better, len(episodes), count
    )


def by_episode(moments: Moments, scores: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """For each episode its number, moments, and mean of every score (F, T)."""
    rows = []
    for episode in np.unique(moments.episodes):
        own = moments.episodes == episode
        means = {name: float(np.nanmean(values[own])) for name, values in scores.items()}
        rows.append({"episode": int(episode), "moments": int(own.sum()), **means})
    return rows


def _mean(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Mean of what is not NaN; NaN, without a warning, where nothing is."""
    known = ~np.isnan(values)
    count = known.sum(axis)
    total = np.where(known, values, 0.0).sum(axis)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))
