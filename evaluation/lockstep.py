"""Runs episodes in lockstep: one batched policy call answers all environments, then each acts on its answer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from .environments import make_environment
from .environments.base import Observation, RobotEnvironment
from .episode_records import EpisodeRecord, append_record, read_records
from .episode_video import EpisodeVideo
from .policy import Policy
from .success_rate import SuccessRate


@dataclass
class Lane:
    """One environment and the episode it is in."""

    environment: RobotEnvironment
    record: EpisodeRecord
    observation: Observation
    video: EpisodeVideo | None = None
    chunk: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    waited: float = 0.0

    @property
    def call_seed(self) -> int:
        """Seed of the episode's next policy call."""
        return int(np.random.SeedSequence((self.record.seed, self.record.policy_calls)).generate_state(1)[0])


@dataclass
class LockstepRunner:
    """Runs the episodes of an evaluation.

    Attributes:
        policy: The policy under evaluation.
        replan_steps: Actions executed of each chunk.
        fingerprint: Digest of the settings, written into every record.
        output: Folder of records and recordings, or None.
        progress: Whether to show progress bars.
    """

    policy: Policy
    replan_steps: int
    fingerprint: str
    output: Path | None
    progress: bool

    def run(
        self,
        env: str,
        task: str,
        options: Mapping[str, Any],
        seeds: Sequence[int],
        recorded: set[int],
        batch_size: int,
    ) -> list[EpisodeRecord]:
        """Runs the episodes of one task that are not yet on disk, or lack the video that they should have.

        Args:
            env: Name of the environment back-end.
            task: Task name.
            options: Keyword arguments of `make_environment`.
            seeds: Environment seeds, one per episode.
            recorded: Those of `seeds` to make videos of.
            batch_size: Number of environments.

        Returns:
            One record per seed, in their order.
        """
        done: dict[int, EpisodeRecord] = {}
        if self.output is not None:
            (self.output / "videos").mkdir(parents=True, exist_ok=True)
            known = read_records(self.output / "episodes.jsonl", self.fingerprint)
            done = {seed: known[task, seed] for seed in seeds if (task, seed) in known}
            for seed in recorded & set(done):
                video = done[seed].video
                if video is None or not (self.output / video).is_file():
                    del done[seed]
        pending = iter([seed for seed in seeds if seed not in done])
        bar = tqdm(total=len(seeds), initial=len(done), desc=f"{self.policy.name}: {task}", disable=not self.progress)
        environments = [make_environment(env, task, **options) for _ in range(min(batch_size, len(seeds) - len(done)))]
        try:
            lanes = [lane for environment in environments for lane in self._start(environment, task, pending, recorded)]
            while lanes:
                self._ask(lanes)
                following: list[Lane] = []
                for lane in lanes:
                    if not self._execute(lane):
                        following.append(lane)
                        continue
                    done[lane.record.seed] = lane.record
                    bar.update()
                    bar.set_postfix_str(str(SuccessRate.of(record.success for record in done.values())))
                    following += self._start(lane.environment, task, pending, recorded)
                lanes = following
        finally:
            bar.close()
            for environment in environments:
                environment.close()
        return [done[seed] for seed in seeds]

    def _start(
        self, environment: RobotEnvironment, task: str, pending: Iterator[int], recorded: set[int]
    ) -> list[Lane]:
        """A lane with the next episode, or none when all have been started."""
        seed = next(pending, None)
        if seed is None:
            return []
        observation, info = environment.reset(seed=seed)
        self.policy.start_episode(environment, seed)
        record = EpisodeRecord(task, seed, False, 0, info["instruction"], fingerprint=self.fingerprint)
        lane = Lane(environment, record, observation)
        if seed in recorded and self.output is not None:
            lane.video = EpisodeVideo(record.instruction, environment.control_hz)
        return [lane]

    def _ask(self, lanes: Sequence[Lane]) -> None:
        """One policy call for all lanes, each of which has used up its chunk."""
        before = time.monotonic()
        answer = self.policy.predict(
            [lane.observation for lane in lanes],
            [lane.record.instruction for lane in lanes],
            seeds=[lane.call_seed for lane in lanes],
            environments=[lane.environment for lane in lanes],
        )
        seconds = time.monotonic() - before
        for row, lane in enumerate(lanes):
            lane.chunk = answer.actions[row, : self.replan_steps]
            lane.record.policy_calls += 1
            lane.waited += seconds
            thought = answer.thoughts[row] if answer.thoughts else ""
            if thought and (not lane.record.thoughts or lane.record.thoughts[-1][1] != thought):
                lane.record.thoughts.append((lane.record.steps, thought))

    def _execute(self, lane: Lane) -> bool:
        """Executes the lane's chunk; returns whether the episode ended, with its record then complete."""
        record = lane.record
        for action in lane.chunk:
            if not np.isfinite(action).all():
                return self._end(lane, f"non-finite action at step {record.steps}")
            self._film(lane)
            lane.observation, _, terminated, truncated, info = lane.environment.step(action)
            record.steps += 1
            if info["success"]:
                record.success = True
                return self._end(lane, None)
            if terminated:
                return self._end(lane, "terminated by the environment")
            if truncated:
                return self._end(lane, "time limit")
        return False

    def _film(self, lane: Lane) -> None:
        if lane.video is not None:
            views = list(lane.environment.view_cameras.values())
            thought = lane.record.thoughts[-1][1] if lane.record.thoughts else ""
            size = lane.video.view_height
            lane.video.add({view: lane.environment.render_camera(view, size, size) for view in views}, thought)

    def _end(self, lane: Lane, failure_reason: str | None) -> bool:
        record = lane.record
        record.failure_reason = failure_reason
        record.policy_seconds = lane.waited / record.policy_calls
        if lane.video is not None and self.output is not None:
            self._film(lane)
            lane.video.finish(record.success)
            path = self.output / "videos" / f"{record.task}_{record.seed}.mp4"
            lane.video.write_mp4(path)
            lane.video.write_contact_sheet(path.with_suffix(".png"))
            record.video = str(path.relative_to(self.output))
        if self.output is not None:
            append_record(self.output / "episodes.jsonl", record)
        return True
