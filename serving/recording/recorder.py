"""Records every served episode as an episode of a LeRobot v3.0 dataset (`syvla-serve --record DIR`).

Recording never delays an answer: `record` only queues what was answered. One thread puts frames of running episodes into
nameless files, another turns finished episodes into the dataset, which `RobotDatasetWriter` seals by renaming
`info.json` last. A killed server therefore leaves a readable dataset with every episode that was sealed, and nothing of
those still running. What is stored per row: `format`; per episode: `episode_facts`.

A frame that cannot be kept (memory limit reached, disk full) costs its episode, never a part of it: an episode is whole
or absent. Each loss is logged as an error, counted by cause in `losses`, told in every reply (`recording_error`) until a
later episode is saved, and raised by `close()`. Replies name no episode that is known to be lost.
"""

from __future__ import annotations

import errno
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .decision import Decision
from .episode_facts import EpisodeFacts, check_outcome, read_facts, write_facts
from .format import INTERVENTION, PREFIX, rollout_features
from .open_episode import OpenEpisode, RolloutSpool

if TYPE_CHECKING:
    from syvla.processing import RobotDatasetWriter

logger = logging.getLogger(__name__)

MAX_PENDING_BYTES = 512 * 2**20
"""Frames waiting for the disk: about 1100 decisions with three 224 x 224 images. Ours."""


def max_open_episodes() -> int:
    """Episodes that may be open at once: each is an open file, and half of what a process may open is for the sockets."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 256
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (min(files, 8192) if files > 1 else 8192) // 2  # negative: without limit


LOSSES = ("disk_full", "disk_error", "disk_slow", "data")
"""Why an episode was lost: no room, another error of the disk, more frames than it takes, data that do not fit."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RecordingError(RuntimeError):
    """Episodes were lost; the message names them and the first cause."""


class TooManyEpisodes(RuntimeError):
    """No further episode can begin before another one ends."""


