"""The ledger of a run of reinforcement learning: every rollout's state, and the line of policies. No torch.

Server and trainer share one file, `journal.jsonl` in the run's folder: a line of JSON per event, on disk before it counts.
Both read the same state out of it, and a file lock keeps a decision and its event together: while the trainer claims
rollouts or announces a policy, no episode begins and no label changes.

A rollout goes open -> awaiting_reward -> sealed (labeled) -> claimed (by an update) -> consumed. It may be set aside, with the
reason, when the trainer cannot use it as things are; a person may discard it; both can be undone (`restore`). What was never
whole is aborted. A policy has a number and a parent; a rollback goes back to an older one and the run goes on from there.
"""

from __future__ import annotations

import copy
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from syvla.durable_files import append_json_lines, make_folder

LEDGER_FILE = "journal.jsonl"

OPEN, ENDING, AWAITING, SEALED, ABORTED = "open", "ending", "awaiting_reward", "sealed", "aborted"
CLAIMED, CONSUMED, SET_ASIDE, DISCARDED = "claimed", "consumed", "set_aside", "discarded"

LOCK_TIMEOUT_S = 60.0
"""Longest wait for the other process, which holds the lock for milliseconds. Ours."""

STATES = (OPEN, AWAITING, SEALED, CLAIMED, CONSUMED, SET_ASIDE, DISCARDED, ABORTED)
"""Every state but `ending`, which lasts as long as the server seals a rollout."""


@dataclass
class LedgerEntry:
    """A rollout.

    Attributes:
        state: One of `STATES`.
        policy_version: Hash of the policy that acted; empty if the server never said.
        reward: Its label, None without one.
        timed_out: Whether a 0 only means that the time was up; None: as the recording says.
        update: Number of the update that claimed or used it, from 0.
        why: Reason of the present state, of one that is set aside, discarded or aborted.
        accepted: A person wants it used although it was set aside, see `restore`.
        labeled_at: Unix time of its label.
        waited: Whether an update that needs no labels claimed it while it waited for one.
    """

    state: str = OPEN
    policy_version: str = ""
    reward: float | None = None
    timed_out: bool | None = None
    update: int | None = None
    why: str = ""
    accepted: bool = False
    labeled_at: float = 0.0
    waited: bool = False

    @property
    def unlabeled(self) -> str:
        """The state without what trainer and people made of it: labeled or not."""
        return AWAITING if self.reward is None else SEALED


@dataclass
class RunLedger:
    """What the events of a ledger come to.

    Attributes:
        rollouts: By name.
        versions: Hash of every policy that was announced, by its number.
        parents: Number of the policy that each was trained from; None of the first.
        current: Number of the policy that the run goes on from and that acts; None before the first.
        rollbacks: Numbers of the policies that the run was brought back to, in order.
        updates: Finished updates.
        notes: What the trainer wants people to know, oldest first.
    """

    rollouts: dict[str, LedgerEntry] = field(default_factory=dict)
    versions: list[str] = field(default_factory=list)
    parents: list[int | None] = field(default_factory=list)
    current: int | None = None
    rollbacks: list[int] = field(default_factory=list)
    updates: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def policy_version(self) -> str | None:
        """Hash of the policy that acts."""
        return None if self.current is None else self.versions[self.current]

    @property
    def lineage(self) -> list[int]:
        """Numbers of the policies that led to the present one, the first of the run first."""
        line: list[int] = []
        number = self.current
        while number is not None:
            line.append(number)
            number = self.parents[number]
        return line[::-1]

    def names(self, *states: str) -> list[str]:
        """Rollouts in one of these states."""
        return [name for name, entry in self.rollouts.items() if entry.state in states]

    def apply(self, event: Mapping[str, Any]) -> None:
        """Takes an event into account. Raises KeyError, TypeError or ValueError for one that is none."""
        kind = event.get("event")
        if kind in ("announce", "resume", "rollback"):
            self._apply_policy(kind, event)
        elif kind in ("claim", "consume", "release"):
            for name in event["episode_ids"]:
                self._apply_update(kind, self._entry(name), event)
            if kind == "consume":
                self.updates = max(self.updates, int(event["update"]) + 1)
        elif kind == "note":
            self.notes.append(str(event["text"]))
        elif isinstance(event.get("episode_id"), str):
            self._apply_rollout(str(kind), event)

    def _entry(self, name: str) -> LedgerEntry:
        return self.rollouts.setdefault(name, LedgerEntry())

    def _apply_policy(self, kind: str, event: Mapping[str, Any]) -> None:
        number, policy_version = int(event["version"]), str(event["policy_version"])
        if kind == "announce":
            if not 0 <= number <= len(self.versions):
                raise ValueError(f"version {number} after {len(self.versions)} versions")
            del self.versions[number:], self.parents[number:]  # another run in the same folder
            self.versions.append(policy_version)
            parent = event.get("parent")
            if parent is not None and not 0 <= parent < number:
                raise ValueError(f"version {number} from version {parent}")
            self.parents.append(parent)
        elif not 0 <= number < len(self.versions) or self.versions[number] != policy_version:
            raise ValueError(f"version {number} was never announced")
        if kind == "resume":
            del self.versions[number + 1 :], self.parents[number + 1 :]
            self.updates = int(event["updates"])
        elif kind == "rollback":
            self.rollbacks.append(number)
        self.current = number

    @staticmethod
    def _apply_update(kind: str, entry: LedgerEntry, event: Mapping[str, Any]) -> None:
        if kind == "release":
            entry.state, entry.update = AWAITING if entry.waited and entry.reward is None else SEALED, None
        else:
            entry.waited |= entry.state == AWAITING
            entry.state, entry.update = CLAIMED if kind == "claim" else CONSUMED, int(event["update"])
        entry.why = ""

    def _apply_rollout(self, kind: str, event: Mapping[str, Any]) -> None:
        name = event["episode_id"]
        if kind == "begin":
            self.rollouts[name] = LedgerEntry(policy_version=event.get("policy_version", ""))
            return
        entry, why = self._entry(name), str(event.get("why", ""))
        if kind == "end":
            entry.state = AWAITING
        elif kind == "reward":
            entry.reward, entry.timed_out = event["reward"], event.get("timed_out")
            entry.labeled_at = float(event.get("time", 0.0))
            if entry.state in (OPEN, AWAITING):
                entry.state = SEALED
        elif kind == "restore":
            entry.accepted |= entry.state == SET_ASIDE
            entry.state, why = entry.unlabeled, ""
        elif kind in ("abort", "discard", "set_aside"):
            entry.state = {"abort": ABORTED, "discard": DISCARDED, "set_aside": SET_ASIDE}[kind]
            entry.accepted = False
        else:
            return
        entry.why = why


