"""What cleaning removed and why, as JSON and as a table to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from syvla.processing.robot_data.frame_filter import FrameFilter

from .filters import FILTERS, CleaningSettings, Finding


@dataclass(frozen=True)
class CleaningReport:
    """Result of cleaning a data set.

    Attributes:
        name: Name of the data set's folder, or its Hub id.
        lengths: Frames of each episode.
        fps: Frames per second.
        settings: What the filters were told.
        findings: What they found.
        filter: What follows from it.
    """

    name: str
    lengths: Sequence[int]
    fps: float
    settings: CleaningSettings
    findings: Sequence[Finding]
    filter: FrameFilter

    def by_filter(self) -> dict[str, dict[str, Any]]:
        """Per filter: episodes it touches, episodes it removes whole, frames it removes; filters overlap."""
        result = {}
        for name in FILTERS:
            members = [finding for finding in self.findings if finding.filter == name]
            whole = {finding.episode for finding in members if finding.stop is None}
            frames = sum(int(self.lengths[episode]) for episode in whole)
            frames += sum(f.stop - f.start for f in members if f.stop is not None and f.episode not in whole)
            result[name] = {
                "skipped": name in self.settings.skip,
                "episodes": len({finding.episode for finding in members}),
                "episodes_removed": len(whole),
                "frames": frames,
                "seconds": round(frames / self.fps, 2),
            }
        return result

    def totals(self) -> dict[str, Any]:
        """Episodes and frames before and after; each removed frame counts once."""
        removed = sum(int(self.lengths[episode]) for episode in self.filter.episodes)
        removed += sum(stop - start for ranges in self.filter.frames.values() for start, stop in ranges)
        frames = int(sum(self.lengths))
        return {
            "episodes": len(self.lengths),
            "episodes_kept": len(self.lengths) - len(self.filter.episodes),
            "frames": frames,
            "frames_kept": frames - removed,
            "hours_kept": round((frames - removed) / self.fps / 3600, 4),
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "dataset": self.name,
            "totals": self.totals(),
            "filters": self.by_filter(),
            "settings": asdict(self.settings),
            "findings": [asdict(finding) for finding in self.findings],
        }

    def table(self) -> str:
        """Markdown table: one line per filter, then the totals and an example of each filter."""
        totals = self.totals()
        lines = [
            f"{self.name}: {totals['episodes_kept']} of {totals['episodes']} episodes kept, {totals['frames_kept']} of "
            f"{totals['frames']} frames",
            "",
            "| filter | episodes | removed whole | frames | seconds | first example |",
            "|---|---|---|---|---|---|",
        ]
        for name, counts in self.by_filter().items():
            first = next((finding for finding in self.findings if finding.filter == name), None)
            example = "" if first is None else f"episode {first.episode}: {first.detail}"
            if counts["skipped"]:
                example = "skipped"
            cells = (counts["episodes"], counts["episodes_removed"], counts["frames"], counts["seconds"])
            lines.append(f"| {name} | {' | '.join(map(str, cells))} | {example} |")
        return "\n".join(lines) + "\n"