class RolloutRecorder:
    """Records the episodes of any number of sessions into one dataset of one robot. Every method may be called from any
    thread.

    Args:
        root: Folder of the dataset: new, empty, or one that a recorder made, which is then extended.
        fps: Control rate in Hz, rounded to an integer as the format demands.
        embodiment: Name of the robot.
        state_names, action_names: Names of the dimensions, for `info.json`.
        assumed_steps: Actions taken to be executed of a chunk whose client never says how many it did; None: all of it.
        use_videos: Compress the images into videos. They are kept lossless by default, since reinforcement learning
            scores a chunk on what the policy saw.
        max_pending_bytes: Frames that may wait for the disk.

    Raises:
        ImportError: pandas or pyarrow is missing.
        FileExistsError: `root` holds something else.
        RuntimeError: Another process is recording there.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        fps: float,
        embodiment: str,
        state_names: list[str] | None = None,
        action_names: list[str] | None = None,
        assumed_steps: int | None = None,
        use_videos: bool = False,
        max_pending_bytes: int = MAX_PENDING_BYTES,
    ) -> None:
        try:
            import syvla.processing.recording.robot_dataset_writer
        except ImportError as error:
            raise ImportError(f"recording needs {error.name}; pip install 'syvla[train]'") from error
        self.root, self.embodiment = Path(root), embodiment
        self._fps, self._use_videos = max(1, round(fps)), use_videos
        self._names = (state_names, action_names)
        self._assumed, self._max_pending, self._max_open = assumed_steps, max_pending_bytes, max_open_episodes()
        self._writer_class = syvla.processing.recording.robot_dataset_writer.RobotDatasetWriter
        self._writer: RobotDatasetWriter | None = None
        self._folder_lock = _lock(self.root)
        self._lock = threading.Lock()
        self._open: dict[str, OpenEpisode] = {}  # by session
        self._spools: dict[str, RolloutSpool] = {}  # by episode, of the spooling thread alone
        try:
            self._known, self._has_interventions = _known_episodes(self.root)  # names that are taken
        except BaseException:
            self._folder_lock.release()
            raise
        self._lost: dict[str, str] = {}  # episode -> cause
        self._losses = dict.fromkeys(LOSSES, 0)
        self._pending_bytes, self._saved, self._closed = 0, 0, False
        self._cause: str | None = None
        self._frames: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=_work, args=(work,), name=name, daemon=True)
            for work, name in ((self._frames, "rollout-frames"), (self._finished, "rollout-episodes"))
        ]
        for thread in self._threads:
            thread.start()

    # -- what the server calls -----------------------------------------------------------------------------------------

    def record(
        self,
        session: str,
        decision: Decision,
        *,
        episode_id: str | None = None,
        executed_before: int | None = None,
        request_id: str | None = None,
    ) -> dict[str, str]:
        """Queues an answered request; its arrays are not copied and must not change afterwards.

        Args:
            session: Connection or client; each has at most one open episode.
            decision: What was asked and answered.
            episode_id: The client's name for the episode; another one than before ends the open episode.
            executed_before: How many actions of the previous chunk ran, by the client's word; None if it did not say.
            request_id: Idempotency key: a repetition of the last one is not recorded twice.

        Returns:
            `episode_id` and `chunk_id`, unless the episode is lost; `recording_error` since an episode was lost.

        Raises:
            ValueError: The episode of that name is over, or more steps were executed than the last chunk had.
            TooManyEpisodes: As many episodes are open as there may be.
        """
        # Under the lock is bookkeeping only. Another thread writes, in the order in which decisions were queued here, so no
        # control step waits for the disk.
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self.root}: the recorder is closed")
            current = self._open.get(session)
            if current is not None and episode_id is not None and current.facts.episode_id != episode_id:
                self._end(session, "new episode", None, None)
                current = None
            if current is None:
                current = self._begin(session, episode_id)
            # A client that got no answer sends its request again; the decision is recorded once.
            if request_id is None or request_id != current.last_request:
                current.check_executed(executed_before)
                current.decided(decision, request_id)
                facts = current.facts
                self._enqueue(
                    facts.episode_id,
                    decision.nbytes,
                    lambda: self._spool(facts).add_decision(decision, executed_before),
                )
            return self._said(current)

    def observe(
        self,
        session: str,
        images: Mapping[str, np.ndarray],
        state: np.ndarray,
        *,
        correction: np.ndarray | None = None,
        executed: int | None = None,
        request_id: str | None = None,
    ) -> dict[str, str]:
        """Queues the observation of a control step at which no actions were asked for.

        Args:
            session: As for `record`.
            images, state: The observation.
            correction: The command of a person who acts at this step, float32 (D,), physical units; from its first one on the
                chunk in force is over, and a person acts at every control step until actions are asked for again.
            executed: With the first correction after a chunk: how many of the chunk's actions ran. None: as many as there
                were observations.
            request_id: As for `record`.

        Returns:
            As `record`, of the chunk in force.

        Raises:
            ValueError: The session has no open episode, the chunk in force has no step left, or the correction does not fit.
        """
        with self._lock:
            current = self._open.get(session)
            if current is None:
                raise ValueError("observe_only: no episode is open; ask for actions first")
            if request_id is not None and request_id == current.last_request:
                return self._said(current)
            if correction is not None and not self._has_interventions:
                name = self.root.name
                raise ValueError(f"intervention: {name} is older and has no such column; record into a new folder")
            ran = 0
            if correction is None:
                current.went_on()
            else:
                ran = current.took_over(correction, executed)
            facts, size = current.facts, sum(image.nbytes for image in images.values())
            self._enqueue(
                facts.episode_id, size, lambda: self._spool(facts).add_observation(images, state, correction, ran)
            )
            current.last_request = request_id
            return self._said(current)

    def end(
        self, session: str, *, ended: str = "client", executed: int | None = None, outcome: int | None = None
    ) -> str | None:
        """Ends the session's episode; it is sealed soon after (`flush` waits for that).

        Args:
            session: As for `record`.
            ended: Why, see `EpisodeFacts.ended`.
            executed: How many actions of the last chunk ran, if the client said.
            outcome: 1, 0, or None where it is not known yet.

        Returns:
            Its id, or None if none was open.

        Raises:
            ValueError: `outcome` or `executed` is out of range; the episode stays open.
        """
        check_outcome(outcome)
        with self._lock:
            return self._end(session, ended, executed, outcome)

    def discard(self, session: str) -> str | None:
        """Drops the session's open episode, as if it had never been; returns its id."""
        with self._lock:
            current = self._open.pop(session, None)
            if current is None:
                return None
            episode = current.facts.episode_id
            self._known.discard(episode)
            self._frames.put(lambda: self._close_spool(episode))
            return episode

    def flush(self, timeout: float | None = None) -> bool:
        """Waits until all that was queued is on disk, at most `timeout` seconds; returns whether it is."""
        done = threading.Event()
        self._frames.put(lambda: self._finished.put(done.set))
        return done.wait(timeout)

    @property
    def losses(self) -> dict[str, int]:
        """Lost episodes by cause, see `LOSSES`."""
        with self._lock:
            return dict(self._losses)

    @property
    def lost(self) -> dict[str, str]:
        """Lost episodes and why."""
        with self._lock:
            return dict(self._lost)

    @property
    def error(self) -> str | None:
        """Why the last episode was lost; None again once a later one is saved."""
        return self._cause

    def status(self) -> dict[str, Any]:
        """Episodes that are open, saved and lost, bytes that wait for the disk, and the last cause of a loss."""
        with self._lock:
            return {
                "open": len(self._open),
                "saved": self._saved,
                "lost": len(self._lost),
                "pending_bytes": self._pending_bytes,
                "error": self._cause,
            }

    def close(self) -> None:
        """Seals what is open ("server stopped") and lets go of the folder. May be called twice.

        Raises:
            RecordingError: Episodes were lost since the recorder was made.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for session in list(self._open):
                self._end(session, "server stopped", None, None)
        self._frames.put(None)
        self._threads[0].join()
        self._finished.put(None)
        self._threads[1].join()
        try:
            if self._writer is not None:
                self._writer.finalize()
        finally:
            self._folder_lock.release()
        if self._lost:
            first = next(iter(self._lost.values()))
            raise RecordingError(f"{self.root}: lost {len(self._lost)} episode(s) ({', '.join(self._lost)}): {first}")

    # -- under the lock ------------------------------------------------------------------------------------------------

    def _said(self, current: OpenEpisode) -> dict[str, str]:
        said = {} if current.facts.episode_id in self._lost else current.names
        return said if self._cause is None else {**said, "recording_error": self._cause}

    def _begin(self, session: str, episode_id: str | None) -> OpenEpisode:
        name = episode_id or uuid.uuid4().hex
        if name in self._known or name in self._lost:
            raise ValueError(f"episode_id: {name!r:.120} is over; start another one under a new name")
        if len(self._open) >= self._max_open:
            raise TooManyEpisodes(
                f"session_id: {len(self._open)} episodes of other sessions are open, as many as can be recorded"
            )
        self._known.add(name)
        self._open[session] = OpenEpisode(EpisodeFacts(name, session, self.embodiment, started_at=time.time()))
        return self._open[session]

    def _end(self, session: str, ended: str, executed: int | None, outcome: int | None) -> str | None:
        current = self._open.get(session)
        if current is None:
            return None
        current.check_executed(executed)
        del self._open[session]
        facts = replace(current.facts, ended=ended, ended_at=time.time(), outcome=outcome)
        self._frames.put(lambda: self._finish(facts, executed))
        return facts.episode_id

    def _enqueue(self, episode: str, size: int, work: Callable[[], None]) -> None:
        if episode in self._lost:
            return
        if self._pending_bytes + size > self._max_pending:
            waiting = f"{self._pending_bytes} bytes of frames wait for the disk, which is too slow"
            self._lose(episode, waiting, "disk_slow")
            return
        self._pending_bytes += size

        def run() -> None:
            try:
                if episode not in self._lost:
                    work()
            except Exception as error:
                with self._lock:
                    self._lose(episode, f"{type(error).__name__}: {error}", _kind_of(error))
            finally:
                with self._lock:
                    self._pending_bytes -= size

        self._frames.put(run)

    def _lose(self, episode: str, cause: str, kind: str) -> None:
        logger.error("%s: episode %s is not recorded: %s", self.root, episode, cause)
        self._lost[episode], self._cause = cause, f"episode {episode} is not recorded: {cause}"
        self._losses[kind] += 1
        self._known.discard(episode)

    # -- in the threads ------------------------------------------------------------------------------------------------

    def _spool(self, facts: EpisodeFacts) -> RolloutSpool:
        if facts.episode_id not in self._spools:
            self._spools[facts.episode_id] = RolloutSpool(self.root, facts, self._assumed)
        return self._spools[facts.episode_id]

    def _close_spool(self, episode: str) -> None:
        spool = self._spools.pop(episode, None)
        if spool is not None:
            spool.close()

    def _finish(self, facts: EpisodeFacts, executed: int | None) -> None:
        spool = self._spools.get(facts.episode_id)
        if spool is None or facts.episode_id in self._lost:
            self._close_spool(facts.episode_id)
            return
        del self._spools[facts.episode_id]
        spool.finish(facts, executed)
        self._finished.put(lambda: self._save(spool))

    def _save(self, spool: RolloutSpool) -> None:
        episode, adding = spool.facts.episode_id, True
        try:
            writer = self._ready_writer(spool)
            for frame, task, thought in spool.rows():
                if not self._has_interventions:
                    del frame[INTERVENTION]
                writer.add_frame(frame, task, thought)
            adding = False
            index = writer.num_episodes
            write_facts(self.root, index, spool.facts)
            writer.save_episode()
            with self._lock:
                self._saved, self._cause = self._saved + 1, None
        except Exception as error:
            with self._lock:
                self._lose(episode, f"{type(error).__name__}: {error}", _kind_of(error))
            self._give_up_writer(sound=adding and isinstance(error, ValueError))
        finally:
            spool.close()

    def _ready_writer(self, spool: RolloutSpool) -> RobotDatasetWriter:
        if self._writer is None:
            features = rollout_features(spool.first_decision, *self._names)
            if not self._has_interventions:
                del features[INTERVENTION]
            self._writer = self._writer_class(
                self.root,
                fps=self._fps,
                features=features,
                robot_type=self.embodiment,
                use_videos=self._use_videos,
                thoughts=True,
            )
        return self._writer

    def _give_up_writer(self, *, sound: bool) -> None:
        """After an episode that did not fit the dataset the writer goes on; after anything else a new one starts."""
        if self._writer is None:
            return
        try:
            self._writer.discard_episode()
            if not sound:
                self._writer.finalize()
        except Exception as error:
            logger.error("%s: %s", self.root, error)
        if not sound:
            self._writer = None


def _kind_of(error: Exception) -> str:
    """One of `LOSSES`."""
    if not isinstance(error, OSError):
        return "data"
    return "disk_full" if error.errno in _NO_ROOM else "disk_error"


def _lock(root: Path) -> Any:
    from filelock import FileLock, Timeout

    root.mkdir(parents=True, exist_ok=True)
    # Beside it, since a new dataset's folder has to be empty; another thread may let go of it than took it.
    lock = FileLock(root.parent / f".{root.name}.recording", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RuntimeError(f"{root}: another process is recording here; choose another folder") from error
    return lock


def _known_episodes(root: Path) -> tuple[set[str], bool]:
    """Names of the episodes of the dataset found in `root`, and whether it has, or will have, a person's corrections."""
    from syvla.processing.robot_data.lerobot_format import INFO_PATH, read_info

    if not (root / INFO_PATH).is_file():
        if any(path.name != ".recording" for path in root.iterdir()):
            raise FileExistsError(f"{root} is not empty and no LeRobot dataset; choose another folder")
        return set(), True
    info = read_info(root)
    if f"{PREFIX}chunk" not in info.features:
        raise FileExistsError(f"{root} is a dataset that no policy server recorded; choose another folder")
    names = {read_facts(root, index).episode_id for index in range(info.total_episodes)}
    return names, INTERVENTION in info.features


def _work(tasks: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (task := tasks.get()) is not None:
        try:
            task()
        except Exception:
            logger.exception("a rollout could not be recorded")
