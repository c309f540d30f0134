"""From a decoded message to an `ActRequest`: the server's own options, and the observation in a dialect. No torch."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from syvla.serving.contract.requests import (
    MOST_REPORTED_STEPS,
    REPORTED_COUNTS,
    ActRequest,
    ClientReport,
    PreviousChunk,
)

from .dialects import Dialect, best_dialect, require_magnitude
from .msgpack_codec import shown

MAX_NAME_LENGTH = 128
MAX_SEED = 2**63 - 1
MAX_GUIDANCE_WEIGHT = 100.0
"""Largest clip of the guidance of real-time chunking. Ours: its paper takes 5, and far larger ones make the flow diverge."""
OPTIONS = (
    "seed",
    "think",
    "max_new_tokens",
    "num_steps",
    "noise",
    "embodiment",
    "session",
    "session_id",
    "episode_id",
    "reset",
    "deadline_ms",
    "request_id",
    "executed_steps",
    "observe_only",
    "action",
    "intervention",
    "prev_chunk",
    "delay_steps",
    "max_guidance_weight",
    "known_actions",
    "client_report",
)
"""Entries of a request that are the server's own. All others belong to the observation. `session` means `session_id`."""

REPORT_FIELDS = ("counts", "first", "executed", "limited", "chunk_age_s", "seam")
"""Entries of a request's `client_report`."""


@dataclass(frozen=True)
class OptionCaps:
    """What a client may ask for at most; one request must not hold the machine for long."""

    max_new_tokens: int = 256
    num_steps: int = 50
    deadline_s: float = 60.0


@dataclass(frozen=True)
class RequestDefaults:
    """What holds for a request that does not say.

    Attributes:
        embodiment: Robot; None: the policy's only robot.
        think: See `ActRequest`.
    """

    embodiment: str | None = None
    think: bool | int = False


def read_request(
    message: Any,
    dialects: Mapping[str, Sequence[Dialect]],
    caps: OptionCaps,
    defaults: RequestDefaults,
    connection: str | None = None,
) -> ActRequest:
    """The request in a decoded message.

    Args:
        message: What a codec decoded.
        dialects: Robot to the dialects that suit it.
        caps: What may be asked for.
        defaults: For what the message leaves open.
        connection: Session of a request that names none.

    Raises:
        ValueError: Names the entry, what was expected and what came.
    """
    options, observation = split_options(message, caps)
    name = options.pop("embodiment") or defaults.embodiment or (next(iter(dialects)) if len(dialects) == 1 else None)
    if name is None or name not in dialects:
        raise ValueError(f"embodiment: expected one of {sorted(dialects)}, got {name!r}")
    images, state, instruction = best_dialect(dialects[name], observation).read(observation)
    think = options.pop("think")
    return ActRequest(
        images,
        state,
        instruction,
        embodiment=name,
        think=defaults.think if think is None else think,
        session=options.pop("session") or connection,
        **options,
    )


def split_options(message: Any, caps: OptionCaps) -> tuple[dict[str, Any], dict[str, Any]]:
    """Takes the server's own entries out of a message.

    Returns:
        (fields of `ActRequest`, checked, with None where the client did not say; the other entries as they came).

    Raises:
        ValueError: Names the option, what was expected and what came.
    """
    if not isinstance(message, Mapping):
        raise ValueError(f"request: expected a map, got {type(message).__name__}")
    given = {name: _plain(message[name]) for name in OPTIONS if message.get(name) is not None}
    others = {key: value for key, value in message.items() if key not in OPTIONS}
    seed = _integer(given, "seed", 0, MAX_SEED)
    think = given.get("think")
    if think is not None and not isinstance(think, bool):
        think = _integer(given, "think", 1, 10**6)
    return {
        "seed": secrets.randbits(31) if seed is None else seed,
        "think": think,
        "max_new_tokens": _integer(given, "max_new_tokens", 1, caps.max_new_tokens),
        "num_steps": _integer(given, "num_steps", 1, caps.num_steps),
        "noise": _noise(given),
        "embodiment": _name(given, "embodiment"),
        "session": _name(given, "session_id") or _name(given, "session"),
        "episode_id": _name(given, "episode_id"),
        "reset": _flag(given, "reset"),
        "deadline_s": _deadline_seconds(given, caps.deadline_s),
        "request_id": _name(given, "request_id"),
        "executed_steps": _integer(given, "executed_steps", 0, 10**6),
        "observe_only": _flag(given, "observe_only"),
        "correction": _correction(given),
        "previous": _previous_chunk(given),
        "client_report": read_client_report(given.get("client_report")),
    }, others


def _plain(value: Any) -> Any:
    """Numpy scalars and arrays without axes as plain numbers, since clients send both."""
    return (
        value.item() if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not value.ndim) else value
    )


def _integer(given: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = whole(given.get(name))
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


def _deadline_seconds(given: Mapping[str, Any], most: float) -> float | None:
    value = given.get("deadline_ms")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"deadline_ms: expected a positive number of milliseconds, got {shown(value)}")
    return min(value, 1000 * most) / 1000


