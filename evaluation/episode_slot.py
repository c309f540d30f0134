"""A place where one episode after another runs: an environment, in the evaluating process or in a worker process.

A slot keeps what belongs to the episode (its record, its recording) and touches pictures only when a policy is to be
asked or an episode is recorded, so that environments may render on access.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .baselines import Baseline
from .environments import make_environment
from .environments.base import Observation, RobotEnvironment
from .episode_records import EpisodeRecord
from .episode_video import EpisodeVideo

logger = logging.getLogger(__name__)


class EnvironmentCrash(Exception):
    """The environment raised; how the episode would have ended is unknown."""


@dataclass(frozen=True)
class SlotSettings:
    """What all slots of an evaluation share; plain values, as worker processes receive it.

    Attributes:
        env: Name of the environment back-end.
        options: Keyword arguments of `make_environment`.
        fingerprint: Digest of the settings, written into every record.
        output: Folder of records and recordings, or None.
    """

    env: str
    options: dict[str, Any]
    fingerprint: str
    output: str | None = None


@dataclass
class SlotReply:
    """What became of one command: exactly one of `observation`, `record`, `crash` is set, or `lost` is.

    Attributes:
        observation: The policy is to be asked about this.
        instruction: What the policy is asked to do.
        record: The episode has ended.
        crash: The environment crashed in this way.
        lost: The episode was cut off by a crash that was not its own.
    """

    observation: Observation | None = None
    instruction: str = ""
    record: EpisodeRecord | None = None
    crash: str | None = None
    lost: bool = False

    def to_plain(self) -> dict[str, Any]:
        """Nothing but arrays and plain values, for a pipe."""
        return {**vars(self), "record": asdict(self.record) if self.record else None}

    @classmethod
    def from_plain(cls, message: Mapping[str, Any]) -> SlotReply:
        """The reply of `to_plain`."""
        record = EpisodeRecord.from_dict(message["record"]) if message["record"] else None
        return cls(**{**message, "record": record})


def call_seed(episode_seed: int, call: int) -> int:
    """Seed of an episode's policy call number `call`."""
    return int(np.random.SeedSequence((episode_seed, call)).generate_state(1)[0])


