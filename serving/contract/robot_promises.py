"""What a client is told about a robot and relies on, and whether another policy keeps it. No imports: for light clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PROMISED = (
    "state_dim",
    "action_dim",
    "state_names",
    "action_names",
    "state_units",
    "action_units",
    "control_hz",
    "cameras",
)
"""What a client was told about a robot when it connected. Its loop relies on it for as long as the connection lasts."""


def broken_promises(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What clients of one policy were told and does not hold for another one, one text each.

    Args:
        before, after: Metadata of the policies, see `PolicyBackend.metadata`; other servers' may lack any of it.
    """
    problems = []
    views, robots = after.get("views"), after.get("embodiments") or {}
    if before.get("views") is not None and views != before["views"]:
        problems.append(f"views: expected {before['views']}, got {views}")
    for robot, told in (before.get("embodiments") or {}).items():
        entry = robots.get(robot)
        if entry is None:
            problems.append(f"{robot}: expected this robot, got {sorted(robots)}")
            continue
        problems += [
            f"{robot}.{key}: expected {told[key]}, got {entry.get(key)}"
            for key in PROMISED
            if told.get(key) is not None and entry.get(key) != told[key]
        ]
    return problems
