"""What a robot's executor tells the server with a request: what it executed, clamped and held. numpy only.

Only the client knows it, so `/metrics` and the live page get it from here. It changes no answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

SOURCES = ("chunk", "hold", "slow", "callback", "correction")
COUNTS = ("steps", "limited", "gave_way", "seams", *SOURCES)
MOST_STEPS = 512
_FIELDS = ("counts", "first", "executed", "limited", "chunk_age_s", "seam")


@dataclass(frozen=True)
class ClientReport:
    """State of one executor when it asks.

    Attributes:
        counts: Some of `COUNTS`, since the executor was made; see `ChunkExecution.counts`.
        first: Number of the first command in `executed`, since the executor was made.
        executed: Commands that ran since the last answered request, float32 (n, D), physical units.
        limited: What limits changed in them, bool (n, D).
        chunk_age_s: Age of the observation of the chunk in use; None without a chunk.
        seam: Size of the last seam, physical units; None before the first one.
    """

    counts: Mapping[str, int]
    first: int
    executed: np.ndarray
    limited: np.ndarray
    chunk_age_s: float | None
    seam: float | None

    def plain(self) -> dict[str, Any]:
        """What goes into a request."""
        return {
            "counts": dict(self.counts),
            "first": self.first,
            "executed": np.asarray(self.executed, np.float32),
            "limited": np.asarray(self.limited, bool),
            "chunk_age_s": self.chunk_age_s,
            "seam": self.seam,
        }


def read_client_report(value: Any) -> ClientReport | None:
    """The report in a decoded request; None for None.

    Raises:
        ValueError: Names what was expected.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping) or set(map(str, value)) - set(_FIELDS):
        raise ValueError(f"client_report: expected a map with some of {', '.join(_FIELDS)}")
    counts = value.get("counts", {})
    if not isinstance(counts, Mapping) or any(name not in COUNTS or not _count(n) for name, n in counts.items()):
        raise ValueError(f"client_report.counts: expected some of {', '.join(COUNTS)} and whole numbers from 0")
    first = value.get("first", 0)
    if not _count(first):
        raise ValueError("client_report.first: expected a whole number from 0")
    executed = _numbers(value.get("executed"))
    limited = _flags(value.get("limited"), executed.shape)
    ages = {name: value.get(name) for name in ("chunk_age_s", "seam")}
    for name, age in ages.items():
        if age is not None and (isinstance(age, bool) or not isinstance(age, int | float) or not 0 <= age < 1e9):
            raise ValueError(f"client_report.{name}: expected a number from 0, or nothing")
    return ClientReport(dict(counts), first, executed, limited, ages["chunk_age_s"], ages["seam"])


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _numbers(value: Any) -> np.ndarray:
    if value is None:
        return np.zeros((0, 0), np.float32)
    try:
        numbers = np.asarray(value)
    except ValueError:
        numbers = np.array(None)
    if numbers.size == 0 and numbers.ndim in (1, 2):
        return np.zeros((0, 0), np.float32)
    if numbers.dtype.kind not in "iuf" or numbers.ndim != 2 or len(numbers) > MOST_STEPS:
        raise ValueError(f"client_report.executed: expected numbers (steps up to {MOST_STEPS}, action dimensions)")
    with np.errstate(over="ignore"):
        numbers = numbers.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise ValueError("client_report.executed: expected finite numbers")
    return numbers


def _flags(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    try:
        flags = np.zeros(shape, bool) if value is None else np.asarray(value)
    except ValueError:
        flags = np.array(None)
    if flags.size == 0 and 0 in shape:
        return np.zeros(shape, bool)
    if flags.dtype.kind != "b" or flags.shape != shape:
        raise ValueError(f"client_report.limited: expected true or false for each of executed's numbers, shape {shape}")
    return flags
