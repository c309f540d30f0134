"""Annotations on disk before they are in the dataset: a line per change, so that a crash loses none.

A data file holds many episodes and is written anew for a change, which takes seconds for a large one. The journal takes a
change within milliseconds; the data file follows, and then the journal is emptied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syvla.durable_files import append_json_lines, make_folder, read_json_lines, sync

from .subtasks import Subtasks, checked_subtasks, to_json

FOLDER = ".annotations"
"""In the dataset's folder: changes that are not in the data yet, and proposals."""


@dataclass(frozen=True)
class Change:
    """Sub-tasks of an episode before and after."""

    episode: int
    before: Subtasks
    after: Subtasks


class Journal:
    """Changes that are not in the data files yet.

    Args:
        root: Folder of the dataset.
    """

    def __init__(self, root: Path) -> None:
        self.path = root / FOLDER / "journal.jsonl"

    def append(self, changes: Iterable[Change]) -> None:
        """Writes changes; on return they are on disk."""
        make_folder(self.path.parent)
        append_json_lines(
            self.path,
            [
                {"episode": change.episode, "before": to_json(change.before), "after": to_json(change.after)}
                for change in changes
            ],
        )

    def read(self, lengths: Mapping[int, int]) -> tuple[dict[int, list[Subtasks]], int]:
        """The states of each episode, from the first to the wanted one, and the number of unfinished or damaged lines."""
        entries, torn = read_json_lines(self.path)
        found: dict[int, list[Subtasks]] = {}
        for entry in entries:
            change = _change(entry, lengths)
            if change is None:
                torn += 1
            else:
                found.setdefault(change.episode, [change.before]).append(change.after)
        return found, torn

    def clear(self) -> None:
        """Empties the journal, once its changes are in the data files."""
        if self.path.exists():
            self.path.unlink()
            sync(self.path.parent)


def _change(entry: Mapping[str, Any], lengths: Mapping[int, int]) -> Change | None:
    try:
        episode = entry["episode"]
        length = lengths[episode] if type(episode) is int else 0
        return Change(episode, checked_subtasks(entry["before"], length), checked_subtasks(entry["after"], length))
    except (KeyError, ValueError):
        return None
