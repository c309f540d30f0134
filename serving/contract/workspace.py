"""A box that an end effector must not leave. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

_FIELDS = ("actions", "low", "high", "relative", "states")


@dataclass(frozen=True)
class Workspace:
    """Bounds of a position that some dimensions of the action command.

    Where the actions are positions, commands outside are moved to the box's surface. Where they are displacements
    (`relative`), the present position plus the displacement stays in the box; a robot that is outside may only come back,
    and is not moved by itself. What the robot does between two commands, and how well it follows them, is not bounded here.

    Attributes:
        actions: Dimensions of the action, as many as the box has axes.
        low, high: float64 (n,), in the actions' units and frame.
        relative: Whether the actions are displacements from the present state.
        states: Dimensions of the state that hold the present position; needed where `relative`.
    """

    actions: tuple[int, ...]
    low: np.ndarray
    high: np.ndarray
    relative: bool = False
    states: tuple[int, ...] = ()

    @classmethod
    def of(cls, entry: Any, dim: int) -> Workspace:
        """From plain data; see `action_limits`.

        Raises:
            ValueError: Unknown or missing fields, dimensions that the action does not have, or bounds that are no box.
        """
        if not isinstance(entry, Mapping) or set(entry) - set(_FIELDS) or not {"actions", "low", "high"} <= set(entry):
            raise ValueError(
                f"workspace: expected a map of actions, low, high and perhaps relative and states, got {str(entry)[:80]}"
            )
        actions, relative = _dimensions(entry["actions"], "actions"), entry.get("relative", False)
        states = _dimensions(entry.get("states", []), "states")
        if not isinstance(relative, bool) or relative != bool(states) or (states and len(states) != len(actions)):
            raise ValueError(
                "workspace: expected relative: true together with states, the position's dimensions of the state; got "
                f"relative={relative!r}, states={list(states)}"
            )
        try:
            low, high = (np.array(entry[name], np.float64) for name in ("low", "high"))
        except (TypeError, ValueError):
            low = high = np.zeros(0)
        if (
            not actions
            or max(actions) >= dim
            or not low.shape == high.shape == (len(actions),)
            or not (low < high).all()
        ):
            raise ValueError(
                f"workspace: expected dimensions below {dim} and as many numbers low < high, got {str(dict(entry))[:120]}"
            )
        return cls(actions, low, high, relative, states)

    def describe(self) -> dict[str, Any]:
        """Plain data, which `of` reads."""
        plain = {"actions": list(self.actions), "low": self.low.tolist(), "high": self.high.tolist()}
        return {**plain, "relative": True, "states": list(self.states)} if self.relative else plain

    def require(self, state: np.ndarray) -> None:
        """Raises ValueError for a state without the position."""
        if self.relative and len(state) <= max(self.states):
            raise ValueError(
                f"workspace: the position is in dimensions {list(self.states)} of the state, got {len(state)}"
            )

    def hold(self, commands: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Commands (n, D) within the box, float32; the given array where nothing had to change."""
        low, high = self.low, self.high
        if self.relative:
            at = np.asarray(state, np.float64)[list(self.states)]
            low, high = np.minimum(low, at) - at, np.maximum(high, at) - at
        wanted = commands[:, list(self.actions)]
        held = np.clip(wanted, low, high).astype(np.float32)
        if (held == wanted).all():
            return commands
        inside = commands.copy()
        inside[:, list(self.actions)] = held
        return inside


def joined_workspaces(first: Workspace | None, second: Workspace | None) -> Workspace | None:
    """Both boxes at once.

    Raises:
        ValueError: They bound different dimensions, or have nothing in common.
    """
    if first is None or second is None:
        return first or second
    if (first.actions, first.relative, first.states) != (second.actions, second.relative, second.states):
        raise ValueError("workspace: the server's and your own bound different dimensions; give the same ones")
    low, high = np.maximum(first.low, second.low), np.minimum(first.high, second.high)
    if not (low < high).all():
        raise ValueError("workspace: the server's box and your own have nothing in common")
    return replace(first, low=low, high=high)


def _dimensions(values: Any, name: str) -> tuple[int, ...]:
    plain = isinstance(values, list | tuple) and all(
        isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in values
    )
    if not plain or len(set(values)) != len(values):
        raise ValueError(f"workspace.{name}: expected a list of different dimensions, got {str(values)[:80]}")
    return tuple(values)
