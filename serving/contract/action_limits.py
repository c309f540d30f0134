"""Limits of commands: joint range, rate, acceleration and jerk, over the sequence that a robot really executes. numpy only.

The limits are in the embodiment's entry of the processor (`action_limits`), or in a YAML file given to the server:

    my_robot:
      low: [-2.9, -1.8, null]        # physical units of the actions; null: no limit
      high: [2.9, 1.8, 0.08]
      max_step: [0.05, 0.05, null]   # largest change from one control step to the next
      max_acceleration: [0.01, null, null]    # largest change of that change
      max_jerk: [0.004, null, null]  # largest change of that acceleration
      max_relative_target: [0.2, 0.2, null]   # largest distance from the present state; for actions that are target states
      on_violation: clamp            # or refuse
      start_from_state: true         # the first command counts from the state; for actions that are target states
      slow_start_steps: 20           # max_step grows to its full size over the first commands of an episode
      joints_from: {path: arm.urdf}  # low, high and max_step of the robot's URDF or MJCF; the tighter limit holds
      workspace:                     # box for an end effector; see `workspace.Workspace`
        actions: [0, 1, 2]
        low: [0.2, -0.4, 0.02]
        high: [0.7, 0.4, 0.5]

Instead of a list, a map from the names of some dimensions to numbers will do: `max_step: {elbow: 0.05}`.

`ActionLimits.apply` limits a chunk before it leaves the server, which may not know what ran before. `CommandLimiter` limits
each command before it goes to the robot: it knows what ran, so the limits hold over seams, skipped steps and holds as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .jerk_limit import Bounds, JerkLimiter
from .robot_description import limits_of_robot
from .workspace import Workspace, joined_workspaces

_BOUNDS = {"low": -np.inf, "high": np.inf}
_RATES = {"max_step": np.inf, "max_acceleration": np.inf, "max_jerk": np.inf, "max_relative_target": np.inf}
GAVE_WAY = "gave way"  # in the texts of `CommandLimiter.limit`
_TOLERANCE = 1e-6  # relative: commands are float32
_CHOICES = ("on_violation", "start_from_state", "slow_start_steps", "joints_from", "workspace")


class UnsafeActions(ValueError):
    """Actions that must not reach a robot."""


@dataclass(frozen=True)
class ActionLimits:
    """Limits of one embodiment. A dimension without a limit has an infinite one.

    Attributes:
        low, high: float32 (D,), physical units.
        max_step: float32 (D,), physical units per control step.
        max_acceleration: float32 (D,), physical units per control step squared.
        max_jerk: float32 (D,), physical units per control step cubed.
        max_relative_target: float32 (D,), physical units: largest distance of a command from the present state.
        refuse: Whether to refuse actions beyond the limits instead of clamping them.
        start_from_state: Whether the first command must be within `max_step` of the present state.
        names: Names of the dimensions, for messages.
    """

    low: np.ndarray
    high: np.ndarray
    max_step: np.ndarray
    max_acceleration: np.ndarray
    max_jerk: np.ndarray
    max_relative_target: np.ndarray
    refuse: bool = False
    start_from_state: bool = False
    slow_start_steps: int = 0
    workspace: Workspace | None = None
    names: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        entry: Mapping[str, Any] | None,
        dim: int,
        names: Sequence[str] | None = None,
        control_hz: float | None = None,
    ) -> ActionLimits:
        """Limits from plain data, see the module. Without an entry nothing is limited.

        Args:
            entry: The data.
            dim: Dimensions of the actions.
            names: Their names.
            control_hz: Control rate, for the speeds of `joints_from`.

        Raises:
            ValueError: Unknown fields, other lengths than `dim`, a lower limit above the upper one, a step, acceleration,
                jerk or distance that is not positive, or `joints_from` without names.
        """
        entry = dict(entry or {})
        known = (*_BOUNDS, *_RATES, *_CHOICES)
        unknown = sorted(set(entry) - set(known))
        action = entry.get("on_violation", "clamp")
        if unknown or action not in ("clamp", "refuse"):
            wrong = f"unknown fields {unknown}" if unknown else f"on_violation {action!r}"
            raise ValueError(f"action_limits: expected {', '.join(known)} (on_violation: clamp or refuse), got {wrong}")
        vectors = {
            name: _vector(entry.get(name), name, dim, missing, names) for name, missing in {**_BOUNDS, **_RATES}.items()
        }
        if entry.get("joints_from") is not None:
            of_robot = _of_description(entry["joints_from"], dim, names, control_hz)
            for name, values in of_robot.items():
                tighter = np.maximum if name == "low" else np.minimum
                vectors[name] = tighter(vectors[name], values)
        if (vectors["low"] > vectors["high"]).any():
            raise ValueError("action_limits: expected low <= high in every dimension")
        for name in _RATES:
            if (vectors[name] <= 0).any():
                raise ValueError(f"action_limits: expected {name} > 0 in every dimension")
        slow = entry.get("slow_start_steps", 0)
        if isinstance(slow, bool) or not isinstance(slow, int) or slow < 0:
            raise ValueError(f"action_limits.slow_start_steps: expected a number of control steps, got {slow!r}")
        if slow and not np.isfinite(vectors["max_step"]).any():
            raise ValueError(
                "action_limits.slow_start_steps: scales max_step, so it has no effect without; give max_step"
            )
        return cls(
            **vectors,
            refuse=action == "refuse",
            start_from_state=bool(entry.get("start_from_state", False)),
            slow_start_steps=slow,
            workspace=None if entry.get("workspace") is None else Workspace.of(entry["workspace"], dim),
            names=tuple(names or (f"action {i}" for i in range(dim))),
        )

    @property
    def needs_state(self) -> bool:
        """Whether commands are compared with the state, which then must have the same dimensions."""
        return self.start_from_state or bool(np.isfinite(self.max_relative_target).any())

    def describe(self) -> dict[str, Any]:
        """Plain data for the metadata, which `of` reads; empty without limits."""
        finite = {
            name: [float(x) if np.isfinite(x) else None for x in getattr(self, name)]
            for name in (*_BOUNDS, *_RATES)
            if np.isfinite(getattr(self, name)).any()
        }
        if not finite and self.workspace is None:
            return {}
        more: dict[str, Any] = {"slow_start_steps": self.slow_start_steps} if self.slow_start_steps else {}
        if self.workspace is not None:
            more["workspace"] = self.workspace.describe()
        return {
            **finite,
            **more,
            "on_violation": "refuse" if self.refuse else "clamp",
            "start_from_state": self.start_from_state,
        }

    def joined(self, other: ActionLimits) -> ActionLimits:
        """Both limits at once: the tighter one in every dimension."""
        tighter = {name: np.minimum(getattr(self, name), getattr(other, name)) for name in ("high", *_RATES)}
        return ActionLimits(
            low=np.maximum(self.low, other.low),
            **tighter,
            refuse=self.refuse or other.refuse,
            start_from_state=self.start_from_state or other.start_from_state,
            slow_start_steps=max(self.slow_start_steps, other.slow_start_steps),
            workspace=joined_workspaces(self.workspace, other.workspace),
            names=self.names,
        )

    def apply(
        self, actions: np.ndarray, state: np.ndarray, ran: np.ndarray | None = None, entered: int = 0
    ) -> tuple[np.ndarray, list[str]]:
        """Clamps a chunk to the limits, or refuses it.

        Args:
            actions: float32 (T, D), physical units.
            state: float32 (D_state,), physical units.
            ran: (n, D), physical units: commands that run directly before row `entered`, as far as known.
            entered: First row that can run. Rows before it are held to `low` and `high` only.

        Returns:
            (actions within the limits, one text for each limit and dimension that changed something). If nothing had to
            change, the array is the given one itself.

        Raises:
            UnsafeActions: Numbers that are not finite, or actions beyond the limits if `refuse` is set.
        """
        self._require_finite(actions)
        limited = np.clip(actions, self.low, self.high)
        notes = self._notes("joint limit", actions, limited)
        if self.workspace is not None and not self.workspace.relative:
            inside = self.workspace.hold(limited, state)
            notes += self._notes("workspace", limited, inside)
            limited = inside
        if any(np.isfinite(limit).any() for limit in (self.max_step, self.max_acceleration, self.max_jerk)):
            before_rate = limited.copy()
            limiter = CommandLimiter(self)
            limiter.begin_from(ran if ran is not None else np.zeros((0, actions.shape[1]), np.float32))
            if ran is None and self.start_from_state:
                limiter.begin_from(np.clip(state, self.low, self.high)[None])
            for row in range(entered, len(limited)):
                limited[row] = limiter.move(limited[row])
            notes += self._notes("rate limit", before_rate, limited)
        if notes and self.refuse:
            raise UnsafeActions(f"actions: expected values within the limits, got {'; '.join(notes)}; nothing was sent")
        return (limited, notes) if notes else (actions, [])

    def _require_finite(self, actions: np.ndarray) -> None:
        if not np.isfinite(actions).all():
            step, dim = np.argwhere(~np.isfinite(actions))[0].tolist()
            raise UnsafeActions(
                f"actions: expected finite numbers, got {actions[step, dim]} for {self.names[dim]} at step {step}; nothing "
                "was sent"
            )

    def _notes(self, what: str, before: np.ndarray, after: np.ndarray) -> list[str]:
        changed = before != after
        return [
            f"{what}: {self.names[dim]}, {int(changed[:, dim].sum())} of {len(before)} steps, by up to "
            f"{np.abs(before - after)[:, dim].max():.3g}"
            for dim in np.flatnonzero(changed.any(axis=0))
        ]


class CommandLimiter:
    """Limits commands one by one, from what was commanded before them.

    With `max_acceleration` or `max_jerk` a command also leaves room to brake before `low` and `high`, so that these limits
    never contradict each other. Where they cannot all hold, since `max_relative_target` or `workspace` moved the command, or
    since other limits held before, the first of this order holds: workspace, relative target, joint range, rate,
    acceleration, jerk.

    Args:
        limits: What holds.

    Attributes:
        limits: The same.
        last: The last command, float32 (D,); None before the first one.
        gave_way: How many commands went beyond `max_step`, `max_acceleration` or `max_jerk`, since a limit before it in the
            order needed it. Measured over the commands themselves.
    """

    def __init__(self, limits: ActionLimits) -> None:
        self.limits = limits
        self.last: np.ndarray | None = None
        self.gave_way: Counter[str] = Counter()
        self._velocity = np.zeros(len(limits.low), np.float64)
        self._new_episode = True
        self._commands = 0  # of the episode, for the slow start
        self._ran = np.zeros((0, len(limits.low)))  # up to 3 commands as they were sent, to measure what gave way
        self._smooth = np.flatnonzero(np.isfinite(limits.max_jerk))
        self._jerk = JerkLimiter(_bounds(limits, self._smooth))

    @property
    def velocity(self) -> np.ndarray:
        """The last change of the command, (D,), per control step."""
        return self._velocity

    def follow(self, other: CommandLimiter) -> None:
        """Goes on from where another limiter of the same robot is."""
        if other.last is not None and len(other.last) == len(self._velocity):
            if _motion_limits(self.limits) == _motion_limits(other.limits):
                self._jerk = copy(other._jerk)  # with the plan that it follows
                self.last, self._velocity, self._ran = other.last, other._velocity, other._ran
            else:
                self.begin_from(other._ran.astype(np.float32))
                self.last, self._velocity = other.last, other._velocity
            self._new_episode, self._commands, self.gave_way = other._new_episode, other._commands, other.gave_way

    def begin_from(self, ran: np.ndarray) -> None:
        """Takes note of commands that ran, float32 (n, D), the newest one last. What is not known of them counts as rest."""
        self._ran = np.asarray(ran, np.float64)[-3:]
        changes = np.diff(self._ran, axis=0)
        rest = np.zeros(len(self.limits.low))
        self.last = np.asarray(ran[-1], np.float32) if len(ran) else None
        self._velocity = changes[-1] if len(changes) else rest
        self._new_episode = False
        if self.last is not None:
            acceleration = changes[-1] - changes[-2] if len(changes) > 1 else rest
            self._jerk.begin_from(*(x[self._smooth] for x in (self._ran[-1], self._velocity, acceleration)))

    def new_episode(self) -> None:
        """With `start_from_state`, the next command counts from the state; otherwise from the last command."""
        self._new_episode, self._commands = True, 0

    def limit(self, action: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """The command to send in place of an action.

        Args:
            action: (D,), physical units.
            state: (D_state,) at this step, physical units.

        Returns:
            (float32 (D,), one text for each limit and dimension that changed something).

        Raises:
            UnsafeActions: Numbers that are not finite; or the action is beyond the limits, and `refuse` is set. The robot
                then still has its last command.
        """
        limits = self.limits
        wanted = np.array(action, np.float32)
        if wanted.shape != limits.low.shape:
            raise UnsafeActions(f"action: expected shape {limits.low.shape}, got {wanted.shape}; nothing was sent")
        limits._require_finite(wanted[None])
        if limits.workspace is not None:
            limits.workspace.require(state)
        if limits.needs_state and np.shape(state) != wanted.shape:
            raise ValueError(
                f"action_limits: start_from_state and max_relative_target compare commands with the state, so they need "
                f"{len(wanted)} dimensions of it; got shape {np.shape(state)}"
            )
        before = (self.last, self._velocity, copy(self._jerk), self._ran)
        if self._new_episode and limits.start_from_state:
            self.begin_from(np.clip(np.asarray(state, np.float32), limits.low, limits.high)[None])
        within = np.clip(wanted, limits.low, limits.high)
        moved = self.move(within)
        near = self._near(moved, state)
        command = self._in_workspace(near, state)
        stages = (
            ("joint limit", wanted, within),
            ("rate limit", within, moved),
            ("relative target", moved, near),
            ("workspace", near, command),
        )
        notes = [note for what, a, b in stages for note in limits._notes(what, a[None], b[None])]
        if notes and limits.refuse:
            self.last, self._velocity, self._jerk, self._ran = before
            raise UnsafeActions(f"action: expected values within the limits, got {'; '.join(notes)}; nothing was sent")
        self._new_episode = False
        self._commands += 1
        notes += self._giving_way(command)
        return (command if notes else np.array(action)), notes

    def move(self, wanted: np.ndarray) -> np.ndarray:
        """The command nearest to `wanted`, float32 (D,), within rate and acceleration; it becomes the last command."""
        limits, target = self.limits, np.asarray(wanted, np.float64)
        if self.last is None:
            self.begin_from(np.asarray(wanted, np.float32)[None])
            return np.array(wanted, np.float32)
        last = self.last.astype(np.float64)
        step, most = limits.max_step.astype(np.float64), limits.max_acceleration.astype(np.float64)
        slow = step * min(1.0, (self._commands + 1) / max(1, limits.slow_start_steps))
        if self._commands < limits.slow_start_steps:  # never below what the acceleration allows to brake to
            step = np.minimum(step, np.maximum(slow, np.abs(self._velocity) - most))
        up = np.minimum(np.minimum(step, self._velocity + most), _braking_velocity(limits.high - last, most))
        down = np.minimum(np.minimum(step, most - self._velocity), _braking_velocity(last - limits.low, most))
        command = np.asarray(np.clip(last + np.clip(target - last, -down, up), limits.low, limits.high), np.float32)
        # A command within the limits is passed on as it came: the sum above rounds.
        command = np.where((target - last <= up) & (target - last >= -down), np.asarray(wanted, np.float32), command)
        self.last, self._velocity = command, command.astype(np.float64) - last
        if len(self._smooth):
            own = self._smooth
            exact = self._jerk.move(np.asarray(wanted, np.float32)[own], slow[own], command[own])
            command[own] = np.clip(exact.astype(np.float32), limits.low[own], limits.high[own])
            self._velocity[own] = self._jerk.change
        return command.copy()

    def _near(self, command: np.ndarray, state: np.ndarray) -> np.ndarray:
        """`command` within `max_relative_target` of the state. A dimension that had to be moved begins to move afresh."""
        limits = self.limits
        if not np.isfinite(limits.max_relative_target).any():
            return command
        present = np.clip(np.asarray(state, np.float32), limits.low, limits.high)
        near = np.clip(command, present - limits.max_relative_target, present + limits.max_relative_target)
        near = np.where(np.isfinite(limits.max_relative_target), near, command).astype(np.float32)
        self._begin_afresh(near, near != command)
        return near.copy()

    def _in_workspace(self, command: np.ndarray, state: np.ndarray) -> np.ndarray:
        """`command` within the workspace. A dimension that had to be moved begins to move afresh."""
        if self.limits.workspace is None:
            return command
        inside: np.ndarray = self.limits.workspace.hold(command[None], state)[0]
        self._begin_afresh(inside, inside != command)
        return inside.copy()

    def _begin_afresh(self, command: np.ndarray, moved: np.ndarray) -> None:
        self.last, self._velocity = command, np.where(moved, 0.0, self._velocity)
        if moved[self._smooth].any():
            self._jerk.stopped(command[self._smooth], moved[self._smooth])

    def _giving_way(self, command: np.ndarray) -> list[str]:
        """One text for each limit and dimension that the sent commands went beyond; counted."""
        limits, notes = self.limits, []
        before = self._ran[-1:] if self._ran.shape[0] else self._ran
        self._ran = np.concatenate([self._ran, command[None].astype(np.float64)])[-4:]
        for order, name in enumerate(("max_step", "max_acceleration", "max_jerk"), start=1):
            if len(self._ran) <= order or not len(before):
                break
            limit = getattr(limits, name).astype(np.float64)
            found = np.abs(np.diff(self._ran, n=order, axis=0)[-1])
            beyond = found > limit * (1 + _TOLERANCE) + 2**order * _TOLERANCE * np.maximum(1, np.abs(before[-1]))
            self.gave_way[name] += int(beyond.any())
            notes += [f"{name} {GAVE_WAY}: {limits.names[dim]}, {found[dim]:.3g}" for dim in np.flatnonzero(beyond)]
        return notes


def _motion_limits(limits: ActionLimits) -> list[list[float]]:
    """What a plan to stop depends on."""
    return [getattr(limits, name).tolist() for name in ("low", "high", "max_step", "max_acceleration", "max_jerk")]


def _bounds(limits: ActionLimits, dims: np.ndarray) -> Bounds:
    names = ("low", "high", "max_step", "max_acceleration", "max_jerk")
    return Bounds(*(getattr(limits, name)[dims].astype(np.float64) for name in names))


def _braking_velocity(room: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Largest change per step from which a dimension can still stop within `room`, slowing down by `most` per step.

    From v, the steps v, v - a, v - 2a, ... cover (m + 1) v - a m (m + 1) / 2 with m = floor(v / a); solved for v.
    Without a limit of the acceleration that is `room` itself.
    """
    room = np.maximum(np.asarray(room, np.float64), 0.0)
    bounded = np.isfinite(most) & np.isfinite(room)
    a, distance = np.where(bounded, most, 1.0), np.where(bounded, room, 0.0)
    m = np.floor((np.sqrt(1 + 8 * distance / a) - 1) / 2)
    return np.where(bounded, (distance + a * m * (m + 1) / 2) / (m + 1), room)


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


