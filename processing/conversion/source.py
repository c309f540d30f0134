"""What every source format offers to the conversion: its episodes by name, and one episode's vectors, frames and texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

MAX_FRAMES = 2_000_000  # of one episode: eleven hours at 50 Hz
MAX_VECTOR_BYTES = 2**31  # of one episode's vectors of one key


class SourceError(ValueError):
    """An episode, or a whole source, that cannot be converted; the message says what was expected and what came."""


@dataclass(frozen=True)
class EpisodeReference:
    """Where an episode lies.

    Attributes:
        name: Unique and the same in every run, for reports and for going on after an interruption.
        path: File or folder.
        part: Which part of it: a group of an HDF5 file, the offset of a record; empty for all.
        problem: Why the episode cannot be read, where the listing found out.
    """

    name: str
    path: Path
    part: str = ""
    problem: str | None = None


@dataclass(frozen=True)
class CameraFrames:
    """Frames of one camera in one episode: how many, and an iterator over uint8 (H, W, 3), decoded as they are asked for."""

    count: int
    read: Callable[[], Iterator[np.ndarray]]


@dataclass(frozen=True)
class SourceEpisode:
    """One episode as its source holds it.

    Attributes:
        vectors: Numbers by key, each (n, D).
        cameras: Frames by key.
        texts: Instruction and the like by key.
        skipped: What the source holds beside them, for the log.
    """

    vectors: dict[str, np.ndarray]
    cameras: dict[str, CameraFrames]
    texts: dict[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()


class Source(Protocol):
    """A folder or file in one format. Travels to worker processes by pickling."""

    @property
    def format(self) -> str:
        """Name of the format."""

    @property
    def root(self) -> Path:
        """Folder or file."""

    def episodes(self) -> list[EpisodeReference]:
        """All episodes in a fixed order; what cannot be read carries its problem.

        Raises:
            SourceError: The source holds nothing of this format.
        """

    def open(self, reference: EpisodeReference) -> AbstractContextManager[SourceEpisode]:
        """One episode; its frames can be read until the context ends.

        Raises:
            SourceError: The episode is damaged, or too large.
        """

    def preset(self) -> str | None:
        """Name of the mapping that comes with the package for this source; None if it is not known."""