@dataclass
class EpisodeSlot:
    """Runs episodes one after another in an environment that it makes when needed and makes anew after a crash.

    Attributes:
        settings: What all slots share.
        baseline: Who acts in `play`.
    """

    settings: SlotSettings
    baseline: Baseline | None = None
    _environment: RobotEnvironment | None = None
    _task: str = ""
    _observation: Observation = field(default_factory=dict)
    _record: EpisodeRecord = field(default_factory=lambda: EpisodeRecord("", 0))
    _video: EpisodeVideo | None = None

    def answer(self, command: str, *arguments: Any) -> SlotReply:
        """Carries out "start", "advance" or "play"; see the methods.

        A crash of the environment is an answer; anything else that goes wrong is raised.
        """
        methods: dict[str, Callable[..., SlotReply]] = {
            "start": self.start,
            "advance": self.advance,
            "play": self.play,
        }
        try:
            return methods[command](*arguments)
        except EnvironmentCrash as crash:
            logger.warning("task %s, seed %d: %s", self._record.task, self._record.seed, crash, exc_info=True)
            return SlotReply(crash=str(crash))

    def start(self, task: str, seed: int, film: bool, attempt: int) -> SlotReply:
        """Resets the environment to an episode and asks for the first action chunk."""
        self._reset(task, seed, film, attempt)
        return self._ask()

    def advance(self, actions: np.ndarray, thought: str, seconds: float) -> SlotReply:
        """Executes a chunk of actions.

        Args:
            actions: (T, D_action).
            thought: What the policy thought before them, empty for nothing.
            seconds: Wall-clock seconds that the policy took.
        """
        if self._environment is None:
            return SlotReply(lost=True)  # the process that ran the episode has died; this one has taken its place
        self._note(thought, seconds)
        for action in actions:
            ended, reason = self._step(action)
            if ended:
                return SlotReply(record=self._finish(reason))
        return self._ask()

    def play(self, task: str, seed: int, film: bool, attempt: int) -> SlotReply:
        """Runs a whole episode of the baseline."""
        if self.baseline is None:
            raise ValueError("play: the slot has no baseline; use start() and advance()")
        environment = self._reset(task, seed, film, attempt)
        self.baseline.start_episode(environment)
        record, ended, reason = self._record, False, None
        while not ended:
            began = time.monotonic()
            action, thought = self.baseline.act(environment, self._observation, call_seed(seed, record.policy_calls))
            self._note(thought, time.monotonic() - began)
            ended, reason = self._step(np.asarray(action, dtype=np.float32))
        return SlotReply(record=self._finish(reason))

    def close(self) -> None:
        """Closes the environment."""
        environment, self._environment = self._environment, None
        if environment is not None:
            try:
                environment.close()
            except Exception:  # what it holds is gone either way, and results must not be lost over it
                logger.warning("environment %s: close() failed", self.settings.env, exc_info=True)

    @contextmanager
    def _calling(self, what: str) -> Iterator[None]:
        """Calls of the environment, whose exceptions are its crashes; it is not used again."""
        try:
            yield
        except Exception as error:
            self.close()
            raise EnvironmentCrash(f"{what}: {type(error).__name__}: {error}") from error

    def _reset(self, task: str, seed: int, film: bool, attempt: int) -> RobotEnvironment:
        self._record = EpisodeRecord(task, seed, attempts=attempt, fingerprint=self.settings.fingerprint)
        if self._task != task or attempt > 1:
            self.close()
        with self._calling("reset"):
            if self._environment is None:
                self._environment = make_environment(self.settings.env, task, **self.settings.options)
                self._task = task
            environment = self._environment
            self._observation, info = environment.reset(seed=seed)
            self._record.instruction = str(info["instruction"])
        self._video = EpisodeVideo(self._record.instruction, environment.control_hz) if film else None
        return environment

    def _note(self, thought: str, seconds: float) -> None:
        record = self._record
        record.call_seconds.append(round(seconds, 5))
        if thought and (not record.thoughts or record.thoughts[-1][1] != thought):
            record.thoughts.append((record.steps, thought))

    def _ask(self) -> SlotReply:
        """The observation with every picture rendered, which may not be possible any more after the next step."""
        with self._calling("render"):
            images = {camera: np.asarray(image) for camera, image in self._observation["images"].items()}
        observation = {"images": images, "state": np.asarray(self._observation["state"], dtype=np.float32)}
        return SlotReply(observation=observation, instruction=self._record.instruction)

    def _step(self, action: np.ndarray) -> tuple[bool, str | None]:
        """Executes one action; returns whether the episode ended, and the reason if it failed."""
        assert self._environment is not None
        record = self._record
        if not np.isfinite(action).all():
            return True, f"non-finite action at step {record.steps}"
        self._film()
        with self._calling("step"):
            self._observation, _, terminated, truncated, info = self._environment.step(action)
            record.success = bool(info["success"])
        record.steps += 1
        if record.success:
            return True, None
        if terminated:
            return True, str(info.get("failure_reason") or "terminated by the environment")
        return bool(truncated), "time limit"

    def _film(self) -> None:
        if self._video is None or self._environment is None:
            return
        size = self._video.view_height
        with self._calling("render"):
            cameras = list(self._environment.view_cameras.values())
            views = {camera: self._environment.render_camera(camera, size, size) for camera in cameras}
        self._video.add(views, self._record.thoughts[-1][1] if self._record.thoughts else "")

    def _finish(self, failure_reason: str | None) -> EpisodeRecord:
        record = self._record
        record.failure_reason = failure_reason
        if self._video is not None and self.settings.output is not None:
            self._film()
            self._video.finish(record.success)
            folder = Path(self.settings.output)
            task = re.sub(r"[^\w.-]+", "_", record.task)
            # The same episode under other settings has a recording of its own.
            path = folder / "videos" / f"{task}_{record.seed}_{record.fingerprint[:8]}.mp4"
            self._video.write_mp4(path)
            self._video.write_contact_sheet(path.with_suffix(".png"))
            record.video = str(path.relative_to(folder))
        return record
