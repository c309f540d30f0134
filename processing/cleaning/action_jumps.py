"""Isolated spikes in the commanded actions: values that leave their course for a moment and come back.

A spike goes out and back within `seconds`, by more than `limit`. A change that stays (a gripper that closes, an angle
that wraps, the next set point) is no spike, nor is a motion that takes longer. The rule and its constants are ours,
measured by `benchmarks/cleaning.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_PERIODS = (2 * math.pi, 360.0)  # of angles in radians and in degrees
_COMMON_SHARE = 0.01  # a step that more frames make is how the dimension moves, whether it lasts or not
_MOVING_RATE = 0.05  # a dimension moves above this, in ranges per second
_RESTING_SHARE = 0.2  # the least range of a dimension, as a share of the usual one, in case it hardly moves
_FEW = 8  # frames that are few in a dataset of any size
_NOISE_DEVIATIONS = 8.0
_LARGEST_SHARE = 0.01  # more frames than this in what looks like spikes: none of them is isolated


@dataclass(frozen=True)
class SpikeLimits:
    """What counts as a spike in a dataset.

    Attributes:
        limit: float64 (D,), height that a spike exceeds, raw units; infinite where a dimension is not looked at.
        frames: Longest spike.
        period: float64 (D,), period of the dimensions that are wrapped angles, 0 elsewhere.
        common: Dimensions in which more than 1% of the frames, and more than 8, leave and come back faster than a fast step:
            that is how they behave, and they are not looked at.
    """

    limit: np.ndarray
    frames: int
    period: np.ndarray
    common: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        actions: np.ndarray,
        starts: Sequence[int] | np.ndarray,
        fps: float,
        *,
        seconds: float,
        speed: float,
        floor: float,
        noise: Mapping[int, float] | None = None,
        ignored: Sequence[int] = (),
    ) -> SpikeLimits:
        """Limits from all frames of a dataset; values that are not finite are left out.

        Args:
            actions: (N, D), raw units.
            starts: First frame of each episode.
            fps: Frames per second.
            seconds: Longest spike; at least one frame.
            speed: The limit in fast steps of the dimension, those that 99% of its moving steps stay below.
            floor: The limit's lower bound, as a share of the dimension's range.
            noise: Absolute lower bound of the limit in raw units, per dimension.
            ignored: Dimensions that are not looked at.
        """
        frames = max(1, math.floor(seconds * fps + 1e-6))
        values = _separated(actions, starts)
        period = np.array([_period(column) for column in values.T])
        values = unwrapped(values, period)
        filtered = np.stack([_median_filtered(column, 2 * frames + 1) for column in values.T], axis=1)
        ranges = np.array([_range(column) for column in filtered.T])
        ranges = np.where(period > 0, np.minimum(ranges, period), ranges)
        usual = np.median(ranges[ranges > 0]) if (ranges > 0).any() else 0.0
        ranges = np.maximum(ranges, _RESTING_SHARE * usual)
        least = np.maximum(floor * ranges, [_NOISE_DEVIATIONS * _noise(column) for column in values.T])
        for dimension, given in (noise or {}).items():
            least[dimension] = max(least[dimension], given)
        fast = np.array(
            [
                _fast_step(raw, smooth, _MOVING_RATE * spread / fps)
                for raw, smooth, spread in zip(values.T, filtered.T, ranges, strict=True)
            ]
        )
        limit = np.maximum(least, speed * fast) if usual else np.full(len(period), np.inf)
        limit[list(ignored)] = np.inf
        count = (spike_heights(values, frames) > np.maximum(least, fast)).sum(axis=0)
        common = tuple(np.flatnonzero(count > max(_FEW, _LARGEST_SHARE * len(actions))).tolist())
        limit[list(common)] = np.inf
        return cls(limit, frames, period, common)

    def heights(self, actions: np.ndarray) -> np.ndarray:
        """Height of the spike at each value of an episode (T, D), where it exceeds the limit, else 0; float64 (T, D)."""
        found = spike_heights(unwrapped(actions.astype(np.float64), self.period), self.frames)
        return np.where(found > self.limit, found, 0.0)


def spike_heights(values: np.ndarray, frames: int) -> np.ndarray:
    """How far each value (T, D) lies beyond both ends of the shortest excursion that it belongs to; 0 outside of any.

    An excursion of at most `frames` frames leaves the values beside it on one side, and those differ by at most half of
    its height.

    Returns:
        float64 (T, D); 0 at values that are not finite.
    """
    heights = np.zeros(values.shape)
    values = np.where(np.isfinite(values), values, np.nan)
    for width in range(1, frames + 1):
        count = len(values) - width - 1
        if count < 1:
            break
        before, after = values[:count], values[width + 1 :]
        with np.errstate(invalid="ignore"):
            side = np.sign(values[1 : count + 1] - before)
            inside = [side * values[1 + i : 1 + i + count] for i in range(width)]
            height = np.minimum.reduce(inside) - np.maximum(side * before, side * after)
            height = np.where(np.abs(after - before) <= height / 2, height, 0.0)
        for i in range(width):
            part = heights[1 + i : 1 + i + count]
            np.maximum(part, height, out=part)
    return heights


def unwrapped(values: np.ndarray, period: np.ndarray) -> np.ndarray:
    """Values (T, D) without the steps of a whole period that wrapped angles make."""
    if len(values) < 2 or not period.any():
        return values
    steps = np.nan_to_num(np.diff(values, axis=0), nan=0.0, posinf=0.0, neginf=0.0)
    turns = np.round(steps / np.where(period > 0, period, np.inf))
    result = values.copy()
    result[1:] -= np.cumsum(turns, axis=0) * period
    return result


def _separated(actions: np.ndarray, starts: Sequence[int] | np.ndarray) -> np.ndarray:
    """All episodes in one array, with a row of NaN between them and in place of rows that are not finite."""
    values = actions.astype(np.float64)
    values[~np.isfinite(values).all(axis=1)] = np.nan
    inner = [int(start) for start in starts if 0 < start < len(values)]
    return np.insert(values, inner, np.nan, axis=0)


def _period(column: np.ndarray) -> float:
    """Period of an angle that wraps: steps of a whole turn between values that are within one turn, as nearly all are."""
    finite = column[np.isfinite(column)]
    if not len(finite):
        return 0.0
    low, high = np.quantile(finite, [0.005, 0.995])
    steps = np.abs(np.diff(column))
    for period in _PERIODS:
        usual = (column > low - 0.25 * period) & (column < high + 0.25 * period)
        wraps = (steps > 0.9 * period) & (steps < 1.02 * period) & usual[1:] & usual[:-1]
        if wraps.any() and high - low <= 1.02 * period:
            return period
    return 0.0


def _median_filtered(column: np.ndarray, window: int) -> np.ndarray:
    """Running median, shorter than the column by `window` - 1; NaN where the window holds one."""
    if len(column) < window:
        return np.full(1, np.nan)
    medians: np.ndarray = np.median(np.lib.stride_tricks.sliding_window_view(column, window), axis=1)
    return medians


def _range(column: np.ndarray) -> float:
    finite = column[np.isfinite(column)]
    if not len(finite):
        return 0.0
    low, high = np.quantile(finite, [0.005, 0.995])
    return float(high - low) or float(finite.max() - finite.min())


def _noise(column: np.ndarray) -> float:
    """Standard deviation of white noise that would explain how far values lie from the middle of their neighbors."""
    away = column[1:-1] - (column[:-2] + column[2:]) / 2
    away = away[np.isfinite(away)]
    return float(1.4826 * np.median(np.abs(away)) / math.sqrt(1.5)) if len(away) else 0.0


def _fast_step(column: np.ndarray, filtered: np.ndarray, moving: float) -> float:
    """Step that 99% of the lasting moves stay below, or that 1% of all frames (and at least 8) exceed; the larger one."""
    lasting = np.abs(np.diff(filtered))
    lasting = lasting[lasting > moving]
    steps = np.abs(np.diff(column))
    steps = steps[np.isfinite(steps)]
    fast = float(np.quantile(lasting, 0.99)) if len(lasting) else 0.0
    common = max(_FEW, math.ceil(_COMMON_SHARE * len(steps)))
    return max(fast, float(np.partition(steps, -common - 1)[-common - 1])) if len(steps) > common else fast
