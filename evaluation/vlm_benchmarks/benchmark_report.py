"""Results of the five benchmarks: numbers, under which conditions, and whether they may stand beside the paper's."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from syvla.durable_files import write_json

from .benchmarks import BENCHMARKS, Benchmark

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
        unparsable: Share of the answers that the benchmark's own scoring cannot read.
        seconds: Wall-clock time, loading of data and scoring included.
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


@dataclass
class VLMResult:
    """Results of one checkpoint by benchmark name, and the settings that they depend on."""

    benchmarks: dict[str, BenchmarkResult]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether the official splits were asked in full, as the tasks ask, so that numbers may stand beside the paper's."""
        return not self._departures()

    def _departures(self) -> list[str]:
        limited = self.settings.get("limit") is not None
        departures = [
            f"{result.rows} of {result.official_rows} rows of {result.column}"
            for result in self.benchmarks.values()
            if limited or result.rows != result.official_rows
        ]
        if self.settings.get("max_new_tokens") is not None:
            departures.append(f"answers cut at {self.settings['max_new_tokens']} tokens")
        return departures

    @property
    def label(self) -> str:
        """What the numbers are."""
        departures = self._departures()
        if departures:
            return "SUBSET, not comparable with the paper's table: " + ", ".join(departures)
        return "official splits, complete: comparable with Table 2 of the paper"

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
        low, high = settings.get("pixel_limits", ("?", "?"))
        conditions = [f"lmms-eval {settings.get('lmms_eval')}"]
        if "hallusionbench" in self.benchmarks:
            conditions.append(f"HallBench judged by {settings.get('judge')}")
        conditions += [f"images scaled into {low} to {high} pixels", str(settings.get("dtype"))]
        lines.append("; ".join(conditions))
        return "\n".join(lines)

    def write(self, path: str | Path) -> None:
        """Writes `to_dict` as JSON, whole or not at all."""
        write_json(Path(path), self.to_dict(), allow_nan=True)


def read_scores(
    benchmark: Benchmark, metrics: dict[str, Any], rows: int, unparsable: float, seconds: float, headline: str = "mean"
) -> BenchmarkResult:
    """A column out of what lmms-eval returned, in the paper's units.

    Args:
        benchmark: Which.
        metrics: lmms-eval's `results[task]`. With few rows MME lacks the part that no row belongs to.
        rows, unparsable, seconds: See `BenchmarkResult`.
        headline: HallusionBench's headline: aAcc, qAcc, fAcc or mean.
    """
    parts = {}
    for name, (key, scale) in _KEYS[benchmark.name].items():
        value = metrics.get(key)
        if isinstance(value, (int, float)):
            parts[name] = round(scale * float(value), 4)
        elif benchmark.name != "mme":
            raise ValueError(f"{benchmark.task}: lmms-eval returned no {key}, only {sorted(metrics)}")
    unit = benchmark.unit
    if benchmark.name == "mme":
        score = sum(parts.values())
    elif benchmark.name == "hallusionbench":
        parts["mean"] = round(sum(parts.values()) / len(parts), 4)
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
    )
