"""Proposed sub-tasks: kept apart from the dataset's own until a person accepts them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syvla.durable_files import append_json_lines, make_folder, read_json_lines

from .journal import FOLDER
from .subtasks import Subtasks, checked_subtasks, to_json

logger = logging.getLogger(__name__)

OWN_CHANGES = "your unsaved changes"
"""Source of a proposal that a person made: it gives way to the person's decision alone."""


@dataclass(frozen=True)
class Proposal:
    """Sub-tasks that nobody has looked at.

    Attributes:
        episode: Which.
        source: Who proposes them: the name of a model, or how they were copied.
        subtasks: They.
        problems: Why they may not fit the task, in words.
    """

    episode: int
    source: str
    subtasks: Subtasks
    problems: tuple[str, ...]


class ProposalStore:
    """The newest proposal of each episode, in a file of the dataset's folder that training never reads.

    Args:
        root: Folder of the dataset.
        lengths: Frames of each episode.
    """

    def __init__(self, root: Path, lengths: Mapping[int, int]) -> None:
        self.path = root / FOLDER / "proposals.jsonl"
        self._mutex = threading.Lock()
        entries, torn = read_json_lines(self.path)
        self._proposals: dict[int, Proposal] = {}
        self._decided: set[int] = set()
        for entry in entries:
            proposal = _proposal(entry, lengths)
            if proposal is not None:
                self._proposals[proposal.episode] = proposal
            elif entry.get("dismissed") is True and isinstance(entry.get("episode"), int):
                self._proposals.pop(entry["episode"], None)
                self._decided.add(entry["episode"])
            else:
                torn += 1
        if torn:
            logger.warning("%s: %d unfinished or damaged lines are left out", self.path, torn)

    def get(self, episode: int) -> Proposal | None:
        return self._proposals.get(episode)

    def episodes(self) -> list[int]:
        """Those that have a proposal, in order."""
        return sorted(self._proposals)

    def is_free(self, episode: int) -> bool:
        """Whether a new proposal of the episode replaces none that a person made."""
        found = self._proposals.get(episode)
        return found is None or found.source != OWN_CHANGES

    def decided(self) -> set[int]:
        """Episodes of which a person accepted or dismissed a proposal."""
        return set(self._decided)

    def add(self, *proposals: Proposal) -> None:
        """Keeps proposals, each in place of the episode's former one; on return they are on disk."""
        self._append(
            {
                "episode": proposal.episode,
                "source": proposal.source,
                "subtasks": to_json(proposal.subtasks),
                "problems": list(proposal.problems),
            }
            for proposal in proposals
        )
        self._proposals.update({proposal.episode: proposal for proposal in proposals})

    def dismiss(self, episode: int) -> None:
        """Drops an episode's proposal."""
        if episode in self._proposals:
            self._append([{"episode": episode, "dismissed": True}])
            del self._proposals[episode]
            self._decided.add(episode)

    def _append(self, entries: Iterable[Mapping[str, Any]]) -> None:
        with self._mutex:
            make_folder(self.path.parent)
            append_json_lines(self.path, entries)


def _proposal(entry: Mapping[str, Any], lengths: Mapping[int, int]) -> Proposal | None:
    try:
        episode, source, problems = entry["episode"], entry["source"], entry["problems"]
        if type(episode) is not int or not isinstance(source, str) or not isinstance(problems, list):
            return None
        subtasks = checked_subtasks(entry["subtasks"], lengths[episode])
        return Proposal(episode, source[:200], subtasks, tuple(str(problem)[:500] for problem in problems[:20]))
    except (KeyError, ValueError):
        return None