def _previous_chunk(given: Mapping[str, Any]) -> PreviousChunk | None:
    if "prev_chunk" not in given:
        for name in ("delay_steps", "max_guidance_weight", "known_actions"):
            if name in given:
                raise ValueError(f"{name}: expected together with prev_chunk, got it alone")
        return None
    chunk = _numbers("prev_chunk", given["prev_chunk"], 2, "(steps, action dimensions)")
    weight = given.get("max_guidance_weight")
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if weight is not None and not (number and 0 < weight <= MAX_GUIDANCE_WEIGHT):
        raise ValueError(
            f"max_guidance_weight: expected a number above 0, up to {MAX_GUIDANCE_WEIGHT:g}, got {shown(weight)}"
        )
    return PreviousChunk(
        chunk,
        _integer(given, "delay_steps", 0, len(chunk)) or 0,
        None if weight is None else float(weight),
        _flag(given, "known_actions"),
    )


def _noise(given: Mapping[str, Any]) -> np.ndarray | None:
    """Initial noise of the flow, float32 (steps, action dimensions); the policy knows how many of each."""
    if "noise" not in given:
        return None
    if _flag(given, "observe_only"):
        raise ValueError("noise: has no effect with observe_only: true, which asks for no actions; leave it out")
    return _numbers("noise", given["noise"], 2, "(steps, action dimensions)")


def _correction(given: Mapping[str, Any]) -> np.ndarray | None:
    """The command of a person who acts, float32 (D_action,); None where nobody does."""
    acts = _flag(given, "intervention")
    if not acts:
        if "action" in given:
            raise ValueError(
                "action: expected together with intervention: true, as the command of a person who acts instead of the policy; "
                "leave it out otherwise, since the server knows the policy's own commands"
            )
        return None
    if "action" not in given:
        raise ValueError(
            "intervention: expected together with action, the person's command (action dimensions,) in physical units; got it "
            "alone"
        )
    if not _flag(given, "observe_only"):
        raise ValueError(
            "intervention: expected with observe_only: true, since nobody needs the policy's actions while a person acts"
        )
    return _numbers("action", given["action"], 1, "(action dimensions,)")


def whole(value: Any) -> Any:
    """83 for 83.0, which JSON and its schemas call the same number; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plain_numbers(value: Any) -> np.ndarray:
    """An array of numbers or nested lists of them. Anything else, such as rows of unequal length, gives no number's type.

    numpy itself reads `[True, 0.5]` as 1.0 and 0.5.
    """
    try:
        return np.array(None) if _holds_flags(value) else np.asarray(value)
    except ValueError:
        return np.array(None)


def _holds_flags(value: Any) -> bool:
    return any(map(_holds_flags, value)) if isinstance(value, list) else isinstance(value, bool)


def _numbers(name: str, value: Any, axes: int, shape: str) -> np.ndarray:
    """Finite numbers, float32. `shape` says in words which `axes` are expected."""
    numbers = _plain_numbers(value)
    if numbers.dtype.kind not in "iuf":
        raise ValueError(f"{name}: expected numbers {shape}, got {shown(value)}")
    with np.errstate(over="ignore"):
        array = numbers.astype(np.float32)
    if array.ndim != axes or not array.size or not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers {shape}, got shape {array.shape}")
    require_magnitude(name, numbers)
    return array


# ---------------------------------------------------------------------- the executor's report


def read_client_report(value: Any) -> ClientReport | None:
    """The report in a decoded request; None for None.

    Raises:
        ValueError: Names what was expected.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping) or set(map(str, value)) - set(REPORT_FIELDS):
        raise ValueError(f"client_report: expected a map with some of {', '.join(REPORT_FIELDS)}")
    counts = value.get("counts", {})
    if not isinstance(counts, Mapping) or any(
        name not in REPORTED_COUNTS or not _is_count(n) for name, n in counts.items()
    ):
        raise ValueError(
            f"client_report.counts: expected some of {', '.join(REPORTED_COUNTS)} and whole numbers from 0"
        )
    counts = {name: whole(count) for name, count in counts.items()}
    first = whole(value.get("first", 0))
    if not _is_count(first):
        raise ValueError("client_report.first: expected a whole number from 0")
    executed = _executed_commands(value.get("executed"))
    limited = _limited_flags(value.get("limited"), executed.shape)
    ages = {name: value.get(name) for name in ("chunk_age_s", "seam")}
    for name, age in ages.items():
        if age is not None and (isinstance(age, bool) or not isinstance(age, int | float) or not 0 <= age < 1e9):
            raise ValueError(f"client_report.{name}: expected a number from 0, or nothing")
    return ClientReport(dict(counts), first, executed, limited, ages["chunk_age_s"], ages["seam"])


def _is_count(value: Any) -> bool:
    value = whole(value)
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _executed_commands(value: Any) -> np.ndarray:
    if value is None:
        return np.zeros((0, 0), np.float32)
    numbers = _plain_numbers(value)
    if numbers.size == 0 and numbers.ndim in (1, 2):
        return np.zeros((0, 0), np.float32)
    if numbers.dtype.kind not in "iuf" or numbers.ndim != 2 or len(numbers) > MOST_REPORTED_STEPS:
        raise ValueError(
            f"client_report.executed: expected numbers (steps up to {MOST_REPORTED_STEPS}, action dimensions)"
        )
    with np.errstate(over="ignore"):
        numbers = numbers.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise ValueError("client_report.executed: expected finite numbers")
    return numbers


def _limited_flags(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    try:
        flags = np.zeros(shape, bool) if value is None else np.asarray(value)
    except ValueError:
        flags = np.array(None)
    if flags.size == 0 and 0 in shape:
        return np.zeros(shape, bool)
    if flags.dtype.kind != "b" or flags.shape != shape:
        raise ValueError(f"client_report.limited: expected true or false for each of executed's numbers, shape {shape}")
    return flags
