"""The episodes of a run of reinforcement learning: open -> awaiting_reward -> sealed, or aborted, or discarded. No torch.

An open episode is recorded into `rollouts/.open/ID`. Its end seals it into `rollouts/ID` (`episode_facts`), where it waits
for a reward of 0 or 1 for as long as it takes; then it counts as sealed, and the Workers see it. What they make of it stands
in the ledger (`ledger`). A restarted server finds everything again in these folders and in the ledger; what was open is
aborted, and its robot told so.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from syvla.serving.contract.requests import ActAnswer, ActRequest, RequestError
from syvla.serving.recording.by_session import record_answer, record_observation, refusing
from syvla.serving.recording.episode_facts import EpisodeFacts, read_facts, seal_rollout
from syvla.serving.recording.recorder import LOSSES, RecordingError, RolloutRecorder

from .judgments import JudgmentsMixin, taken_by
from .ledger import (
    ABORTED,
    AWAITING,
    DISCARDED,
    ENDING,
    OPEN,
    SEALED,
    STATES,
    Ledger,
    RunLedger,
)
from .recovery import ABORTED_FOLDER, recover_rollouts, rollout_folder

logger = logging.getLogger(__name__)


STOPPED = "stopped by a person"
"""`EpisodeFacts.ended` of an episode that was stopped on the page."""


@dataclass
class Episode:
    """What the server knows of an episode.

    Attributes:
        state: open, ending, awaiting_reward, sealed, discarded or aborted; the ledger knows what the Workers made of it.
        version: Hash of the policy that acts in it.
        recorder: While it is open.
        facts: Once it has ended.
        last_seen: Monotonic time of the robot's last word.
        request_id: The robot's idempotency key for its beginning.
        why: Of an aborted one.
        stopped: Whether a person stopped it; its robot is told to stop.
        takeover: Whether a person asked for the robot: its client is told with every answer.
        instruction: Of the last request.
    """

    state: str
    version: str = ""
    recorder: RolloutRecorder | None = None
    facts: EpisodeFacts | None = None
    last_seen: float = field(default_factory=time.monotonic)
    request_id: str | None = None
    why: str = ""
    stopped: bool = False
    takeover: bool = False
    instruction: str = ""


class RLEpisodes(JudgmentsMixin):
    """Records episodes, keeps their labels, and is the server's `recording`. From any thread.

    Args:
        run: Folder of the run.
        embodiment: The robot.
        entry: Its metadata, see `PolicyBackend.metadata`.

    Attributes:
        recovered: What was found and put right at the start, one text each.
        instructions: Tasks that the trainer has demonstrations of; None: any will do.
        lost: Episodes whose recording the disk did not take, and why.
        graded: Whether rewards between 0 and 1 are taken as well.

    Raises:
        RuntimeError: Another server serves this run.
    """

    def __init__(self, run: Path, embodiment: str, entry: Mapping[str, Any]) -> None:
        from filelock import FileLock, Timeout

        self.root, self.embodiment, self._entry = run / "rollouts", embodiment, entry
        self.robots = {embodiment}
        self.instructions: tuple[str, ...] | None = None
        self.graded = False
        self._open_folder = self.root / ".open"
        self.root.mkdir(parents=True, exist_ok=True)
        self._folder_lock = FileLock(run / ".serving", thread_local=False)
        try:
            self._folder_lock.acquire(timeout=0)
        except Timeout as error:
            raise RuntimeError(f"{run}: another server serves this run; stop it first") from error
        self.lock = threading.RLock()
        self.ledger = Ledger(run)
        self.lost: dict[str, str] = {}
        self._losses = dict.fromkeys(LOSSES, 0)
        self.episodes: dict[str, Episode] = {}
        found, self.recovered = recover_rollouts(self.root, self.ledger)
        known = self.ledger.read()
        for name, facts in found.items():
            if facts is None:
                self.episodes[name] = Episode(ABORTED, why="the server was restarted, or the rollout is damaged")
            else:
                state = AWAITING if facts.outcome is None else SEALED
                state = DISCARDED if known.rollouts[name].state == DISCARDED else state
                self.episodes[name] = Episode(state, _version(facts), facts=facts)

    # ------------------------------------------------------------------ life of an episode

    def begin(self, version: str, request_id: str | None = None) -> str:
        """Opens an episode; the same `request_id` gets the same episode."""
        with self.lock:
            for name, episode in self.episodes.items():
                if request_id is not None and episode.request_id == request_id:
                    return name
            name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
            recorder = RolloutRecorder(
                self._open_folder / name,
                fps=self._entry.get("control_hz") or 10.0,
                embodiment=self.embodiment,
                state_names=self._entry.get("state_names"),
                action_names=self._entry.get("action_names"),
            )
            try:
                self.ledger.write("begin", episode_id=name, policy_version=version)
            except OSError:
                recorder.close()
                self._remove_open(name)
                raise
            self.episodes[name] = Episode(OPEN, version, recorder, request_id=request_id)
            return name

    def stop(self, name: str) -> Episode:
        """Ends a running episode by a person's word: what was recorded waits for a reward, and the robot is told to stop.

        An episode in which no actions were asked for is aborted. Raises RequestError as `end` does.
        """
        with self.lock:
            episode = self._known(name)
            before, episode.stopped = episode.stopped, True  # from now on the robot gets no action
            try:
                return self.end(name, None, False, ended=STOPPED)
            except RequestError as error:
                if error.cause == "nothing_recorded":
                    self.abort(name, "a person stopped it before it had begun")
                    return episode
                episode.stopped = before
                raise

    def ask_for_takeover(self, name: str, wanted: bool) -> None:
        """Tells the robot's client with every further answer that a person takes over, or no longer.

        Raises:
            RequestError: There is no such episode (404), or it is not open (409, 410).
        """
        with self.lock:
            episode = self._known(name)
            self._require_open(name, episode)
            episode.takeover = wanted

    def running(self) -> list[dict[str, Any]]:
        """Open episodes, as the page shows them."""
        with self.lock:
            return [
                {"episode_id": name, "instruction": episode.instruction, "takeover": episode.takeover}
                for name, episode in self.episodes.items()
                if episode.state == OPEN
            ]

    def end(self, name: str, executed: int | None, timed_out: bool, *, ended: str | None = None) -> Episode:
        """Seals an episode; when it returns, the rollout survives a crash. May be repeated.

        Args:
            name: The episode.
            executed: How many actions of the last chunk ran; None: as the observations tell, or all.
            timed_out: Whether only a time limit ended it.
            ended: Another reason, see `EpisodeFacts.ended`.

        Raises:
            RequestError: There is no such episode (404), it was aborted (410), nothing was asked in it (409), `executed` is
                out of range (422), or its recording was lost (507).
        """
        with self.lock:
            episode = self._known(name)
            if episode.state in (AWAITING, SEALED):
                return episode
            self._require_open(name, episode)
            recorder = episode.recorder
            assert recorder is not None
            reason = ended or ("time limit" if timed_out else "client")
            if refusing(lambda: recorder.end(name, ended=reason, executed=executed)) is None:
                text = f"episode {name}: no actions were asked for in it; abort it"
                raise RequestError(text, status=409, cause="nothing_recorded")
            episode.state = ENDING
        try:
            recorder.close()
            facts = read_facts(self._open_folder / name, 0)
            seal_rollout(self._open_folder / name, self.root / name, facts)
        except (RecordingError, OSError, ValueError) as error:
            logger.error("episode %s could not be sealed: %s", name, error)
            self._lose(name, episode, recorder.losses, str(error))
            raise RequestError(f"episode {name}: {episode.why}; run another one", status=507, cause="lost") from None
        with self.lock:
            episode.state, episode.facts, episode.recorder = AWAITING, facts, None
            self._unlock_file(name)
            self.ledger.write("end", episode_id=name, decisions=facts.decisions, ended=facts.ended)
        return episode

    def folder(self, name: str) -> Path:
        """Where the rollout of an ended episode lies."""
        return rollout_folder(self.root, name, self._known(name).state == DISCARDED)

    def abort(self, name: str, why: str) -> None:
        """Drops an episode that is open, or that nobody has labeled yet. May be repeated.

        Raises:
            RequestError: There is no such episode (404), or it is being sealed, labeled, or an update has taken it (409).
        """
        with self.lock:
            episode = self._known(name)
            if episode.state == ABORTED:
                return
            if episode.state not in (OPEN, AWAITING):
                raise RequestError(
                    f"episode {name}: is {episode.state} and cannot be aborted", status=409, cause="episode_state"
                )
            if episode.state == AWAITING:
                self._drop_unlabeled(name, episode, why)
                return
            recorder, episode.recorder = episode.recorder, None
            if recorder is not None:
                recorder.discard(name)
                recorder.close()
            self._drop(name, episode, why)

    def _drop_unlabeled(self, name: str, episode: Episode, why: str) -> None:
        """Drops a rollout that nobody has labeled, unless a trainer that needs no labels has taken it."""
        with self.ledger.exclusive() as known:
            if taken := taken_by(known.rollouts[name]):
                raise RequestError(f"episode {name}: cannot be aborted; {taken}", status=409, cause="episode_state")
            self._drop(name, episode, why)

    def abort_silent(self, seconds: float) -> None:
        """Aborts open episodes whose robot has not been heard of for so long."""
        with self.lock:
            now = time.monotonic()
            silent = [n for n, e in self.episodes.items() if e.state == OPEN and now - e.last_seen > seconds]
        for name in silent:
            logger.warning("episode %s: not a word for %g s; aborted", name, seconds)
            self.abort(name, f"the robot was silent for {seconds:g} s")

    def when_idle(self, work: Callable[[], None]) -> bool:
        """Calls `work` if no episode is open, while none can be opened; returns whether it did."""
        with self.lock:
            if any(episode.state in (OPEN, ENDING) for episode in self.episodes.values()):
                return False
            work()
            return True

    # ------------------------------------------------------------------ the server's recording

    def check(self, request: ActRequest) -> None:
        """Refuses requests for episodes that are not open, before anything is computed."""
        if request.episode_id is None:
            return
        with self.lock:
            episode = self._known(request.episode_id)
            self._require_open(request.episode_id, episode)
            self._require_recorded(request.episode_id, episode)
            if request.embodiment != self.embodiment:
                raise RequestError(f"embodiment: expected {self.embodiment!r} in this run, got {request.embodiment!r}")
            if self.instructions is not None and request.instruction not in self.instructions:
                raise RequestError(
                    f"prompt: the trainer has no demonstrations of {request.instruction[:200]!r}, only of "
                    f"{sorted(self.instructions)[:10]}; give it demonstrations of this task, or set --same_task false"
                )
            episode.last_seen = time.monotonic()

    def record(self, request: ActRequest, answer: ActAnswer, sent: np.ndarray, version: str) -> dict[str, Any]:
        """Records an answer within an episode; requests outside of episodes leave no trace."""
        name = request.episode_id
        if name is None:
            return {}
        with self.lock:
            episode = self._known(name)
            self._require_open(name, episode)
            recorder = episode.recorder
            assert recorder is not None
            said = record_answer(recorder, name, request, answer, sent, version)
            self._require_recorded(name, episode)
            episode.last_seen, episode.instruction = time.monotonic(), request.instruction
            return {**said, "takeover": True} if episode.takeover else said

    def observe(self, request: ActRequest) -> dict[str, Any]:
        """Records an observation at which no actions are asked for."""
        name = request.episode_id
        if name is None:
            raise RequestError("observe_only: expected an episode_id from POST /rl/episodes")
        self.check(request)
        with self.lock:
            recorder = self._known(name).recorder
            if recorder is None:
                raise RequestError(f"episode {name}: is over", status=409, cause="episode_state")
            said = record_observation(recorder, name, request)
            episode = self._known(name)
            self._require_recorded(name, episode)
            return {**said, "takeover": True} if episode.takeover else said

    def reset(self, session: str, executed: int | None) -> None:
        """Episodes of a run have a beginning and an end of their own."""

    def ended(self, session: str, why: str) -> None:
        """A robot may lose its connection and come back to its episode, see `abort_silent`."""

    def status(self) -> dict[str, Any]:
        """Counts by state, see `state_of`."""
        known = self.ledger.read()
        with self.lock:
            states = [self.state_of(name, known) for name in self.episodes]
        return {state: states.count(state) for state in STATES}

    def losses(self) -> dict[str, int]:
        """Lost episodes by cause, see `recorder.LOSSES`."""
        with self.lock:
            return dict(self._losses)

    def state_of(self, name: str, known: RunLedger | None = None) -> str:
        """State of a known episode, with what the Workers made of it."""
        state = self.episodes[name].state
        entry = (known or self.ledger.read()).rollouts.get(name)
        if entry is None or state not in (AWAITING, SEALED):
            return state
        return (
            AWAITING if (state, entry.state) == (AWAITING, SEALED) else entry.state
        )  # its label is on the way, see `label`

    def close(self) -> None:
        """Aborts what is open and lets go of the run."""
        with self.lock:
            for name in [n for n, e in self.episodes.items() if e.state == OPEN]:
                self.abort(name, "the server stopped")
            self._folder_lock.release()

    # ------------------------------------------------------------------ under the lock

    def _known(self, name: str) -> Episode:
        if name not in self.episodes:
            raise RequestError(f"episode {name[:60]!r}: is not known here", status=404, cause="no_episode")
        return self.episodes[name]

    @staticmethod
    def _require_open(name: str, episode: Episode) -> None:
        if episode.state == ABORTED:
            raise RequestError(f"episode {name}: was aborted: {episode.why}; stop", status=410, cause="aborted")
        if episode.stopped and episode.state != OPEN:
            raise RequestError(f"episode {name}: a person stopped it; stop the robot", status=410, cause="stopped")
        if episode.state != OPEN:
            raise RequestError(f"episode {name}: is over ({episode.state})", status=409, cause="episode_state")

    def _require_recorded(self, name: str, episode: Episode) -> None:
        """Gives up an open episode of which a frame was lost, and raises RequestError (410): its robot need not go on."""
        recorder = episode.recorder
        if recorder is not None and name in (lost := recorder.lost):
            self._lose(name, episode, recorder.losses, lost[name])
            self._require_open(name, episode)

    def _lose(self, name: str, episode: Episode, losses: Mapping[str, int], why: str) -> None:
        """Gives up an episode that is not recorded as a whole; `losses` by cause, see `RolloutRecorder.losses`."""
        recorder = episode.recorder
        with self.lock:
            self.lost[name] = why
            for cause, count in losses.items():
                self._losses[cause] += count
            if not sum(losses.values()):
                self._losses["disk_error"] += 1
            self._drop(name, episode, f"its recording was lost ({why})")
        if recorder is not None:
            with suppress(RecordingError, OSError):
                recorder.close()

    def _drop(self, name: str, episode: Episode, why: str) -> None:
        with self.lock:
            episode.state, episode.why, episode.facts, episode.recorder = ABORTED, why, None, None
            self._remove_open(name)
            try:
                self.ledger.write("abort", episode_id=name, why=why)
                if (self.root / name).is_dir():
                    (self.root / ABORTED_FOLDER).mkdir(exist_ok=True)
                    (self.root / name).rename(self.root / ABORTED_FOLDER / name)
            except OSError as error:  # the next start finds it open and aborts it
                logger.error("episode %s: the journal does not say that it was aborted: %s", name, error)

    def _remove_open(self, name: str) -> None:
        shutil.rmtree(self._open_folder / name, ignore_errors=True)
        self._unlock_file(name)

    def _unlock_file(self, name: str) -> None:
        (self._open_folder / f".{name}.recording").unlink(missing_ok=True)


def _version(facts: EpisodeFacts) -> str:
    return facts.policy_versions[-1] if facts.policy_versions else ""
