"""Which robots and dialects a server understands, and which one a request is in. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from syvla.serving.wire.dialects import Dialect, load_dialect

from .action_limits import ActionLimits
from .settings import ServerSettings


@dataclass(frozen=True)
class ServedRobot:
    """What the server knows about one embodiment.

    Attributes:
        name: Of the embodiment.
        state_dim: Dimensions of its state.
        dialects: Those that suit it, in the order of the settings.
        limits: Of its actions.
    """

    name: str
    state_dim: int
    dialects: tuple[Dialect, ...]
    limits: ActionLimits

    def read(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """Observation and instruction, see `Dialect.to_observation`; in the dialect that knows most of the keys.

        Raises:
            ValueError: In the words of that dialect.
        """
        return max(self.dialects, key=lambda dialect: dialect.recognised(request)).to_observation(request)


def served_robots(metadata: Mapping[str, Any], settings: ServerSettings) -> dict[str, ServedRobot]:
    """The robots of a policy with the dialects and limits that apply to them.

    Args:
        metadata: See `ServedPolicy.metadata`.
        settings: Of the server.

    Raises:
        ValueError: If settings and policy do not belong together.
    """
    entries = metadata["embodiments"]
    unknown = sorted({*settings.action_limits, *filter(None, [settings.embodiment])} - set(entries))
    if unknown:
        raise ValueError(f"embodiment: expected names out of {sorted(entries)}, got {unknown}")
    dialects = [load_dialect(name) for name in settings.dialects]
    return {name: _robot(name, entry, metadata["views"], dialects, settings) for name, entry in entries.items()}


def _robot(
    name: str, entry: Mapping[str, Any], views: list[str], dialects: list[Dialect], settings: ServerSettings
) -> ServedRobot:
    cameras = dict(settings.cameras or entry.get("cameras") or {})
    suitable, problems = [], []
    for dialect in dialects:
        try:
            fitted = dialect.for_views(views, cameras if dialect.camera_key else None).for_state(entry["state_dim"])
        except ValueError as error:
            problems.append(str(error))
        else:
            suitable.append(replace(fitted, max_pixels=settings.max_pixels))
    if not suitable:
        raise ValueError(f"dialects: none suits embodiment {name!r}: " + "; ".join(problems))
    given = settings.action_limits.get(name) or entry.get("limits")
    limits = ActionLimits.of(given, entry["action_dim"], entry.get("action_names"))
    if limits.start_from_state and entry["state_dim"] != entry["action_dim"]:
        raise ValueError(
            f"action_limits: start_from_state holds the first action against the state, so {name!r} would need as many state "
            f"as action dimensions; got {entry['state_dim']} and {entry['action_dim']}"
        )
    return ServedRobot(name, entry["state_dim"], tuple(suitable), limits)
