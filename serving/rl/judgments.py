"""What people decide about rollouts that have ended: a label, that it is discarded, that it is used after all."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syvla.serving.contract.requests import RequestError
from syvla.serving.recording.episode_facts import reward_problem, write_facts

from .ledger import ABORTED, AWAITING, CLAIMED, CONSUMED, DISCARDED, SEALED, SET_ASIDE, Ledger, LedgerEntry
from .recovery import move_rollout

if TYPE_CHECKING:
    from collections.abc import Callable


class JudgmentsMixin:
    """The part of [`RLEpisodes`] that carries out what people decide.

    Attributes:
        root: Folder of the rollouts.
        lock: Of the episodes.
        ledger: Of the run.
        graded: Whether rewards between 0 and 1 are taken as well.
    """

    root: Path
    lock: threading.RLock
    ledger: Ledger
    graded: bool
    _known: Callable[[str], Any]

    def label(self, name: str, reward: float, *, override: bool, timed_out: bool | None = None) -> None:
        """Sets the reward of an ended episode; the same one may come again.

        Args:
            name: The episode.
            reward: 1 success, 0 failure; with `graded` any number from 0 to 1.
            override: Whether another label before may be changed.
            timed_out: Whether a 0 only means that the time was up (True) or that it failed (False); None: as the robot said.

        Raises:
            RequestError: No reward (422), no such episode (404), still open, discarded, another reward before, or an update
                has taken it (409), aborted (410).
        """
        if problem := reward_problem(reward, self.graded):
            raise RequestError(problem)
        with self.lock, self.ledger.exclusive() as known:
            episode = self._known(name)
            facts = episode.facts
            if episode.state == ABORTED:
                raise RequestError(f"episode {name}: was aborted: {episode.why}", status=410, cause="aborted")
            if facts is None:
                raise RequestError(f"episode {name}: is not over; end it first", status=409, cause="episode_state")
            if facts.outcome == reward and timed_out in (None, facts.cut_off):
                return
            if episode.state == DISCARDED:
                raise RequestError(f"episode {name}: is discarded; restore it first", status=409, cause="episode_state")
            taken = taken_by(known.rollouts[name])
            if facts.outcome is not None and (taken or not override):
                hint = taken or 'send "override": true to change it on purpose'
                before, given = (_shown(r, t) for r, t in ((facts.outcome, facts.cut_off), (reward, timed_out)))
                raise RequestError(
                    f"episode {name}: is already labeled {before}, got {given}; {hint}",
                    status=409,
                    cause="reward_conflict",
                )
            self.ledger.write("reward", episode_id=name, reward=reward, timed_out=timed_out, before=facts.outcome)
            labeled = replace(facts, outcome=reward, cut_off=timed_out)
            write_facts(self.root / name, 0, labeled)
            episode.facts, episode.state = labeled, SEALED

    def discard(self, name: str, why: str) -> None:
        """Takes an ended rollout out of the run, whole, so that `restore` can bring it back. May be repeated.

        Raises:
            RequestError: There is no such episode (404), it is open, or an update has taken it (409), it was aborted (410).
        """
        with self.lock, self.ledger.exclusive() as known:
            episode = self._known(name)
            if episode.state == DISCARDED:
                return
            if episode.state == ABORTED:
                raise RequestError(f"episode {name}: was aborted: {episode.why}", status=410, cause="aborted")
            taken = "it is not over; end or abort it" if episode.facts is None else taken_by(known.rollouts[name])
            if taken:
                raise RequestError(f"episode {name}: cannot be discarded; {taken}", status=409, cause="episode_state")
            self.ledger.write("discard", episode_id=name, why=why)
            episode.state, episode.why = DISCARDED, why
            move_rollout(self.root, name, discarded=True)

    def restore(self, name: str) -> None:
        """Brings a rollout back that was discarded, or has one used that the trainer set aside, whatever its age.

        Raises:
            RequestError: There is no such episode (404), or it is neither discarded nor set aside (409).
        """
        with self.lock, self.ledger.exclusive() as known:
            episode = self._known(name)
            state = known.rollouts[name].state
            if state not in (DISCARDED, SET_ASIDE) or episode.facts is None:
                text = f"episode {name}: is neither discarded nor set aside, but {state}"
                raise RequestError(text, status=409, cause="episode_state")
            self.ledger.write("restore", episode_id=name)
            move_rollout(self.root, name, discarded=False)
            episode.state, episode.why = AWAITING if episode.facts.outcome is None else SEALED, ""


def taken_by(entry: LedgerEntry) -> str:
    """Why an update keeps a rollout from being changed; empty if none does."""
    if entry.state == CONSUMED:
        return "an update has already used it"
    return f"update {(entry.update or 0) + 1} works on it" if entry.state == CLAIMED else ""


def _shown(reward: float, timed_out: bool | None) -> str:
    return f"{reward}" + ("" if timed_out is None else f" (timed_out {str(timed_out).lower()})")
