"""Where sub-tasks may begin, by the motion alone: a gripper opens or closes, or the arm comes to rest between two motions.

The rules and their constants are ours. They propose frames; a person says what begins there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_GRIPPER = re.compile(r"grip|finger|jaw|\bhand_open", re.IGNORECASE)
_ENOUGH_ROWS = 100_000  # for quantiles that thresholds are made of
_HALF = 0.5  # of a gripper's range: between open and closed
_HYSTERESIS = 0.15  # of a gripper's range, to either side of the middle
_SMOOTHING_S = 0.2
_REST = 0.35  # a rest is slower than this share of the episode's usual speed ...
_DEPTH = 0.5  # ... and lies below the motions on both sides by this share of it
_APART_S = 0.4  # the least time between two boundaries


@dataclass(frozen=True)
class Boundary:
    """A frame at which a sub-task may begin, and why."""

    frame: int
    reason: str


def gripper_dimensions(names: Sequence[str]) -> list[int]:
    """The dimensions that are grippers, by their names."""
    return [dimension for dimension, name in enumerate(names) if _GRIPPER.search(name)]


def value_ranges(values: np.ndarray) -> np.ndarray:
    """float64 (D,), distance of the 1% and 99% quantiles over a dataset; 0 where a dimension does not move.

    Args:
        values: (N, D); see `usual_values`.
    """
    low, high = usual_values(values)
    spread: np.ndarray = high - low
    return spread


def usual_values(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 1% and 99% quantiles of each dimension, float64 (D,) each; 0 where no value is finite.

    Args:
        values: (N, D). Of many rows every n-th one counts, at least 100,000.
    """
    some = values[:: max(1, len(values) // _ENOUGH_ROWS)].astype(np.float64)
    found = np.zeros((2, values.shape[1]))
    for dimension, column in enumerate(some.T):
        if len(known := column[np.isfinite(column)]):
            found[:, dimension] = np.quantile(known, [0.01, 0.99])
    return found[0], found[1]


def speeds(values: np.ndarray, ranges: np.ndarray, fps: float, ignored: Sequence[int] = ()) -> np.ndarray:
    """How fast the robot moves at each frame, in ranges per second; smoothed over 0.2 s.

    Args:
        values: (T, D), an episode's states.
        ranges: (D,), see `value_ranges`.
        fps: Frames per second.
        ignored: Dimensions left out, grippers for example.

    Returns:
        float64 (T,); where values are not finite, between those before and after.
    """
    used = [d for d in range(values.shape[1]) if ranges[d] > 0 and d not in set(ignored)]
    if len(values) < 2 or not used:
        return np.zeros(len(values))
    scaled = values[:, used].astype(np.float64) / ranges[used]
    with np.errstate(invalid="ignore"):
        steps = np.linalg.norm(np.diff(scaled, axis=0), axis=1) * fps
    steps = np.append(steps[:1], steps)
    known = np.isfinite(steps)
    if not known.any():
        return np.zeros(len(values))
    steps = np.interp(np.arange(len(steps)), np.flatnonzero(known), steps[known])
    width = min(len(steps), max(1, round(_SMOOTHING_S * fps)) | 1)
    padded = np.pad(steps, width // 2, mode="edge")
    smooth: np.ndarray = np.convolve(padded, np.ones(width) / width, mode="valid")[: len(steps)]
    return smooth


def motion_boundaries(
    states: np.ndarray,
    names: Sequence[str],
    ranges: np.ndarray,
    lows: np.ndarray,
    fps: float,
) -> list[Boundary]:
    """Proposes where sub-tasks of an episode begin, in order; the first is frame 0.

    Args:
        states: float32 (T, D), raw units.
        names: Of the D dimensions.
        ranges: (D,), see `value_ranges`.
        lows: (D,), the least usual value of each dimension, the 1% quantile.
        fps: Frames per second.
    """
    grippers = gripper_dimensions(names)
    found = [Boundary(0, "start")]
    for dimension in grippers:
        if ranges[dimension] > 0:
            opening = (states[:, dimension].astype(np.float64) - lows[dimension]) / ranges[dimension]
            found += [Boundary(frame, f"{names[dimension]} {change}") for frame, change in _changes(opening)]
    found += [Boundary(frame, "rest") for frame in _rests(speeds(states, ranges, fps, grippers), fps)]
    return _apart(found, len(states), max(1, round(_APART_S * fps)))


def _changes(opening: np.ndarray) -> list[tuple[int, str]]:
    """Frames at which a gripper, 0 at its least and 1 at its largest, passes the middle for good."""
    above = None
    changes = []
    for frame, value in enumerate(opening.tolist()):
        if not np.isfinite(value) or abs(value - _HALF) < _HYSTERESIS:
            continue
        now = value > _HALF
        if above is not None and now != above:
            changes.append((frame, "rises" if now else "falls"))
        above = now
    return changes


def _rests(speed: np.ndarray, fps: float) -> list[int]:
    """The slowest frame of each rest between two motions."""
    from scipy.signal import find_peaks

    moving = speed[speed > 0]
    if len(moving) < 3:
        return []
    usual = float(np.quantile(moving, 0.75))
    # What does not move before its first or after its last motion is no rest between two.
    peaks, _ = find_peaks(
        -speed, height=-_REST * usual, prominence=_DEPTH * usual, distance=max(1, round(_APART_S * fps))
    )
    return [int(peak) for peak in peaks]


def _apart(found: list[Boundary], length: int, least: int) -> list[Boundary]:
    """Drops what lies too near to another one; a gripper's change stands before a rest, and the start before all."""
    rank = {"start": 0, "rest": 2}
    kept: list[Boundary] = []
    for boundary in sorted(found, key=lambda one: (rank.get(one.reason, 1), one.frame)):
        if boundary.frame < length and all(abs(boundary.frame - other.frame) >= least for other in kept):
            kept.append(boundary)
    return sorted(kept, key=lambda one: one.frame)