class Ledger:
    """Reads and extends the file. From any thread, and from several processes.

    Args:
        run: Folder of the run.

    Attributes:
        torn: Lines that are none, as a crash leaves them; they are passed over.
    """

    def __init__(self, run: Path) -> None:
        from filelock import FileLock

        make_folder(run)
        self.path, self.torn = run / LEDGER_FILE, 0
        self._lock = threading.RLock()
        self._file_lock = FileLock(run / ".journal.lock", timeout=LOCK_TIMEOUT_S, thread_local=False)
        self._known, self._read, self._inode = RunLedger(), 0, 0
        self._copied = (0, RunLedger())
        with self.exclusive():
            rest = self.path.read_bytes()[self._read :] if self.path.is_file() else b""
            self.torn += bool(rest)

    @contextmanager
    def exclusive(self) -> Iterator[RunLedger]:
        """The present state, which no other thread or process changes within the `with`. May be nested."""
        with self._lock, self._file_lock:
            yield self._refreshed()

    def read(self) -> RunLedger:
        """A copy of the present state; the run may go on meanwhile."""
        with self._lock:
            known = self._refreshed()
            if self._copied[0] != self._read:
                self._copied = (self._read, copy.deepcopy(known))
            return self._copied[1]

    def write(self, event: str, **facts: Any) -> None:
        """Appends an event; on return it is on disk.

        Raises:
            OSError: It could not be written; it does not count.
        """
        entry = {"time": round(time.time(), 3), "event": event, **facts}
        with self.exclusive() as known:
            copy.deepcopy(known).apply(entry)  # what cannot be applied must not get into the file
            before = self.path.stat().st_size if self.path.is_file() else 0
            try:
                append_json_lines(self.path, [entry])
            except OSError:
                with suppress(OSError):  # a whole line without its end would count later
                    os.truncate(self.path, before)
                raise
            self._refreshed()

    def claim(self, update: int, names: Iterable[str]) -> None:
        """Notes that an update takes these rollouts."""
        self.write("claim", update=update, episode_ids=list(names))

    def consume(self, update: int, names: Iterable[str]) -> None:
        """Notes that an update is finished, which used these rollouts."""
        self.write("consume", update=update, episode_ids=list(names))

    def release(self, names: Iterable[str], why: str) -> None:
        """Makes rollouts available again whose update did not come to its end."""
        if names := list(names):
            self.write("release", episode_ids=names, why=why)

    def set_aside(self, name: str, why: str) -> None:
        """Notes why a labeled rollout cannot be used; it is kept, see the module's text."""
        self.write("set_aside", episode_id=name, why=why)

    def note(self, text: str) -> None:
        """Leaves a warning for people, which `/rl` shows."""
        self.write("note", text=text)

    def announce(self, version: int, policy_version: str, parent: int | None = None) -> None:
        """Notes that a policy comes next: from now on no episode begins with another one.

        Args:
            version, policy_version: Its number and hash.
            parent: Number of the policy that it was trained from; None of the first.
        """
        self.write("announce", version=version, policy_version=policy_version, parent=parent)

    def _refreshed(self) -> RunLedger:
        """Reads whole lines that were added since the last look."""
        if not self.path.is_file():
            return self._known
        found = self.path.stat()
        if found.st_ino != self._inode or found.st_size < self._read:  # another file
            self._known, self._read, self._inode = RunLedger(), 0, found.st_ino
        if found.st_size == self._read:
            return self._known
        with self.path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                self._known.apply(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                self.torn += bool(line)
        return self._known
