"""Counters, gauges and latency histograms as Prometheus text (exposition format 0.0.4). Thread-safe, no dependency.

Written here since the official client keeps a global registry, and one process may hold several servers.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds in seconds: from a decoded message to a thought on a slow machine."""

PHASES = ("decode", "queue", "think", "queries", "denoise", "encode", "total")


class Metrics:
    """What `/metrics` shows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str, str], float] = {}
        self._histograms = {phase: [0] * (len(BUCKETS) + 1) for phase in PHASES}
        self._sums = dict.fromkeys(PHASES, 0.0)
        self._gauges: dict[str, tuple[str, Callable[[], float | Mapping[str, float]]]] = {}

    def count(self, name: str, label: str = "", value: str = "", by: float = 1) -> None:
        """Adds to a counter, `syvla_<name>_total{label="value"}`; values must come from a fixed set."""
        with self._lock:
            key = (name, label, value)
            self._counts[key] = self._counts.get(key, 0) + by

    def observe(self, phase: str, seconds: float) -> None:
        """Adds a latency to the histogram of one of `PHASES`."""
        with self._lock:
            self._histograms[phase][bisect_left(BUCKETS, seconds)] += 1
            self._sums[phase] += seconds

    def gauge(self, name: str, help: str, read: Callable[[], float | Mapping[str, float]]) -> None:
        """Registers a value that is read when the page is asked for, or values by `state`."""
        self._gauges[name] = (help, read)

    def value(self, name: str, label: str = "", value: str = "") -> float:
        """A counter's present value."""
        with self._lock:
            return self._counts.get((name, label, value), 0)

    def render(self) -> str:
        """The page."""
        lines: list[str] = []
        for name, (help, read) in self._gauges.items():
            lines += [f"# HELP syvla_{name} {help}", f"# TYPE syvla_{name} gauge"]
            found = read()
            by_label = (
                {f'{{state="{state}"}}': value for state, value in found.items()}
                if isinstance(found, Mapping)
                else {"": found}
            )
            lines += [f"syvla_{name}{label} {value:g}" for label, value in by_label.items()]
        with self._lock:
            for name in dict.fromkeys(key[0] for key in self._counts):
                lines.append(f"# TYPE syvla_{name}_total counter")
                for (other, label, value), count in self._counts.items():
                    if other == name:
                        labels = f'{{{label}="{value}"}}' if label else ""
                        lines.append(f"syvla_{name}_total{labels} {count:g}")
            lines += [
                "# HELP syvla_phase_seconds Latency of a request's phases.",
                "# TYPE syvla_phase_seconds histogram",
            ]
            for phase, counts in self._histograms.items():
                cumulative = 0
                for bound, count in zip([*BUCKETS, "+Inf"], counts, strict=True):
                    cumulative += count
                    lines.append(f'syvla_phase_seconds_bucket{{phase="{phase}",le="{bound}"}} {cumulative}')
                lines.append(f'syvla_phase_seconds_sum{{phase="{phase}"}} {self._sums[phase]:.6f}')
                lines.append(f'syvla_phase_seconds_count{{phase="{phase}"}} {cumulative}')
        return "\n".join(lines) + "\n"
