"""Checks that actions are finite and within the robot's joint and rate limits before they leave the server. numpy only.

The limits are in the embodiment's entry of the processor (`action_limits`), or in a YAML file given to the server:

    my_robot:
      low: [-2.9, -1.8, null]        # physical units of the actions; null: no limit
      high: [2.9, 1.8, 0.08]
      max_step: [0.05, 0.05, null]   # largest change from one control step to the next
      on_violation: clamp            # or refuse
      start_from_state: true         # the first step counts from the state; for actions that are target states
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


class UnsafeActions(ValueError):
    """Actions that must not reach a robot."""


@dataclass(frozen=True)
class ActionLimits:
    """Limits of one embodiment. A dimension without a limit has an infinite one.

    Attributes:
        low, high: float32 (D,), physical units.
        max_step: float32 (D,), physical units per control step.
        refuse: Whether to refuse actions beyond the limits instead of clamping them.
        start_from_state: Whether the first action must be within `max_step` of the present state.
        names: Names of the dimensions, for messages.
    """

    low: np.ndarray
    high: np.ndarray
    max_step: np.ndarray
    refuse: bool = False
    start_from_state: bool = False
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, entry: Mapping[str, Any] | None, dim: int, names: Sequence[str] | None = None) -> ActionLimits:
        """Limits from plain data, see the module. Without an entry nothing is limited.

        Raises:
            ValueError: Unknown fields, other lengths than `dim`, a lower limit above the upper one, or a step that is not
                positive.
        """
        entry = dict(entry or {})
        unknown = sorted(set(entry) - {"low", "high", "max_step", "on_violation", "start_from_state"})
        action = entry.get("on_violation", "clamp")
        if unknown or action not in ("clamp", "refuse"):
            wrong = f"unknown fields {unknown}" if unknown else f"on_violation {action!r}"
            raise ValueError(
                f"action_limits: expected low, high, max_step, on_violation (clamp or refuse) and start_from_state, got {wrong}"
            )
        low = _vector(entry.get("low"), "low", dim, -np.inf)
        high = _vector(entry.get("high"), "high", dim, np.inf)
        step = _vector(entry.get("max_step"), "max_step", dim, np.inf)
        if (low > high).any() or (step <= 0).any():
            raise ValueError("action_limits: expected low <= high and max_step > 0 in every dimension")
        start = bool(entry.get("start_from_state", False))
        return cls(low, high, step, action == "refuse", start, tuple(names or (f"action {i}" for i in range(dim))))

    def describe(self) -> dict[str, Any]:
        """Plain data for the metadata; empty without limits."""
        parts = {"low": self.low, "high": self.high, "max_step": self.max_step}
        finite = {
            name: [float(x) if np.isfinite(x) else None for x in values]
            for name, values in parts.items()
            if np.isfinite(values).any()
        }
        if not finite:
            return {}
        return {
            **finite,
            "on_violation": "refuse" if self.refuse else "clamp",
            "start_from_state": self.start_from_state,
        }

    def apply(self, actions: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Clamps a chunk to the limits, or refuses it.

        Args:
            actions: float32 (T, D), physical units.
            state: float32 (D_state,), physical units.

        Returns:
            (actions within the limits, one text for each limit and dimension that changed something). If nothing had to
            change, the array is the given one itself.

        Raises:
            UnsafeActions: Numbers that are not finite, or actions beyond the limits if `refuse` is set.
        """
        if not np.isfinite(actions).all():
            step, dim = np.argwhere(~np.isfinite(actions))[0].tolist()
            raise UnsafeActions(
                f"actions: expected finite numbers, got {actions[step, dim]} for {self.names[dim]} at step {step}; nothing "
                "was sent"
            )
        limited = np.clip(actions, self.low, self.high)
        notes = self._notes("joint limit", actions, limited)
        if np.isfinite(self.max_step).any():
            before_rate = limited
            limited = self._within_rate(limited, state)
            notes += self._notes("rate limit", before_rate, limited)
        if notes and self.refuse:
            raise UnsafeActions(f"actions: expected values within the limits, got {'; '.join(notes)}; nothing was sent")
        return (limited, notes) if notes else (actions, [])

    def _within_rate(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        limited = actions.copy()
        if self.start_from_state:
            previous = np.clip(state, self.low, self.high)
        else:
            previous = limited[0]
        for row in range(len(limited)):
            limited[row] = np.clip(limited[row], previous - self.max_step, previous + self.max_step)
            previous = limited[row]
        return limited

    def _notes(self, what: str, before: np.ndarray, after: np.ndarray) -> list[str]:
        changed = before != after
        return [
            f"{what}: {self.names[dim]}, {int(changed[:, dim].sum())} of {len(before)} steps, by up to "
            f"{np.abs(before - after)[:, dim].max():.3g}"
            for dim in np.flatnonzero(changed.any(axis=0))
        ]


def load_limits(path: str | Path) -> dict[str, dict[str, Any]]:
    """Embodiment to limits, from a YAML file; see the module.

    Raises:
        ValueError: The file cannot be read or is no map of maps.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"limits: cannot read {path}: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise ValueError(f"limits: {path}: expected a map from embodiment to limits")
    return content


def _vector(values: Any, name: str, dim: int, missing: float) -> np.ndarray:
    if values is None:
        return np.full(dim, missing, np.float32)
    if not isinstance(values, list) or len(values) != dim:
        raise ValueError(f"action_limits.{name}: expected a list of {dim} numbers or nulls, got {str(values)[:80]}")
    try:
        vector = np.array([missing if value is None else float(value) for value in values], np.float32)
        if np.isnan(
            vector
        ).any():  # every comparison with it is false: no action would be limited, or all would be lost
            raise ValueError
        return vector
    except (TypeError, ValueError):
        raise ValueError(f"action_limits.{name}: expected numbers or nulls, got {str(values)[:80]}") from None
