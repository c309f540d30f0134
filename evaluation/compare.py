"""`syvla-compare A B`: two closed-loop evaluations on the same episodes, paired by task and seed.

Pairing takes the difficulty of the episodes out of the comparison. Only episodes in which the two differ say anything about
which is better: McNemar's exact test (1947) asks how likely a split as uneven as theirs is if neither is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from syvla.command_line import CommandParser, error_text
from syvla.durable_files import write_json

from .episode_records import EpisodeRecord, fingerprint, read_records
from .success_rate import SuccessRate

RESAMPLES = 10_000
"""Of the bootstrap; the bounds then move by about 0.1 percentage points from seed to seed."""

SAME_EPISODES = ("env", "environment_options", "look")
"""Settings that must agree, since a seed means another episode under others."""


@dataclass(frozen=True)
class Evaluation:
    """One folder of `syvla-eval`.

    Attributes:
        folder: Where it lies.
        settings: Of its summary.
        records: Its episodes by (task, seed), without those whose environment crashed.
    """

    folder: Path
    settings: dict[str, Any]
    records: dict[tuple[str, int], EpisodeRecord]


@dataclass(frozen=True)
class Comparison:
    """Paired outcomes of A and B.

    Attributes:
        pairs: Success of A and of B by (task, seed), in order.
        unpaired: Episodes that only one of the two has.
        settings: Settings that differ, A's and B's value by name.
    """

    pairs: dict[tuple[str, int], tuple[bool, bool]]
    unpaired: int
    settings: dict[str, tuple[Any, Any]]

    @property
    def rates(self) -> tuple[SuccessRate, SuccessRate]:
        """Success rates of A and B over the paired episodes."""
        return SuccessRate.of(a for a, _ in self.pairs.values()), SuccessRate.of(b for _, b in self.pairs.values())

    @property
    def gained(self) -> list[tuple[str, int]]:
        """Episodes that B solves and A does not."""
        return [key for key, (a, b) in self.pairs.items() if b and not a]

    @property
    def lost(self) -> list[tuple[str, int]]:
        """Episodes that A solves and B does not."""
        return [key for key, (a, b) in self.pairs.items() if a and not b]

    @property
    def difference(self) -> float:
        """Success rate of B minus that of A."""
        return (len(self.gained) - len(self.lost)) / len(self.pairs)

    @property
    def p_value(self) -> float:
        """Of McNemar's exact two-sided test; 1 if no episode flipped."""
        from scipy.stats import binomtest

        flipped = len(self.gained) + len(self.lost)
        return float(binomtest(len(self.gained), flipped).pvalue) if flipped else 1.0

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Percentile bootstrap interval of `difference`, episodes drawn in pairs; the same at every call."""
        changes = np.array([int(b) - int(a) for a, b in self.pairs.values()])
        drawn = np.random.default_rng(0).integers(len(changes), size=(RESAMPLES, len(changes)))
        low, high = np.quantile(changes[drawn].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
        return float(low), float(high)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        first, second = self.rates
        return {
            "episodes": len(self.pairs),
            "unpaired": self.unpaired,
            "a": first.to_dict(),
            "b": second.to_dict(),
            "difference": self.difference,
            "difference_interval": list(self.interval()),
            "mcnemar_p": self.p_value,
            "gained": [{"task": task, "seed": seed} for task, seed in self.gained],
            "lost": [{"task": task, "seed": seed} for task, seed in self.lost],
            "settings": {name: list(values) for name, values in self.settings.items()},
        }

    def to_text(self) -> str:
        """For people: rates, difference, test, and what flipped."""
        first, second = self.rates
        low, high = (100 * bound for bound in self.interval())
        lines = [
            f"A: {first}",
            f"B: {second}",
            f"B - A: {100 * self.difference:+.1f} points [{low:+.1f}, {high:+.1f}], McNemar p = {self.p_value:.3g} "
            f"({len(self.gained)} gained, {len(self.lost)} lost of {len(self.pairs)} paired episodes)",
        ]
        if self.unpaired:
            lines.append(f"{self.unpaired} episodes are in one of the two only, and are left out")
        for name, episodes in (("gained by B", self.gained), ("lost by B", self.lost)):
            for task, seed in episodes:
                lines.append(f"{name}: {task}, seed {seed}")
        for setting, (ours, theirs) in self.settings.items():
            lines.append(f"differs: {setting}: A {ours!r}, B {theirs!r}")
        return "\n".join(lines)


def read_evaluation(folder: str | Path) -> Evaluation:
    """The evaluation that the folder's summary describes.

    Raises:
        FileNotFoundError: If there is no summary.
        ValueError: If the summary cannot be read, or has no episodes beside it.
    """
    folder = Path(folder)
    path = folder / "summary.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no summary.json; expected the --output folder of a finished syvla-eval")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no summary of syvla-eval ({type(error).__name__}: {error})") from error
    records = (
        read_records(folder / "episodes.jsonl", fingerprint(settings)) if (folder / "episodes.jsonl").is_file() else {}
    )
    if not records:
        raise ValueError(
            f"{folder}: no episodes of summary.json's settings in episodes.jsonl; evaluate again with this --output"
        )
    return Evaluation(folder, settings, records)


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """Pairs two evaluations.

    Raises:
        ValueError: If a seed does not mean the same episode in both, or they share none.
    """
    for name in SAME_EPISODES:
        ours, theirs = first.settings.get(name), second.settings.get(name)
        if ours != theirs:
            raise ValueError(
                f"{name}: A has {ours!r} and B has {theirs!r}, so a seed is not the same episode in both; evaluate both alike"
            )
    shared = sorted(set(first.records) & set(second.records))
    if not shared:
        raise ValueError(
            f"{first.folder} and {second.folder} share no episode; evaluate both with the same --task and --seed"
        )
    names = sorted(set(first.settings) | set(second.settings))
    differing = {name: (first.settings.get(name), second.settings.get(name)) for name in names}
    return Comparison(
        {key: (first.records[key].success, second.records[key].success) for key in shared},
        len(set(first.records) ^ set(second.records)),
        {name: values for name, values in differing.items() if values[0] != values[1]},
    )


def build_parser() -> argparse.ArgumentParser:
    """Command line of `syvla-compare`."""
    parser = CommandParser(
        prog="syvla-compare",
        description="Compare two folders of syvla-eval on the episodes that both have.",
        example="syvla-compare outputs/before outputs/after",
    )
    parser.add_argument("a", type=Path, help="folder of syvla-eval, the one to compare with")
    parser.add_argument("b", type=Path, help="folder of syvla-eval")
    parser.add_argument("--output", type=Path, default=Path("outputs/comparison.json"), help="file of the result")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-compare`; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        comparison = compare(read_evaluation(arguments.a), read_evaluation(arguments.b))
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.output, {"folders": [str(arguments.a), str(arguments.b)], **comparison.to_dict()})
    except (OSError, ValueError) as error:
        print(error_text("syvla-compare", error), file=sys.stderr)
        return 1
    print(comparison.to_text())
    print(f"written to {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
