"""Source numbers to the dimensions of a state or an action: slices, units and signs, gripper conventions, differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .mapping import VectorSpec
from .source import SourceError


def next_value(values: np.ndarray) -> np.ndarray:
    """The value of the following frame; the last frame has none and repeats its own (it is dropped)."""
    following: np.ndarray = np.concatenate([values[1:], values[-1:]])
    return following


def next_difference(values: np.ndarray) -> np.ndarray:
    """What the value changes by until the following frame; 0 at the last one (it is dropped)."""
    difference: np.ndarray = next_value(values) - values
    return difference


def next_angle_difference(values: np.ndarray) -> np.ndarray:
    """`next_difference` of angles in radians, within [-pi, pi)."""
    turned: np.ndarray = (next_difference(values) + np.pi) % (2 * np.pi) - np.pi
    return turned


def closing_events(values: np.ndarray) -> np.ndarray:
    """Gripper commands that say only changes (above 0.1 closes, below -0.1 opens) as positions: 1 open, 0 closed.

    Before the first command the gripper is in the other position; without any command it is open. These are the rules of
    the Open X-Embodiment loaders.
    """
    result = np.empty(values.shape)
    for column in range(values.shape[1]):
        command = np.where(values[:, column] < -0.1, 1.0, np.where(values[:, column] > 0.1, 0.0, np.nan))
        given = np.flatnonzero(np.isfinite(command))
        result[:, column] = 1.0 if not len(given) else 1.0 - command[given[0]]
        for index in given:
            result[index:, column] = command[index]
    return result


def binarized(values: np.ndarray) -> np.ndarray:
    """Gripper openings to 1 (above 0.95) and 0 (below 0.05); values on the way become what the gripper reaches next.

    At the end of an episode, where nothing is reached, they become the nearer one.
    """
    result = np.empty(values.shape)
    reached = (values[-1] >= 0.5).astype(float)
    for index in range(len(values) - 1, -1, -1):
        reached = np.where(values[index] > 0.95, 1.0, np.where(values[index] < 0.05, 0.0, reached))
        result[index] = reached
    return result


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "next_value": next_value,
    "next_difference": next_difference,
    "next_angle_difference": next_angle_difference,
    "closing_events": closing_events,
    "binarized": binarized,
}


def assemble(specs: Sequence[VectorSpec], vectors: Mapping[str, np.ndarray], length: int) -> np.ndarray:
    """The vector (length, D) float32 that the specifications put together.

    Raises:
        SourceError: A source is missing, too narrow, or holds NaN or infinity; names it.
    """
    parts = []
    for spec in specs:
        if spec.source not in vectors:
            raise SourceError(f"{spec.source} is missing; the episode has {sorted(vectors)}")
        values = vectors[spec.source]
        if values.ndim != 2 or values.shape[1] < spec.end:
            raise SourceError(f"{spec.source}: expected at least {spec.end} numbers per frame, got {values.shape[1:]}")
        values = np.asarray(values[:length, spec.start : spec.end], np.float64)
        broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(broken):
            raise SourceError(f"{spec.source}: NaN or infinity in {len(broken)} frames, the first is {broken[0]}")
        if spec.change:
            values = CHANGES[spec.change](values)
        values = values * spec.scale + spec.offset
        parts.append(values if spec.clip is None else np.clip(values, *spec.clip))
    return np.concatenate(parts, axis=1).astype(np.float32)
