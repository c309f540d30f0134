"""Results of the five benchmarks: numbers, under which conditions, and whether they may stand beside the paper's."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from syvla.durable_files import write_json

from .benchmarks import BENCHMARKS, Benchmark
from .hallusion_accuracy import METRICS
from .protocols import READABLE_SHARE, VLMEVALKIT, Protocol, chosen_protocol

RULE = "wrong, by rules alone"
"""The setting `judge` where no model judges."""

_KEYS = {
    "docvqa": {"anls": ("anls,none", 100.0)},
    "ai2d": {"accuracy": ("exact_match,flexible-extract", 100.0)},
    "mmmu": {"accuracy": ("mmmu_acc,none", 100.0)},
    "mme": {"perception": ("mme_perception_score,none", 1.0), "cognition": ("mme_cognition_score,none", 1.0)},
    "hallusionbench": {"aAcc": ("aAcc,none", 1.0), "qAcc": ("qAcc,none", 1.0), "fAcc": ("fAcc,none", 1.0)},
}


@dataclass
class BenchmarkResult:
    """One column.

    Attributes:
        score: Headline number in `unit`.
        parts: Numbers that it is made of.
        rows: Rows that were asked.
        official_rows: Rows of the official split.
        unparsable: Share of the answers that the protocol's readings cannot read, before a judge.
        seconds: Wall-clock time, loading of data and scoring included.
        damaged: Why a row, by its number, could not be asked; such a row counts as wrong.
        mended_rows: Rows that are shown with their images in their places, which lmms-eval itself would not do.
    """

    column: str
    task: str
    dataset: str
    unit: str
    score: float
    parts: dict[str, float]
    rows: int
    official_rows: int
    unparsable: float
    seconds: float
    damaged: dict[int, str] = field(default_factory=dict)
    mended_rows: int = 0


@dataclass
class VLMResult:
    """Results of one checkpoint by benchmark name, and the settings that they depend on."""

    benchmarks: dict[str, BenchmarkResult]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def protocol(self) -> Protocol:
        """Under which the numbers were made."""
        return chosen_protocol(self.settings.get("protocol", VLMEVALKIT.name))

    @property
    def complete(self) -> bool:
        """Whether every condition of the protocol holds, so that the numbers may stand beside others made with it."""
        return not self.departures()

    def departures(self) -> list[str]:
        """Every condition of the protocol that does not hold, in words."""
        limited = self.settings.get("limit") is not None
        departures = [
            f"{result.rows} of {result.official_rows} rows of {result.column}"
            for result in self.benchmarks.values()
            if limited or result.rows != result.official_rows
        ]
        for result in self.benchmarks.values():
            if result.damaged:
                departures.append(f"{len(result.damaged)} damaged rows of {result.column}")
            if 1.0 - result.unparsable < READABLE_SHARE:
                departures.append(f"{1.0 - result.unparsable:.1%} of the answers of {result.column} readable")
        if self.settings.get("max_new_tokens") is not None:
            departures.append(f"answers cut at {self.settings['max_new_tokens']} tokens")
        low, high = self.settings.get("pixel_limits", (None, None))
        if (low, high) != (self.protocol.min_pixels, self.protocol.max_pixels):
            departures.append(
                f"images of {low} to {high} pixels, where the protocol has {self.protocol.min_pixels} to "
                f"{self.protocol.max_pixels}"
            )
        if "hallusionbench" in self.benchmarks:
            if self.settings.get("headline", "mean") != "mean":
                departures.append(f"{self.settings['headline']} of HallBench, where tables print the mean of all three")
            if self.protocol.name == "lmms-eval" and self.settings.get("judge") == RULE:
                departures.append("HallBench judged by a rule, where lmms-eval asks a model")
        return departures

    @property
    def label(self) -> str:
        """What the numbers are: protocol, pixels, readable share, and whether they may be compared."""
        low, high = self.settings.get("pixel_limits", ("?", "?"))
        readable = min((1.0 - result.unparsable for result in self.benchmarks.values()), default=0.0)
        conditions = f"protocol {self.protocol.name}, images of {low} to {high} pixels, {readable:.1%} or more readable"
        departures = self.departures()
        if departures:
            return f"{conditions}; NOT comparable with other tables: " + ", ".join(departures)
        return f"{conditions}; official splits, complete: comparable with tables made by {self.protocol.name}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "label": self.label,
            "complete": self.complete,
            "columns": {result.column: result.score for result in self.benchmarks.values()},
            "benchmarks": {name: asdict(result) for name, result in self.benchmarks.items()},
            "settings": self.settings,
        }

    def to_text(self) -> str:
        """The columns as a Markdown table, under what they are, over what they depend on."""
        results = list(self.benchmarks.values())
        settings = self.settings
        lines = [
            f"{settings.get('model')}: {self.label}",
            "",
            "| " + " | ".join(["", *(result.column for result in results)]) + " |",
            "|---" * (len(results) + 1) + "|",
            "| score | " + " | ".join(f"{result.score:.2f}" for result in results) + " |",
            "| unit | " + " | ".join(result.unit for result in results) + " |",
            "| rows | " + " | ".join(str(result.rows) for result in results) + " |",
            "| unparsable | " + " | ".join(f"{result.unparsable:.1%}" for result in results) + " |",
            "",
        ]
        for result in results:
            if len(result.parts) > 1:
                parts = ", ".join(f"{name} {value:.2f}" for name, value in result.parts.items())
                lines.append(f"{result.column}: {parts}")
            for row, why in result.damaged.items():
                lines.append(f"{result.column}: row {row} counts as wrong: {why}")
            if result.mended_rows:
                lines.append(
                    f"{result.column}: {result.mended_rows} rows with images in their places, which lmms-eval cuts or swaps"
                )
        lines.append(
            "; ".join(
                [self.protocol.source, f"unreadable answers: {settings.get('judge')}", str(settings.get("dtype"))]
            )
        )
        return "\n".join(lines)

    def write(self, path: str | Path) -> None:
        """Writes `to_dict` as JSON, whole or not at all."""
        write_json(Path(path), self.to_dict(), allow_nan=True)


def read_scores(
    benchmark: Benchmark,
    metrics: dict[str, Any],
    rows: int,
    unparsable: float,
    seconds: float,
    headline: str = "mean",
    damaged: dict[int, str] | None = None,
) -> BenchmarkResult:
    """A column out of what lmms-eval returned, in the paper's units.

    Args:
        benchmark: Which.
        metrics: lmms-eval's `results[task]`. With few rows MME lacks the part that no row belongs to.
        rows, unparsable, seconds, damaged: See `BenchmarkResult`.
        headline: HallusionBench's headline: aAcc, qAcc, fAcc or mean.
    """
    parts = {}
    for name, (key, scale) in _KEYS[benchmark.name].items():
        value = metrics.get(key)
        if isinstance(value, (int, float)):
            parts[name] = scale * float(value)
        elif benchmark.name != "mme":
            raise ValueError(f"{benchmark.task}: lmms-eval returned no {key}, only {sorted(metrics)}")
    return result_of(benchmark, parts, rows, unparsable, seconds, headline, damaged)


def result_of(
    benchmark: Benchmark,
    parts: dict[str, float],
    rows: int,
    unparsable: float,
    seconds: float,
    headline: str = "mean",
    damaged: dict[int, str] | None = None,
) -> BenchmarkResult:
    """A column out of its parts; the arguments are those of `read_scores`."""
    parts = {name: round(value, 4) for name, value in parts.items()}
    unit = benchmark.unit
    if benchmark.name == "mme":
        score = sum(parts.values())
    elif benchmark.name == "hallusionbench":
        parts["mean"] = round(sum(parts[name] for name in METRICS) / len(METRICS), 4)
        score, unit = parts[headline], f"{headline} {unit}"
    else:
        (score,) = parts.values()
    return BenchmarkResult(
        benchmark.column,
        benchmark.task,
        benchmark.dataset,
        unit,
        score,
        parts,
        rows,
        BENCHMARKS[benchmark.name].rows,
        unparsable,
        round(seconds, 2),
        damaged or {},
    )
