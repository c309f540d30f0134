"""Which frame of one episode corresponds to which of another, by dynamic time warping of their motions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .boundaries import gripper_dimensions, speeds
from .subtasks import Subtasks

_POINTS = 200  # of each episode that are compared
_GRIPPER_WEIGHT = 3.0  # a gripper says more about the sub-task than a joint


def transferred(
    subtasks: Subtasks,
    source: np.ndarray,
    target: np.ndarray,
    names: Sequence[str],
    ranges: np.ndarray,
    fps: float,
) -> Subtasks:
    """Sub-tasks of one episode at the corresponding frames of another.

    Args:
        subtasks: Of the source.
        source: float32 (T, D), the states that the sub-tasks belong to.
        target: float32 (T', D).
        names: Of the D dimensions.
        ranges: float64 (D,), see `value_ranges`.
        fps: Frames per second.

    Returns:
        In order; a sub-task for which no frame is left, since the next one begins there as well, is left out.
    """
    frames = matching_frames(
        _described(source, names, ranges, fps), _described(target, names, ranges, fps), [frame for frame, _ in subtasks]
    )
    found = {0 if frame == 0 else at: text for at, (frame, text) in zip(frames, subtasks, strict=True)}
    return tuple(sorted(found.items()))


def matching_frames(source: np.ndarray, target: np.ndarray, frames: Sequence[int]) -> list[int]:
    """For frames of `source` (T, D) the first frames of `target` (T', D) on the cheapest monotonic path between both."""
    at_source, at_target = _sampled(len(source)), _sampled(len(target))
    path = _cheapest_path(_distances(source[at_source], target[at_target]))
    found = []
    for frame in frames:
        position = int(np.searchsorted(at_source, frame))
        found.append(int(at_target[path[min(position, len(path) - 1)]]))
    return found


def _described(states: np.ndarray, names: Sequence[str], ranges: np.ndarray, fps: float) -> np.ndarray:
    weights = np.divide(1.0, ranges, out=np.zeros(len(ranges)), where=ranges > 0)
    grippers = gripper_dimensions(names)
    weights[grippers] *= _GRIPPER_WEIGHT
    speed = speeds(states, ranges, fps, grippers)
    scaled = np.nan_to_num(states.astype(np.float64) * weights, nan=0.0, posinf=0.0, neginf=0.0)
    return np.column_stack([scaled, speed / max(float(speed.max()), 1e-9)])


def _sampled(length: int) -> np.ndarray:
    return np.unique(np.linspace(0, length - 1, min(length, _POINTS)).round().astype(np.int64))


def _distances(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    squares = (source**2).sum(1)[:, None] + (target**2).sum(1)[None] - 2 * source @ target.T
    distances: np.ndarray = np.sqrt(np.maximum(squares, 0.0))
    return distances


def _cheapest_path(cost: np.ndarray) -> np.ndarray:
    """For each row the first column on the cheapest path from corner to corner, int64 (rows,)."""
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    for diagonal in range(rows + columns - 1):  # all cells of a diagonal at once
        row = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        column = diagonal - row
        best = np.minimum(np.minimum(total[row, column], total[row, column + 1]), total[row + 1, column])
        total[row + 1, column + 1] = cost[row, column] + best
    first = np.zeros(rows, np.int64)
    row, column = rows, columns
    while row > 0:
        first[row - 1] = column - 1
        steps = {(row - 1, column - 1): total[row - 1, column - 1], (row - 1, column): total[row - 1, column]}
        if column > 1:
            steps[(row, column - 1)] = total[row, column - 1]
        row, column = min(steps, key=lambda step: steps[step])
    return first
