"""Sub-tasks of a dataset while a person edits them: changes on disk at once, undo and redo, and the way into the data."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .dataset_lock import DatasetLock, require_annotatable
from .episode_data import EpisodeData
from .journal import Change, Journal
from .language_column import Rows, read_rows
from .proposals import OWN_CHANGES, Proposal, ProposalStore
from .subtasks import Subtasks, checked_subtasks, subtasks_of_rows
from .write_back import WriteBack

logger = logging.getLogger(__name__)

MOST_UNDONE = 1000
"""Steps that can be undone. Ours."""


class ConflictError(ValueError):
    """A change of an episode that has another state than the one it was made on."""


@dataclass(frozen=True)
class Step:
    """What one command of the person changed."""

    name: str
    changes: tuple[Change, ...]


@dataclass
class _Episode:
    subtasks: Subtasks = ()
    notes: list[str] = field(default_factory=list)
    others: Rows = field(default_factory=list)  # rows of other styles
    revision: int = 0


class Annotator:
    """The sub-tasks of all episodes. Threads may share one.

    Args:
        data: The dataset.
        read_only: Whether nothing may be changed, for a look at the dataset.

    Raises:
        DatasetError, PermissionError: See `require_annotatable`.
        RuntimeError: Another program annotates or records there.
    """

    def __init__(self, data: EpisodeData, *, read_only: bool = False) -> None:
        self.data, self.read_only = data, read_only
        self._mutex = threading.RLock()
        self._undo: list[Step] = []
        self._redo: list[Step] = []
        self.messages: list[str] = []
        if not read_only:
            require_annotatable(data.root)
        self._lock = None if read_only else DatasetLock(data.root)
        try:
            self._episodes = self._read()
            self.proposals = ProposalStore(data.root, self._lengths())
            self._journal = Journal(data.root)
            self._write_back: WriteBack | None = None
            if not read_only:
                self._write_back = WriteBack(data, self._journal, self._mutex)
                self._recover()
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise

    # -- reading ------------------------------------------------------------------------------------------------------

    def subtasks(self, episode: int) -> Subtasks:
        return self._episodes[episode].subtasks

    def revision(self, episode: int) -> int:
        """Grows with every change of the episode."""
        return self._episodes[episode].revision

    def notes(self, episode: int) -> list[str]:
        """What of the stored rows cannot be shown; a change of the episode drops it."""
        return self._episodes[episode].notes

    def other_rows(self, episode: int) -> Rows:
        """Rows of other styles in the same column: LeRobot's plans, memories, wordings of the task."""
        return self._episodes[episode].others

    def texts(self, task: int | None = None) -> list[tuple[str, int]]:
        """Texts of sub-tasks with how many there are of each; those of episodes with instruction `task` first."""
        total: Counter[str] = Counter()
        same: Counter[str] = Counter()
        place: Counter[str] = Counter()  # sum of the positions among the sub-tasks of their episodes
        with self._mutex:
            for number, episode in enumerate(self._episodes):
                total.update(text for _, text in episode.subtasks)
                if self.data.task_index(number) == task:
                    for position, (_, text) in enumerate(episode.subtasks):
                        same[text] += 1
                        place[text] += position

        def key(text: str) -> tuple[float, ...]:
            # Equally frequent texts of an instruction in the order in which the robot does them.
            return (-same[text], place[text] / max(1, same[text]), -total[text])

        return [(text, total[text]) for text in sorted(sorted(total), key=key)]

    def annotated(self) -> list[bool]:
        """Of each episode whether it has sub-tasks."""
        with self._mutex:
            return [bool(episode.subtasks) for episode in self._episodes]

    def status(self) -> dict[str, Any]:
        """What the page shows of saving: changes on their way into the data, the last error, what can be undone."""
        with self._mutex:
            writing = {"pending": 0, "unfinished_files": 0, "error": None}
            return {
                **(writing if self._write_back is None else self._write_back.status()),
                "undo": self._undo[-1].name if self._undo else None,
                "redo": self._redo[-1].name if self._redo else None,
                "annotated": sum(bool(episode.subtasks) for episode in self._episodes),
                "messages": self.messages,
            }

    # -- changing -----------------------------------------------------------------------------------------------------

    def change(self, name: str, wanted: Mapping[int, Any], revisions: Mapping[int, int] | None = None) -> list[int]:
        """Gives episodes other sub-tasks, as one step that can be undone; on return they are on disk.

        Args:
            name: What the person did, for the buttons of undo and redo.
            wanted: Episode to sub-tasks, as `checked_subtasks` takes them.
            revisions: The revisions that the change was made on.

        Returns:
            The episodes that changed.

        Raises:
            ConflictError: An episode was changed since.
            ValueError: Sub-tasks are refused.
        """
        with self._mutex:
            self._require_open()
            for episode, revision in (revisions or {}).items():
                if self._episodes[episode].revision != revision:
                    raise ConflictError(f"episode {episode} was changed in another window; it is shown as it is now")
            changes = []
            for episode, value in wanted.items():
                after = checked_subtasks(value, self.data.length(episode))
                if after != self._episodes[episode].subtasks:
                    changes.append(Change(episode, self._episodes[episode].subtasks, after))
            if not changes:
                return []
            self._apply(changes)
            self._undo = [*self._undo, Step(name, tuple(changes))][-MOST_UNDONE:]
            self._redo.clear()
            return [change.episode for change in changes]

    def undo(self) -> list[int]:
        """Takes the last step back; returns the episodes that changed."""
        return self._step_back(self._undo, self._redo)

    def redo(self) -> list[int]:
        """Repeats the step undone last; returns the episodes that changed."""
        return self._step_back(self._redo, self._undo)

    def accept(self, episode: int, revision: int, *, skip: Sequence[int] = ()) -> list[int]:
        """Makes an episode's proposal its sub-tasks, because a person said so.

        Args:
            episode: Which.
            revision: See `change`.
            skip: Frames of proposed sub-tasks that are left out.

        Raises:
            ValueError: There is no proposal.
        """
        with self._mutex:
            proposal = self._proposal(episode)
            kept = [entry for entry in proposal.subtasks if entry[0] not in set(skip)]
            changed = self.change(f"accept the proposal of episode {episode}", {episode: kept}, {episode: revision})
            self.proposals.dismiss(episode)
            return changed

    def dismiss(self, episode: int) -> None:
        """Drops an episode's proposal."""
        with self._mutex:
            self._require_open()
            self._proposal(episode)
            self.proposals.dismiss(episode)

    def flush(self) -> None:
        """Writes every change into the data files now. Raises OSError or ValueError where that fails."""
        if self._write_back is not None:
            self._write_back.flush()

    def close(self, progress: Callable[[Iterable[Path]], Iterable[Path]] = iter) -> None:
        """Writes every change into the data files and lets go of the dataset. May be called twice.

        Args:
            progress: Wraps the files that are still to be written, for a progress bar.
        """
        if self._lock is None:
            return
        try:
            if self._write_back is not None:
                self._write_back.close(progress)
        finally:
            self._lock.release()
            self._lock = None

    # -- inside -------------------------------------------------------------------------------------------------------

    def _lengths(self) -> dict[int, int]:
        return {episode: self.data.length(episode) for episode in range(self.data.num_episodes)}

    def _read(self) -> list[_Episode]:
        episodes = [_Episode() for _ in range(self.data.num_episodes)]
        for path in self.data.files_with_progress("Reading sub-tasks"):
            for number, rows in read_rows(self.data.root / path).items():
                if number >= len(episodes):
                    continue  # an unfinished recording's
                episodes[number].subtasks, episodes[number].notes = subtasks_of_rows(rows, self.data.timestamps(number))
                episodes[number].others = [row for row in rows if row.get("style") != "subtask"]
        return episodes

    def _recover(self) -> None:
        """Takes over changes that a killed program left in the journal."""
        pending, torn = self._journal.read(self._lengths())
        if torn:
            self.messages.append(
                f"{torn} unfinished or damaged line{'s' if torn > 1 else ''} of the journal {'were' if torn > 1 else 'was'} "
                "left out: a crash cut off the change that was being saved"
            )
        recovered, conflicts = [], []
        for episode, states in pending.items():
            state = self._episodes[episode]
            if state.subtasks == states[-1]:
                continue
            if state.subtasks in states:
                state.subtasks, state.revision = states[-1], state.revision + 1
                recovered.append(episode)
            else:
                conflicts.append(episode)
                self.proposals.add(Proposal(episode, OWN_CHANGES, states[-1], ()))
        assert self._write_back is not None
        self._write_back.add({episode: self._episodes[episode].subtasks for episode in recovered})
        if recovered:
            self.messages.append(f"recovered changes of {len(recovered)} episodes that were not in the data yet")
        if conflicts:
            self.messages.append(
                f"another program changed episodes {conflicts[:10]} before your changes were in the data; yours are now "
                "proposals there"
            )
        if not recovered:
            self._journal.clear()
        for message in self.messages:
            logger.warning("%s: %s", self.data.root, message)
        self._write_back.start()

    def _apply(self, changes: Sequence[Change]) -> None:
        self._journal.append(changes)
        for change in changes:
            state = self._episodes[change.episode]
            state.subtasks, state.notes = change.after, []
            state.revision += 1
        assert self._write_back is not None
        self._write_back.add({change.episode: change.after for change in changes})

    def _step_back(self, source: list[Step], target: list[Step]) -> list[int]:
        with self._mutex:
            self._require_open()
            if not source:
                return []
            step = source.pop()
            self._apply([Change(change.episode, change.after, change.before) for change in step.changes])
            reverse = tuple(Change(change.episode, change.after, change.before) for change in step.changes)
            target.append(Step(step.name, reverse))
            return [change.episode for change in step.changes]

    def _proposal(self, episode: int) -> Proposal:
        found = self.proposals.get(episode)
        if found is None:
            raise ValueError(f"episode {episode} has no proposal")
        return found

    def _require_open(self) -> None:
        if self._lock is None:
            raise ValueError("the dataset is open for a look only; `syvla-annotate` changes it")
