"""A simulated robot and its rewarder for reinforcement learning in one process: rollouts without a server in between.

The episodes are those of closed-loop evaluation (`LockstepRunner`), the decisions are recorded by the `RolloutRecorder`
behind `syvla-serve --record`, and the update reads them back from disk as it reads a server's. Only HTTP is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syvla.evaluation.closed_loop import evaluate_closed_loop
from syvla.evaluation.environments import make_environment
from syvla.evaluation.environments.base import Observation
from syvla.evaluation.episode_slot import SlotSettings, call_seed
from syvla.evaluation.lockstep import EpisodeJob, LockstepRunner
from syvla.serving.contract.action_chunks import ActionChunks
from syvla.serving.policies.in_process import SyVLAPolicy
from syvla.serving.recording.decision import Decision
from syvla.serving.recording.recorder import RolloutRecorder
from syvla.training.rl.policy_publisher import FolderPublisher

ENVIRONMENT = "tabletop"


@dataclass(frozen=True)
class RobotSettings:
    """How the robot runs, in rollouts and in evaluation alike.

    Attributes:
        task: Of the tabletop.
        max_steps: Control steps after which an episode has failed.
        replan_steps: Actions executed of each chunk.
        batch_size: Episodes in lockstep.
    """

    task: str = "lift"
    max_steps: int = 40
    replan_steps: int = 4
    batch_size: int = 40

    @property
    def environment_options(self) -> dict[str, Any]:
        return {"max_steps": self.max_steps}


class RecordingPolicy:
    """A policy whose decisions are recorded as the policy server records them.

    Args:
        policy: [`SyVLAPolicy`].
        recorder: Where they go.
        policy_version: Hash of its weights.
        seeds: Seeds of the episodes that will run, by which a call's seed is known to belong to one of them.
        settings: How many actions run of each chunk, and how many calls there may be.
    """

    def __init__(
        self,
        policy: SyVLAPolicy,
        recorder: RolloutRecorder,
        policy_version: str,
        seeds: Sequence[int],
        settings: RobotSettings,
    ) -> None:
        self.name, self.chunk_size = policy.name, policy.chunk_size
        self._policy, self._recorder, self._version = policy, recorder, policy_version
        self._executed = settings.replan_steps
        calls = -(-settings.max_steps // settings.replan_steps)
        self._calls = {call_seed(seed, call): (seed, call) for seed in seeds for call in range(calls)}

    def identity(self) -> dict[str, Any]:
        return self._policy.identity()

    def episode_id(self, seed: int) -> str:
        return f"{self._version}-{seed}"

    def predict(
        self, observations: Sequence[Observation], instructions: Sequence[str], *, seeds: Sequence[int]
    ) -> ActionChunks:
        answer = self._policy.predict(observations, instructions, seeds=seeds)
        for row, seed in enumerate(seeds):
            episode, call = self._calls[seed]
            decision = Decision(
                images=observations[row]["images"],
                state=observations[row]["state"],
                instruction=instructions[row],
                embodiment=self._policy.embodiment,
                chunk=answer.actions[row],
                seed=seed,
                policy_version=self._version,
                thought=answer.thoughts[row] if answer.thoughts else None,
            )
            executed = self._executed if call else None
            self._recorder.record(str(episode), decision, episode_id=self.episode_id(episode), executed_before=executed)
        return answer


def load(folder: str | Path) -> SyVLAPolicy:
    """The checkpoint as the tabletop's policy, acting without thoughts."""
    environment = make_environment(ENVIRONMENT, RobotSettings.task)
    policy = SyVLAPolicy.from_pretrained(str(folder), environment.embodiment, environment.view_cameras)
    environment.close()
    return policy


def record_rollouts(
    checkpoint: str | Path, policy_version: str, output: str | Path, seeds: Sequence[int], settings: RobotSettings
) -> float:
    """Run one episode per seed, label each with its outcome, and record it below `output`. Returns the success rate.

    Raises:
        RuntimeError: An environment crashed.
    """
    policy = load(checkpoint)
    environment = make_environment(ENVIRONMENT, settings.task)
    names, rate = list(environment.action_names), environment.control_hz
    environment.close()
    recorder = RolloutRecorder(
        output,
        fps=rate,
        embodiment=policy.embodiment,
        state_names=list(environment.state_names),
        action_names=names,
        assumed_steps=settings.replan_steps,
    )
    try:
        recording = RecordingPolicy(policy, recorder, policy_version, seeds, settings)
        runner = LockstepRunner(
            recording,
            SlotSettings(ENVIRONMENT, settings.environment_options, fingerprint=""),
            settings.replan_steps,
            names,
            batch_size=settings.batch_size,
            progress=False,
        )
        records = runner.run([EpisodeJob(settings.task, seed) for seed in seeds])
        for record in records:
            if record.error is not None or record.attempts > 1:
                raise RuntimeError(f"rollout of seed {record.seed}: the environment crashed ({record.error})")
            recorder.end(
                str(record.seed),
                ended=record.failure_reason or "client",
                executed=record.steps - settings.replan_steps * (record.policy_calls - 1),
                outcome=int(record.success),
            )
    finally:
        recorder.close()
    return sum(record.success for record in records) / len(records)


def success(checkpoint: str | Path, seed: int, episodes: int, settings: RobotSettings) -> dict[str, Any]:
    """Counts of the evaluation episodes of `seed`, always the same starts."""
    result = evaluate_closed_loop(
        load(checkpoint),
        ENVIRONMENT,
        settings.task,
        episodes=episodes,
        seed=seed,
        batch_size=settings.batch_size,
        replan_steps=settings.replan_steps,
        environment_options=settings.environment_options,
        progress=False,
    )
    if result.errors:
        raise RuntimeError(f"evaluation of {checkpoint}: the environment crashed: {result.errors[0].error}")
    return {"successes": result.total.successes, "episodes": result.total.episodes, "success": result.total.rate}


class RobotPublisher(FolderPublisher):
    """Publishes a policy, and then runs it on the simulated robot: a measurement, and rollouts for the next update.

    Args:
        root: Folder of the policies, all of which are kept.
        updates: Updates of the run; the policy after the last one makes no rollouts.
        rollouts: Folder of the recording.
        rollout_seeds: Version of the policy to the seeds of its rollouts.
        settings: Of the robot.
        measure: Success of a published policy, called with its version and folder.

    Attributes:
        curve: What `measure` found, by version.
    """

    def __init__(
        self,
        root: Path,
        *,
        updates: int,
        rollouts: Path,
        rollout_seeds: Callable[[int], Sequence[int]],
        settings: RobotSettings,
        measure: Callable[[int, Path], Mapping[str, Any]],
    ) -> None:
        super().__init__(root, keep=updates + 1)
        self.updates, self.rollouts, self.rollout_seeds = updates, rollouts, rollout_seeds
        self.settings, self.measure = settings, measure
        self.curve: dict[int, Mapping[str, Any]] = {}

    def publish(self, version: int, policy_version: str, save: Callable[[Path], None]) -> None:
        super().publish(version, policy_version, save)
        folder = self.root / f"v{version:04d}"
        self.curve[version] = self.measure(version, folder)
        if version < self.updates:
            record_rollouts(folder, policy_version, self.rollouts, self.rollout_seeds(version), self.settings)
