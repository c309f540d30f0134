"""Metrics of single steps, summed up between two log lines over steps and processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Gather = Callable[[list[Any]], list[Any]]


class StepMetrics:
    """Collects numbers by name. Means, but for names that end in `_min` or `_max`."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}
        self._kl: list[float] = []

    def add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._values.setdefault(name, []).append(value)

    def add_kl(self, value: float) -> None:
        """Approximate KL of one pass, for the decision to end an update."""
        self._kl.append(value)

    def last_kl(self, gather: Gather) -> float | None:
        """Mean over the passes and processes since the last call; None where nobody measured it."""
        values = gather(self._kl)
        self._kl = []
        return sum(values) / len(values) if values else None

    def reduce(self, gather: Gather) -> dict[str, float]:
        """Everything since the last call, over all processes."""
        parts: dict[str, list[float]] = {}
        for own in gather([self._values]):
            for name, values in own.items():
                parts.setdefault(name, []).extend(values)
        self._values = {}
        return {name: _reduced(name, values) for name, values in sorted(parts.items())}


def _reduced(name: str, values: list[float]) -> float:
    if name.endswith("_min"):
        return min(values)
    return max(values) if name.endswith("_max") else sum(values) / len(values)
