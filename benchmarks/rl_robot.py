"""A simulated robot and its rewarder for reinforcement learning in one process: rollouts without a server in between.

The episodes are those of closed-loop evaluation (`LockstepRunner`), or, where the scripted expert may take over, those of
`syvla-rl-robot`. Decisions are recorded by the `RolloutRecorder` behind `syvla-serve --record`, sampled as that server
samples them, and the update reads them back from disk as it reads a server's. Only HTTP is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from syvla.evaluation.closed_loop import evaluate_closed_loop
from syvla.evaluation.environments import make_environment
from syvla.evaluation.environments.base import Observation
from syvla.evaluation.episode_slot import SlotSettings, call_seed
from syvla.evaluation.lockstep import EpisodeJob, LockstepRunner
from syvla.evaluation.simulated_robot import RobotOptions, run_episode
from syvla.serving.contract.action_chunks import ActionChunks
from syvla.serving.contract.rollout_sampler import ChainStep, RolloutSampler, read_sampler
from syvla.serving.policies.backend import sample_rollout
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
        split: Of the environment: "in_domain", or "ood".
        think: Whether the policy thinks before each chunk.
        takeover_after: In rollouts, control steps after which the scripted expert takes over; None: never.
    """

    task: str = "lift"
    max_steps: int = 40
    replan_steps: int = 4
    batch_size: int = 40
    split: str = "in_domain"
    think: bool = False
    takeover_after: int | None = None

    @property
    def environment_options(self) -> dict[str, Any]:
        split = {} if self.split == "in_domain" else {"split": self.split}
        return {"max_steps": self.max_steps, **split}


class CommandCount:
    """Counts commands that the robot cannot carry out as they are; the simulator clips them, a real robot may not.

    Args:
        environment: Whose limits count.
        steps: Actions executed of each chunk; after a success in the middle of one, those that were left count as well.

    Attributes:
        commands: All of them.
        beyond_position: Those with a joint target beyond its limit. Grippers do not count: to close is to command the limit.
        beyond_speed: Those further from the one before them in the chunk than a joint can move in a control step.
    """

    def __init__(self, environment: Any, steps: int) -> None:
        self._joints = np.array(["gripper" not in name for name in environment.action_names])
        space, motion = environment.action_space, environment.max_step_motion
        self._low, self._high, self._motion = (limit[self._joints] for limit in (space.low, space.high, motion))
        self._steps = steps
        self.commands = self.beyond_position = self.beyond_speed = 0

    def add(self, chunks: np.ndarray) -> None:
        """Counts chunks (B, T, D), in physical units."""
        ran = np.asarray(chunks)[:, : self._steps, self._joints]
        self.commands += ran.shape[0] * ran.shape[1]
        self.beyond_position += int(((ran < self._low) | (ran > self._high)).any(-1).sum())
        self.beyond_speed += int((np.abs(np.diff(ran, axis=1)) > self._motion).any(-1).sum())

    def plain(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("commands", "beyond_position", "beyond_speed")}


class CountedPolicy:
    """A policy whose commands are counted."""

    def __init__(self, policy: SyVLAPolicy, count: CommandCount) -> None:
        self.name, self.chunk_size = policy.name, policy.chunk_size
        self._policy, self._count = policy, count

    def identity(self) -> dict[str, Any]:
        return self._policy.identity()

    def predict(
        self, observations: Sequence[Observation], instructions: Sequence[str], *, seeds: Sequence[int]
    ) -> ActionChunks:
        answer = self._policy.predict(observations, instructions, seeds=seeds)
        self._count.add(answer.actions)
        return answer


def sampled(
    policy: SyVLAPolicy,
    sampler: RolloutSampler | None,
    observations: Sequence[Observation],
    instructions: Sequence[str],
    seeds: Sequence[int],
) -> tuple[ActionChunks, Sequence[ChainStep | None]]:
    """Chunks as the server of a run samples them: by the published sampler, with its stochastic steps, where there is one."""
    if sampler is None:
        return policy.predict(observations, instructions, seeds=seeds), [None] * len(seeds)
    inputs = policy.inputs(
        [one["images"] for one in observations], [one["state"] for one in observations], instructions
    )
    intention = policy.intention(inputs)
    actions, chains = sample_rollout(policy, inputs, intention, seeds=seeds, sampler=sampler)
    return ActionChunks(actions, intention.thoughts), chains


