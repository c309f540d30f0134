"""The server's own entries of a request, apart from the observation: seed, thinking, limits, session. No torch."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .array_bytes import shown

MAX_NAME_LENGTH = 128
MAX_SEED = 2**63 - 1
POLICY_OPTIONS = ("prev_chunk", "delay_steps")
"""Entries that the policy reads itself; see `syvla.serving.policies.chunk_stitching`."""


@dataclass(frozen=True)
class OptionCaps:
    """What a client may ask for at most; one request must not hold the machine for long."""

    max_new_tokens: int = 256
    num_steps: int = 50
    deadline_s: float = 60.0


@dataclass(frozen=True)
class RequestOptions:
    """Options of one request; None where the client did not say.

    Attributes:
        seed: Of the flow's noise; drawn where the client gave none.
        think: True or False, or k: at every k-th call of the session.
        max_new_tokens, num_steps: As in `SyVLAPolicy`, within the caps.
        embodiment: Name of the robot.
        session: Who asks, over several connections.
        episode_id: Name of the episode; another one than before begins a new episode.
        reset: A new episode begins with this request.
        deadline_s: Seconds after which an answer is of no use.
        request_id: Returned as it came. The session's last one again means that its answer was lost: nothing happens twice.
        executed_steps: How many actions of the previous chunk ran, for the recorder.
        observe_only: The observation of a step at which no actions are asked for, for the recorder.
        policy: Entries for the policy, see `POLICY_OPTIONS`.
    """

    seed: int
    think: bool | int | None = None
    max_new_tokens: int | None = None
    num_steps: int | None = None
    embodiment: str | None = None
    session: str | None = None
    episode_id: str | None = None
    reset: bool = False
    deadline_s: float | None = None
    request_id: str | None = None
    executed_steps: int | None = None
    observe_only: bool = False
    policy: Mapping[str, Any] = field(default_factory=dict)

    def after_reset(self) -> RequestOptions:
        """The options once the previous episode has ended: they say nothing about its last chunk any more."""
        return replace(self, executed_steps=None)


_OPTIONS = (
    "seed",
    "think",
    "max_new_tokens",
    "num_steps",
    "embodiment",
    "session",
    "session_id",
    "episode_id",
    "reset",
    "deadline_ms",
    "request_id",
    "executed_steps",
    "observe_only",
    *POLICY_OPTIONS,
)


def split_options(request: Any, caps: OptionCaps) -> tuple[RequestOptions, dict[str, Any]]:
    """Takes the options out of a request.

    Args:
        request: A decoded request.
        caps: What may be asked for.

    Returns:
        (options, the rest: the observation in some dialect).

    Raises:
        ValueError: Names the option, what was expected and what came.
    """
    if not isinstance(request, Mapping):
        raise ValueError(f"request: expected a map, got {type(request).__name__}")
    given = {name: _plain(request[name]) for name in _OPTIONS if request.get(name) is not None}
    rest = {key: value for key, value in request.items() if key not in _OPTIONS}
    seed = _integer(given, "seed", 0, MAX_SEED)
    think = given.get("think")
    if think is not None and not isinstance(think, bool):
        think = _integer(given, "think", 1, 10**6)
    deadline = given.get("deadline_ms")
    if deadline is not None and (
        isinstance(deadline, bool) or not isinstance(deadline, int | float) or not deadline > 0
    ):
        raise ValueError(f"deadline_ms: expected a positive number of milliseconds, got {shown(deadline)}")
    return RequestOptions(
        seed=secrets.randbits(31) if seed is None else seed,
        think=think,
        max_new_tokens=_integer(given, "max_new_tokens", 1, caps.max_new_tokens),
        num_steps=_integer(given, "num_steps", 1, caps.num_steps),
        embodiment=_name(given, "embodiment"),
        session=_name(given, "session_id") or _name(given, "session"),
        episode_id=_name(given, "episode_id"),
        reset=_flag(given, "reset"),
        deadline_s=None if deadline is None else min(deadline, 1000 * caps.deadline_s) / 1000,
        request_id=_name(given, "request_id"),
        executed_steps=_integer(given, "executed_steps", 0, 10**6),
        observe_only=_flag(given, "observe_only"),
        policy=_policy_options(given),
    ), rest


def _plain(value: Any) -> Any:
    """Numpy scalars and arrays without axes as plain numbers, since clients send both."""
    return (
        value.item() if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not value.ndim) else value
    )


def _integer(given: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name}: expected an integer from {low} to {high}, got {shown(value)}")
    return value


def _name(given: Mapping[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_LENGTH or not value.isprintable():
        raise ValueError(f"{name}: expected a text of 1 to {MAX_NAME_LENGTH} printable characters, got {shown(value)}")
    return value


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected true or false, got {shown(value)}")
    return value


def _policy_options(given: Mapping[str, Any]) -> dict[str, Any]:
    options = {name: given[name] for name in POLICY_OPTIONS if name in given}
    if "prev_chunk" not in options:
        if options:
            raise ValueError("delay_steps: expected together with prev_chunk, got it alone")
        return {}
    value = options["prev_chunk"]
    try:
        given_chunk = np.asarray(value)
    except ValueError:  # rows of unequal length
        given_chunk = np.array(None)
    if given_chunk.dtype.kind not in "iuf":
        raise ValueError(f"prev_chunk: expected numbers (steps, action dimensions), got {shown(value)}")
    with np.errstate(over="ignore"):
        chunk = given_chunk.astype(np.float32)
    if chunk.ndim != 2 or not chunk.size or not np.isfinite(chunk).all():
        raise ValueError(f"prev_chunk: expected finite numbers (steps, action dimensions), got shape {chunk.shape}")
    delay = _integer(given, "delay_steps", 0, len(chunk))
    return {"prev_chunk": chunk, "delay_steps": delay or 0}