def _of_description(
    chosen: Any, dim: int, names: Sequence[str] | None, control_hz: float | None
) -> dict[str, np.ndarray]:
    """The vectors of `joints_from`."""
    if not isinstance(chosen, Mapping) or not isinstance(chosen.get("path"), str) or set(chosen) - {"path", "joints"}:
        raise ValueError(
            f"action_limits.joints_from: expected {{path: FILE, joints: {{action: joint}}}}, got {str(chosen)[:80]}"
        )
    if not names or len(names) != dim:
        raise ValueError(
            "action_limits.joints_from: needs the names of the actions' dimensions, and the robot has none"
        )
    joints = chosen.get("joints") or {}
    return {
        name: _vector(values, name, dim, -np.inf if name == "low" else np.inf)
        for name, values in limits_of_robot(chosen["path"], names, control_hz, joints).items()
    }


def _vector(values: Any, name: str, dim: int, missing: float, names: Sequence[str] | None = None) -> np.ndarray:
    if values is None:
        return np.full(dim, missing, np.float32)
    if isinstance(values, Mapping):
        if stray := sorted(set(map(str, values)) - set(names or ())):
            raise ValueError(f"action_limits.{name}: expected names out of {list(names or ())}, got {stray}")
        values = [values.get(own) for own in names or ()]
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