class RecordingPolicy:
    """A policy whose decisions are recorded as the policy server records them.

    Args:
        policy: [`SyVLAPolicy`].
        recorder: Where they go.
        policy_version: Hash of its weights.
        seeds: Seeds of the episodes that will run, by which a call's seed is known to belong to one of them.
        settings: How many actions run of each chunk, and how many calls there may be.
        sampler: How chunks are sampled; None: as the policy does by itself.
        count: Of the commands.
    """

    def __init__(
        self,
        policy: SyVLAPolicy,
        recorder: RolloutRecorder,
        policy_version: str,
        seeds: Sequence[int],
        settings: RobotSettings,
        sampler: RolloutSampler | None,
        count: CommandCount,
    ) -> None:
        self._sampler, self._count = sampler, count
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
        answer, chains = sampled(self._policy, self._sampler, observations, instructions, seeds)
        self._count.add(answer.actions)
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
                chain=chains[row],
            )
            executed = self._executed if call else None
            self._recorder.record(str(episode), decision, episode_id=self.episode_id(episode), executed_before=executed)
        return answer


class InProcessClient:
    """What `RLClient` is to `syvla-rl-robot`, for a policy in this process whose decisions and corrections are recorded.

    Args:
        policy: [`SyVLAPolicy`].
        recorder: Where they go.
        policy_version: Hash of its weights.
        sampler, count: See `RecordingPolicy`.

    Attributes:
        takeover: Nobody asks for the robot.
    """

    takeover = False

    def __init__(
        self,
        policy: SyVLAPolicy,
        recorder: RolloutRecorder,
        policy_version: str,
        sampler: RolloutSampler | None,
        count: CommandCount,
    ) -> None:
        self._policy, self._recorder, self._version = policy, recorder, policy_version
        self._sampler, self._count = sampler, count
        self._episode = 0
        self._ended: dict[str, Any] = {}

    def begin(self, wait_s: float) -> dict[str, Any]:
        self._episode += 1
        return {"episode_id": f"{self._version}-{self._episode}", "version": self._version}

    def act(
        self,
        images: Mapping[str, np.ndarray],
        state: np.ndarray,
        prompt: str,
        *,
        seed: int,
        executed_steps: int | None = None,
        **extras: Any,
    ) -> dict[str, Any]:
        named = {self._policy.view_cameras[view]: image for view, image in images.items()}
        answer, chains = sampled(self._policy, self._sampler, [{"images": named, "state": state}], [prompt], [seed])
        self._count.add(answer.actions)
        decision = Decision(
            images=named,
            state=state,
            instruction=prompt,
            embodiment=self._policy.embodiment,
            chunk=answer.actions[0],
            seed=seed,
            policy_version=self._version,
            thought=answer.thoughts[0] if answer.thoughts else None,
            chain=chains[0],
        )
        name = f"{self._version}-{self._episode}"
        self._recorder.record(name, decision, episode_id=name, executed_before=executed_steps)
        return {"actions": answer.actions[0]}

    def observe(self, images: Mapping[str, np.ndarray], state: np.ndarray, prompt: str, **extras: Any) -> None:
        self._observed(images, state)

    def correct(
        self,
        images: Mapping[str, np.ndarray],
        state: np.ndarray,
        prompt: str,
        action: np.ndarray,
        *,
        executed_steps: int | None = None,
        **extras: Any,
    ) -> None:
        self._observed(images, state, correction=np.asarray(action, np.float32), executed=executed_steps)

    def _observed(self, images: Mapping[str, np.ndarray], state: np.ndarray, **correction: Any) -> None:
        named = {self._policy.view_cameras[view]: image for view, image in images.items()}
        self._recorder.observe(f"{self._version}-{self._episode}", named, state, **correction)

    def end(self, executed_steps: int | None = None, *, timed_out: bool = False) -> None:
        self._ended = {"executed": executed_steps, "ended": "time limit" if timed_out else "client"}

    def reward(self, reward: int) -> None:
        self._recorder.end(f"{self._version}-{self._episode}", outcome=reward, **self._ended)


