"""The way of changes from the journal into the data files, behind the person's back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from .episode_data import EpisodeData
from .journal import Journal
from .language_column import declare_column, has_column, replace_subtasks
from .subtasks import Subtasks, subtask_rows

logger = logging.getLogger(__name__)

PAUSE_S = 2.0
"""Files are written once nothing has changed for so long. Ours."""
_LATEST_S = 30.0  # or once the oldest change is as old
_RETRY_S = 20.0  # after an error
_SHARE = 0.1  # of the time that may go into writing, however large the files are


class WriteBack:
    """Writes changed episodes into their data files, in a thread of its own.

    Once a dataset has the column, all of its files get it, the changed ones first. Other programs expect every file of a
    dataset to have the same columns.

    Args:
        data: The dataset.
        journal: Cleared when everything that it holds is in the files.
        mutex: Held by whoever changes episodes.
    """

    def __init__(self, data: EpisodeData, journal: Journal, mutex: threading.RLock) -> None:
        self._data, self._journal, self._mutex = data, journal, mutex
        self._pending: dict[int, Subtasks] = {}
        self._wake = threading.Condition(mutex)
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._oldest = self._newest = 0.0
        self._not_before = 0.0
        self._error: str | None = None
        declared = data.has_language
        self._without = [path for path in data.files if not has_column(data.root / path)] if declared else None

    def add(self, changes: Mapping[int, Subtasks]) -> None:
        """Takes the newest sub-tasks of episodes, to be written soon."""
        if not changes:
            return
        with self._mutex:
            now = time.monotonic()
            if not self._pending:
                self._oldest = now
            self._newest = now
            self._pending.update(changes)
            self._wake.notify_all()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="write-back", daemon=True)
        self._thread.start()

    def status(self) -> dict[str, Any]:
        with self._mutex:
            files = len(self._without or ())
            return {"pending": len(self._pending), "unfinished_files": files, "error": self._error}

    def flush(self) -> None:
        """Writes every change now.

        Raises:
            OSError, ValueError: A file could not be written; its changes stay in the journal.
        """
        while self._pending:
            self._write(self._next_file())

    def close(self, progress: Callable[[Iterable[Path]], Iterable[Path]]) -> None:
        """Writes what is left, the files that have no column yet included; raises as `flush` does."""
        with self._mutex:
            self._closed = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()
        self.flush()
        for path in progress([Path(path) for path in self._without or ()]):
            self._write(path.as_posix())

    def _run(self) -> None:
        while True:
            with self._mutex:
                while not self._closed and (wait := self._wait()) is not None:
                    self._wake.wait(wait if wait > 0 else None)
                if self._closed:
                    return
                path = self._next_file()
            started = time.monotonic()
            try:
                self._write(path)
                error = None
            except (OSError, ValueError, pa.ArrowException) as problem:  # tried again; the journal has the changes
                error = f"{path}: {problem}"
                logger.error("cannot be written: %s", error)
            with self._mutex:
                self._error = error
                now = time.monotonic()
                pause = (
                    0.0 if self._without else (now - started) * (1 / _SHARE - 1)
                )  # the column soon, the rest at leisure
                self._not_before = now + (_RETRY_S if error else pause)

    def _wait(self) -> float | None:
        """Seconds until there is something to write; 0: nothing in sight; None: now."""
        if not self._pending and not self._without:
            return 0.0
        now = time.monotonic()
        due = min(self._newest + PAUSE_S, self._oldest + _LATEST_S) if self._pending else now
        due = max(due, self._not_before)
        return due - now if due > now else None

    def _next_file(self) -> str:
        for episode in self._pending:
            return self._data.file_of(episode)
        assert self._without
        return self._without[0]

    def _write(self, path: str) -> None:
        with self._writing:
            with self._mutex:
                changes = {e: s for e, s in self._pending.items() if self._data.file_of(e) == path}
                missing = path in (self._without or ())
            if not changes and not missing:
                return
            if self._without is None:
                declare_column(self._data.root)
                with self._mutex:
                    self._without = [file for file in self._data.files if not has_column(self._data.root / file)]
            rows = {
                episode: subtask_rows(subtasks, self._data.timestamps(episode)) for episode, subtasks in changes.items()
            }
            replace_subtasks(self._data.root / path, rows)
            with self._mutex:
                for episode, written in changes.items():
                    if self._pending.get(episode) == written:
                        del self._pending[episode]
                if self._without and path in self._without:
                    self._without.remove(path)
                if not self._pending:
                    self._journal.clear()
