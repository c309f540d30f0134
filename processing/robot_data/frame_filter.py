"""Which frames of a dataset training leaves out: the filter file that cleaning writes and the reader applies.

A removed frame counts as never recorded: no chunk starts there, none runs across it (from the gap on a chunk is padded as at
the end of an episode, where training puts what the model's `chunk_end` says), and statistics do not see it. The dataset itself
is never changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from syvla.durable_files import write_json
from syvla.processing.lfs_pointers import require_contents

from .frame_table import FrameTable
from .lerobot_format import INFO_PATH
from .metadata import DatasetMetadata

FORMAT = "syvla-frame-filter"
VERSION = 1
_MAX_BYTES = 2**30


@dataclass(frozen=True)
class FrameFilter:
    """Removed episodes and frames of one dataset.

    Attributes:
        dataset: What the dataset was when the filter was made, see `dataset_digest`.
        episodes: Removed episodes, with the reason of each.
        frames: Episode to its removed ranges (start, stop), `stop` exclusive, counted by `frame_index`.
    """

    dataset: dict[str, Any]
    episodes: dict[int, str] = field(default_factory=dict)
    frames: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> FrameFilter:
        """Reads a filter file.

        Raises:
            FileNotFoundError: No such file.
            ValueError: It is no filter file, or of a later version.
        """
        source = Path(path)
        if not source.is_file():
            raise FileNotFoundError(f"filter_file: {path} does not exist; `syvla-clean` writes one")
        if source.stat().st_size > _MAX_BYTES:
            raise ValueError(f"filter_file: {path} has {source.stat().st_size} bytes, more than a filter file can have")
        require_contents([source])
        try:
            content = json.loads(source.read_text(encoding="utf-8"))
            if content["format"] != FORMAT or content["version"] > VERSION:
                raise ValueError(f"it says format {content['format']!r}, version {content['version']}")
            return cls(
                dict(content["dataset"]),
                {int(episode): str(reason) for episode, reason in content["removed_episodes"].items()},
                {int(e): [(int(a), int(b)) for a, b in ranges] for e, ranges in content["removed_frames"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"filter_file: {path}: expected a filter file of `syvla-clean`, format {FORMAT!r}, version {VERSION} "
                f"({error})"
            ) from error

    def save(self, path: Path) -> None:
        """Writes the filter file, whole or not at all."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "dataset": self.dataset,
            "removed_episodes": {str(episode): reason for episode, reason in sorted(self.episodes.items())},
            "removed_frames": {str(episode): ranges for episode, ranges in sorted(self.frames.items())},
        }
        write_json(path, content)

    def check(self, metadata: DatasetMetadata) -> None:
        """Makes sure that the filter was made for this dataset as it is now.

        Raises:
            ValueError: It was made for another one, or names frames that do not exist.
        """
        found = dataset_digest(metadata)
        if found != self.dataset:
            changed = {key: (self.dataset.get(key), value) for key, value in found.items()}
            differing = ", ".join(f"{k} was {a}, is {b}" for k, (a, b) in changed.items() if a != b)
            raise ValueError(
                f"filter_file: made for another dataset or an earlier state of {metadata.root} ({differing}); run "
                "`syvla-clean` on it again"
            )
        for episode, ranges in self.frames.items():
            length = int(metadata.lengths[episode]) if 0 <= episode < len(metadata.lengths) else 0
            if any(not 0 <= start < stop <= length for start, stop in ranges):
                raise ValueError(
                    f"filter_file: episode {episode} has {length} frames, the filter removes {ranges}; run `syvla-clean` "
                    "again"
                )

    def kept_episodes(self, episodes: Sequence[int], metadata: DatasetMetadata) -> list[int]:
        """Those of `episodes` of which something is left."""
        return [e for e in episodes if e not in self.episodes and self.kept_frames(e, int(metadata.lengths[e])).any()]

    def apply(self, table: FrameTable, episodes: Sequence[int]) -> FrameTable:
        """The table without the removed frames; `stretches` then also ends at each gap."""
        lengths = np.diff(table.starts)
        parts = [self.kept_frames(episode, int(length)) for episode, length in zip(episodes, lengths, strict=True)]
        keep = np.concatenate(parts)
        per_frame = [f.name for f in fields(FrameTable) if f.name not in ("starts", "stretches", "thoughts", "files")]
        kept = {name: getattr(table, name)[keep] for name in per_frame}
        starts = np.concatenate([[0], np.cumsum([int(part.sum()) for part in parts])])
        original = np.flatnonzero(keep)
        gaps = np.flatnonzero(np.diff(original) > 1) + 1  # first frame after each gap
        return replace(table, **kept, starts=starts, stretches=np.union1d(starts, gaps))

    def kept_frames(self, episode: int, length: int) -> np.ndarray:
        """Which frames of an episode are left, bool (length,)."""
        keep = np.ones(length, dtype=bool)
        for start, stop in self.frames.get(episode, ()):
            keep[start:stop] = False
        return keep


def dataset_digest(metadata: DatasetMetadata) -> dict[str, Any]:
    """What tells one state of a dataset from another: its size, and a digest of `info.json` and the episodes' lengths."""
    digest = hashlib.sha256((metadata.root / INFO_PATH).read_bytes())
    digest.update(np.ascontiguousarray(metadata.lengths, dtype=np.int64).tobytes())
    return {
        "episodes": len(metadata.lengths),
        "frames": int(metadata.lengths.sum()),
        "sha256": digest.hexdigest()[:16],
    }


def merge_ranges(ranges: Mapping[int, Sequence[tuple[int, int]]]) -> dict[int, list[tuple[int, int]]]:
    """Ranges of each episode in order, overlapping and touching ones joined."""
    merged: dict[int, list[tuple[int, int]]] = {}
    for episode, members in ranges.items():
        joined: list[tuple[int, int]] = []
        for start, stop in sorted(members):
            if joined and start <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
            else:
                joined.append((start, stop))
        if joined:
            merged[episode] = joined
    return merged
