"""Which robots and dialects a server understands, and how it describes them to clients. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from syvla.serving.contract.action_limits import ActionLimits
from syvla.serving.contract.requests import PolicyBackend
from syvla.serving.wire.dialect_files import load_dialect
from syvla.serving.wire.dialects import Dialect

from .settings import ServerSettings

PROTOCOL_VERSION = 1


@dataclass(frozen=True)
class ServedRobot:
    """What the server knows about one embodiment.

    Attributes:
        name: Name of the embodiment.
        state_dim: Number of dimensions of the state.
        dialects: The dialects that suit the embodiment, in the order of the settings.
        limits: Limits of the actions.
    """

    name: str
    state_dim: int
    dialects: tuple[Dialect, ...]
    limits: ActionLimits


def served_robots(metadata: Mapping[str, Any], settings: ServerSettings) -> dict[str, ServedRobot]:
    """The robots of a policy with the dialects and limits that apply to them.

    Args:
        metadata: See `PolicyBackend.metadata`.
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
    limits = ActionLimits.of(given, entry["action_dim"], entry.get("action_names"), entry.get("control_hz"))
    if (
        limits.workspace is not None
        and limits.workspace.relative
        and max(limits.workspace.states) >= entry["state_dim"]
    ):
        raise ValueError(f"workspace.states: expected dimensions below {entry['state_dim']}, the state of {name!r}")
    if limits.needs_state and entry["state_dim"] != entry["action_dim"]:
        raise ValueError(
            f"action_limits: start_from_state and max_relative_target hold actions against the state, so {name!r} would need "
            f"as many state as action dimensions; got {entry['state_dim']} and {entry['action_dim']}"
        )
    return ServedRobot(name, entry["state_dim"], tuple(suitable), limits)


def describe_server(
    policy: PolicyBackend, robots: Mapping[str, ServedRobot], settings: ServerSettings
) -> dict[str, Any]:
    """What clients may know: the policy's own metadata, dialects, limits and the protocol's version."""
    described = policy.metadata()
    embodiments = {
        name: {
            **described["embodiments"][name],
            "dialects": {dialect.name: dialect.describe() for dialect in robot.dialects},
            "limits": robot.limits.describe(),
        }
        for name, robot in robots.items()
    }
    return {
        **described,
        "embodiments": embodiments,
        "default_embodiment": settings.embodiment or (next(iter(robots)) if len(robots) == 1 else None),
        "policy_version": policy.version,
        "protocol_version": PROTOCOL_VERSION,
        "think": settings.think,
        "client_reports": True,  # requests may carry a `ClientReport`
        "request_limits": {
            "max_message_bytes": settings.limits.max_message_bytes,
            "max_array_bytes": settings.limits.max_array_bytes,
            "max_pixels": settings.max_pixels,
            "max_memory_bytes": settings.max_memory_bytes,
            "max_new_tokens": settings.caps.max_new_tokens,
            "num_steps": settings.caps.num_steps,
            "deadline_s": settings.caps.deadline_s,
            "queue_size": settings.queue_size,
            "max_batch_size": settings.max_batch_size,
        },
    }
