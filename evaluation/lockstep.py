"""Runs episodes in lockstep: one batched policy call answers all environments, then each acts on its answer."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm.auto import tqdm

from .baselines import BASELINES, Baseline
from .environment_workers import Command, LocalSlots, Slots, WorkerSlots
from .environments.base import Observation
from .episode_records import EpisodeRecord, append_record, read_records
from .episode_slot import SlotReply, SlotSettings, call_seed
from .policy import Policy, check_action_chunks
from .success_rate import SuccessRate

ATTEMPTS = 2
"""Times that an episode is started when its environment crashes."""


@dataclass(frozen=True)
class EpisodeJob:
    """An episode to run.

    Attributes:
        task: Task name.
        seed: Environment seed.
        film: Whether to record it.
        attempt: 1, or 2 after a crash of the environment.
    """

    task: str
    seed: int
    film: bool = False
    attempt: int = 1

    @property
    def key(self) -> tuple[str, int]:
        """What names the episode in an evaluation."""
        return self.task, self.seed


@dataclass
class Lane:
    """A slot's episode as the policy sees it."""

    job: EpisodeJob
    observation: Observation
    instruction: str
    calls: int = 0


class LockstepRunner:
    """Runs the episodes of an evaluation.

    Args:
        policy: The policy under evaluation.
        settings: What all slots share.
        replan_steps: Actions executed of each chunk.
        action_names: Names of the environment's action dimensions.
        batch_size: Episodes per policy call; a baseline is asked about one at a time.
        workers: Processes that simulate; 1 simulates in this one.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If a baseline of the caller's own is to run in worker processes.
    """

    def __init__(
        self,
        policy: Policy | Baseline,
        settings: SlotSettings,
        replan_steps: int,
        action_names: Sequence[str],
        *,
        batch_size: int = 8,
        workers: int = 1,
        progress: bool = True,
    ) -> None:
        self.policy = policy
        self.settings = settings
        self.replan_steps = replan_steps
        self.action_names = tuple(action_names)
        self.slots = batch_size
        self.workers = workers
        self.progress = progress
        self.output = Path(settings.output) if settings.output is not None else None
        if isinstance(policy, Baseline):
            self.slots = workers
            if workers > 1 and type(policy) is not BASELINES.get(policy.name):
                raise ValueError(
                    f"workers: {policy.name!r} is none of {sorted(BASELINES)} and runs with workers=1 only"
                )

    def run(self, jobs: Sequence[EpisodeJob]) -> list[EpisodeRecord]:
        """Runs those episodes that are not yet on disk, or lack the video that they should have.

        Returns:
            One record per job, in their order.
        """
        done = self._finished(jobs)
        pending = deque(job for job in jobs if job.key not in done)
        bar = tqdm(total=len(jobs), initial=len(done), desc=self.policy.name, disable=not self.progress)
        with bar, closing(self._open(len(pending))) as slots:
            lanes: dict[int, Lane] = {}
            running: dict[int, EpisodeJob] = {}
            while pending or running:
                commands = self._start(pending, running) or self._ask(lanes)
                for slot, reply in slots.exchange(commands).items():
                    job = running[slot]
                    if reply.observation is not None:
                        lane = lanes.setdefault(slot, Lane(job, reply.observation, reply.instruction))
                        lane.observation = reply.observation
                        continue
                    del running[slot]
                    lanes.pop(slot, None)
                    record = self._end(job, reply, pending)
                    if record is not None:
                        done[job.key] = record
                        bar.update()
                        bar.set_postfix_str(str(SuccessRate.of(r.success for r in done.values() if r.error is None)))
        return [done[job.key] for job in jobs]

    def _finished(self, jobs: Sequence[EpisodeJob]) -> dict[tuple[str, int], EpisodeRecord]:
        if self.output is None:
            return {}
        (self.output / "videos").mkdir(parents=True, exist_ok=True)
        known = read_records(self.output / "episodes.jsonl", self.settings.fingerprint)
        done = {}
        for job in jobs:
            record = known.get(job.key)
            if record and (not job.film or (record.video and (self.output / record.video).is_file())):
                done[job.key] = record
        return done

    def _open(self, episodes: int) -> Slots:
        count = min(self.slots, episodes)
        baseline = self.policy if isinstance(self.policy, Baseline) else None
        if self.workers > 1:
            return WorkerSlots(self.settings, count, self.workers, baseline.name if baseline else None)
        return LocalSlots(self.settings, count, baseline)

    def _start(self, pending: deque[EpisodeJob], running: dict[int, EpisodeJob]) -> dict[int, Command]:
        """Commands that fill the free slots."""
        command = "play" if isinstance(self.policy, Baseline) else "start"
        commands: dict[int, Command] = {}
        for slot in range(self.slots):
            if slot not in running and pending:
                running[slot] = job = pending.popleft()
                commands[slot] = (command, job.task, job.seed, job.film, job.attempt)
        return commands

    def _ask(self, lanes: dict[int, Lane]) -> dict[int, Command]:
        """One policy call for all episodes, each of which has used up its chunk, and the commands to act on it."""
        assert not isinstance(self.policy, Baseline)
        order = sorted(lanes)
        asked = [lanes[slot] for slot in order]
        began = time.monotonic()
        answer = self.policy.predict(
            [lane.observation for lane in asked],
            [lane.instruction for lane in asked],
            seeds=[call_seed(lane.job.seed, lane.calls) for lane in asked],
        )
        waited = answer.seconds or [time.monotonic() - began] * len(asked)
        check_action_chunks(answer, len(asked), self.replan_steps, self.action_names)
        commands: dict[int, Command] = {}
        for row, (slot, lane) in enumerate(zip(order, asked, strict=True)):
            lane.calls += 1
            thought = answer.thoughts[row] if answer.thoughts else ""
            commands[slot] = ("advance", answer.actions[row, : self.replan_steps], thought, waited[row])
        return commands

    def _end(self, job: EpisodeJob, reply: SlotReply, pending: deque[EpisodeJob]) -> EpisodeRecord | None:
        """The record of an ended episode, or None if it is to run again."""
        record = reply.record
        if reply.lost:
            pending.appendleft(job)
        elif reply.crash is not None and job.attempt < ATTEMPTS:
            pending.appendleft(replace(job, attempt=job.attempt + 1))
        elif reply.crash is not None:
            record = EpisodeRecord(
                job.task, job.seed, error=reply.crash, attempts=job.attempt, fingerprint=self.settings.fingerprint
            )
        if record is not None and self.output is not None:
            append_record(self.output / "episodes.jsonl", record)
        return record
