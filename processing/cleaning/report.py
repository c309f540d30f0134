"""What cleaning removed and why, as JSON and as a table to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from syvla.processing.robot_data.frame_filter import FrameFilter, merge_ranges

from .filters import FILTERS, CleaningSettings, Finding

DEFAULT_CHUNK_SIZE = 50
"""Actions of a chunk in the paper."""


def removals(
    findings: Sequence[Finding], lengths: Sequence[int]
) -> tuple[dict[int, str], dict[int, list[tuple[int, int]]]]:
    """What findings remove: episodes with a reason each, and ranges of frames of the others.

    An episode of which nothing would be left is removed whole.
    """
    episodes: dict[int, str] = {}
    ranges: dict[int, list[tuple[int, int]]] = {}
    for finding in findings:
        if finding.stop is None:
            episodes.setdefault(finding.episode, f"{finding.filter}: {finding.detail}")
        else:
            ranges.setdefault(finding.episode, []).append((finding.start, finding.stop))
    frames = {episode: found for episode, found in merge_ranges(ranges).items() if episode not in episodes}
    for episode, found in list(frames.items()):
        if sum(stop - start for start, stop in found) >= int(lengths[episode]):
            episodes[episode] = "nothing is left of it"
            del frames[episode]
    return episodes, frames


def full_chunks(findings: Sequence[Finding], lengths: Sequence[int], chunk_size: int) -> int:
    """Frames at which a chunk of `chunk_size` recorded actions starts, once what findings remove is gone."""
    episodes, frames = removals(findings, lengths)
    total = 0
    for episode, length in enumerate(lengths):
        if episode in episodes:
            continue
        gaps = np.array(frames.get(episode, []), dtype=np.int64).reshape(-1, 2)
        stretches = np.append(gaps[:, 0], length) - np.insert(gaps[:, 1], 0, 0)
        total += int(np.maximum(stretches - chunk_size + 1, 0).sum())
    return total


@dataclass(frozen=True)
class CleaningReport:
    """Result of cleaning a dataset.

    Attributes:
        name: Name of the dataset's folder, or its Hub id.
        lengths: Frames of each episode.
        fps: Frames per second.
        settings: What the filters were told.
        findings: What they found.
        filter: What follows from it.
        chunk_size: Actions of a chunk. A full chunk does not reach beyond the end of its episode, nor over removed frames;
            the others are padded.
    """

    name: str
    lengths: Sequence[int]
    fps: float
    settings: CleaningSettings
    findings: Sequence[Finding]
    filter: FrameFilter
    chunk_size: int = DEFAULT_CHUNK_SIZE

    def by_filter(self) -> dict[str, dict[str, Any]]:
        """Per filter: episodes it touches, episodes it removes whole, frames and full chunks it removes; filters overlap."""
        result = {}
        before = full_chunks([], self.lengths, self.chunk_size)
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
                "full_chunks": before - full_chunks(members, self.lengths, self.chunk_size),
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
            "full_chunks": full_chunks([], self.lengths, self.chunk_size),
            "full_chunks_kept": full_chunks(self.findings, self.lengths, self.chunk_size),
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "dataset": self.name,
            "chunk_size": self.chunk_size,
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
            f"{totals['frames']} frames; {totals['full_chunks_kept']} of {totals['full_chunks']} full chunks of "
            f"{self.chunk_size} actions",
            "",
            "| filter | episodes | removed whole | frames | seconds | full chunks lost | first example |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, counts in self.by_filter().items():
            first = next((finding for finding in self.findings if finding.filter == name), None)
            example = "" if first is None else f"episode {first.episode}: {first.detail}"
            if counts["skipped"]:
                example = "skipped"
            cells = [counts[key] for key in ("episodes", "episodes_removed", "frames", "seconds", "full_chunks")]
            lines.append(f"| {name} | {' | '.join(map(str, cells))} | {example} |")
        return "\n".join(lines) + "\n"