def load(folder: str | Path, settings: RobotSettings) -> SyVLAPolicy:
    """The checkpoint as the tabletop's policy."""
    with closing(make_environment(ENVIRONMENT, settings.task)) as environment:
        embodiment, cameras = environment.embodiment, environment.view_cameras
    return SyVLAPolicy.from_pretrained(str(folder), embodiment, cameras, think=settings.think)


def record_rollouts(
    checkpoint: str | Path, policy_version: str, output: str | Path, seeds: Sequence[int], settings: RobotSettings
) -> dict[str, Any]:
    """Run one episode per seed, label each with its outcome, and record it below `output`.

    Returns:
        `success` of the policy alone, `takeovers`, and counts of its commands.

    Raises:
        RuntimeError: An environment crashed.
    """
    policy, sampler = load(checkpoint, settings), read_sampler(Path(checkpoint))
    with closing(make_environment(ENVIRONMENT, settings.task, **settings.environment_options)) as environment:
        count = CommandCount(environment, settings.replan_steps)
        recorder = RolloutRecorder(
            output,
            fps=environment.control_hz,
            embodiment=policy.embodiment,
            state_names=list(environment.state_names),
            action_names=list(environment.action_names),
            assumed_steps=settings.replan_steps,
        )
        try:
            if settings.takeover_after is None:
                successes, takeovers = _alone(policy, sampler, policy_version, recorder, seeds, settings, count), 0
            else:
                client: Any = InProcessClient(policy, recorder, policy_version, sampler, count)
                options = RobotOptions(settings.replan_steps, settings.think, takeover_after=settings.takeover_after)
                done = [run_episode(client, environment, seed, options) for seed in seeds]
                successes = sum(one["success"] for one in done)
                takeovers = sum(one["takeover"] is not None for one in done)
        finally:
            recorder.close()
    return {"success": successes / len(seeds), "takeovers": takeovers, **count.plain()}


def _alone(
    policy: SyVLAPolicy,
    sampler: RolloutSampler | None,
    policy_version: str,
    recorder: RolloutRecorder,
    seeds: Sequence[int],
    settings: RobotSettings,
    count: CommandCount,
) -> int:
    """Successes of episodes in lockstep, in which nobody takes over."""
    with closing(make_environment(ENVIRONMENT, settings.task)) as environment:
        names = list(environment.action_names)
    recording = RecordingPolicy(policy, recorder, policy_version, seeds, settings, sampler, count)
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
    return sum(record.success for record in records)


def success(checkpoint: str | Path, seed: int, episodes: int, settings: RobotSettings) -> dict[str, Any]:
    """Outcomes of the evaluation episodes of `seed`, always the same starts, with counts of the commands."""
    with closing(make_environment(ENVIRONMENT, settings.task)) as environment:
        count = CommandCount(environment, settings.replan_steps)
    result = evaluate_closed_loop(
        CountedPolicy(load(checkpoint, settings), count),
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
    outcomes = "".join("s" if record.success else "f" for record in result.records)
    total = {"successes": result.total.successes, "episodes": result.total.episodes, "success": result.total.rate}
    return {**total, "outcomes": outcomes, **count.plain()}


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
        made: What `record_rollouts` said, by version.
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
        self.made: dict[int, Mapping[str, Any]] = {}

    def publish(self, version: int, policy_version: str, save: Callable[[Path], None]) -> None:
        super().publish(version, policy_version, save)
        folder = self.root / f"v{version:04d}"
        self.curve[version] = self.measure(version, folder)
        if version < self.updates:
            seeds = self.rollout_seeds(version)
            self.made[version] = record_rollouts(folder, policy_version, self.rollouts, seeds, self.settings)
