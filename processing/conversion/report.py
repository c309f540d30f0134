"""What a conversion did: every episode that was converted, every one that was dropped and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .mapping import ConversionMapping

_LISTED = 50  # dropped episodes in the readable report; the JSON has them all


@dataclass
class ConversionReport:
    """Result of `convert`.

    Attributes:
        source: Folder or file.
        mapping: As used.
        converted: `{"episode", "source", "frames", "trimmed"}` of each episode of the dataset.
        dropped: `{"source", "reason"}` of each source episode that is not in it.
        skipped: Keys of the source that the mapping does not use.
        resumed: Episodes that an earlier run had converted.
        seconds: Wall time of this run.
    """

    source: str
    mapping: ConversionMapping
    converted: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, str]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    resumed: int = 0
    seconds: float = 0.0

    @property
    def frames(self) -> int:
        return sum(entry["frames"] for entry in self.converted)

    def units(self) -> dict[str, list[str]]:
        """Unit of every dimension, as the recipe's key `units` takes it; empty if one is unknown."""
        units = {
            kind: [spec.unit for spec in specs for _ in spec.names]
            for kind, specs in (("state", self.mapping.state), ("action", self.mapping.action))
        }
        return {} if any("unknown" in kinds for kinds in units.values()) else units

    def to_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "episodes": len(self.converted),
            "frames": self.frames,
            "dropped_episodes": len(self.dropped),
            "trimmed_frames": sum(entry["trimmed"] for entry in self.converted),
            "resumed_episodes": self.resumed,
            "seconds": round(self.seconds, 2),
            "units": self.units(),
            "skipped_keys": self.skipped,
            "dropped": self.dropped,
            "converted": self.converted,
            "mapping": self.mapping.to_dict(),
        }

    def text(self) -> str:
        """The report to read, Markdown."""
        trimmed = [entry for entry in self.converted if entry["trimmed"]]
        lines = [
            f"# Conversion of {self.source}",
            "",
            f"{len(self.converted)} episodes with {self.frames} frames converted, {len(self.dropped)} dropped.",
        ]
        if trimmed:
            frames = sum(entry["trimmed"] for entry in trimmed)
            lines += ["", f"{frames} surplus frames of {len(trimmed)} episodes were cut off (trim)."]
        if self.skipped:
            lines += ["", f"Not used: {', '.join(self.skipped)}."]
        if not self.units():
            lines += ["", "Some units are unknown; fill them in where you know the robot."]
        if self.dropped:
            lines += ["", "## Dropped", ""]
            lines += [f"- {entry['source']}: {entry['reason']}" for entry in self.dropped[:_LISTED]]
            if len(self.dropped) > _LISTED:
                lines.append(f"- and {len(self.dropped) - _LISTED} more, see the JSON report")
        return "\n".join(lines) + "\n"

    def summary(self) -> str:
        """A few lines for the terminal."""
        lines = [f"{len(self.converted)} episodes, {self.frames} frames; {len(self.dropped)} dropped"]
        kinds = Counter(entry["reason"] for entry in self.dropped)
        lines += [f"- {entry['source']}: {entry['reason']}" for entry in self.dropped[:10]]
        if len(self.dropped) > 10:
            lines.append(f"- and {len(self.dropped) - 10} more ({len(kinds)} reasons in all); see the report")
        return "\n".join(lines)
