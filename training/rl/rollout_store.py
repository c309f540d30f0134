"""Rollouts as the update sees them. Only sealed episodes whose outcome a person (or a rewarder) gave are offered."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from syvla.serving.contract.rollout_sampler import ChainStep

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RolloutInfo:
    """What is known of an episode without reading its frames.

    Attributes:
        episode_id: Unique name.
        policy_versions: Hashes of the weights that acted; more than one if they were swapped on the way.
        reward: 1 success, 0 failure.
        embodiment: Robot.
        timed_out: Whether a time limit cut it off, see `EpisodeFacts.timed_out`.
    """

    episode_id: str
    policy_versions: tuple[str, ...]
    reward: int
    embodiment: str
    timed_out: bool = False


@dataclass(frozen=True)
class Decision:
    """One decision of a rollout.

    Attributes:
        source: Data set whose `read_image(view, row)` gives the images.
        row: Its frame there.
        state: Raw, (D_state,).
        chunk: What the policy predicted, raw, (T, D_action).
        valid: bool (T,), True where the policy's own action was executed.
        text, thought, embodiment: Instruction, thought or None, robot.
        chain: Step of the sampler; None where it was not recorded.
    """

    source: Any
    row: int
    state: np.ndarray
    chunk: np.ndarray
    valid: np.ndarray
    text: str
    thought: str | None
    embodiment: str
    chain: ChainStep | None = None

    def images(self) -> dict[str, np.ndarray]:
        """View to uint8 (H, W, 3), decoded anew."""
        return {view: self.source.read_image(view, self.row) for view in self.source.cameras}

    def item(self, *, thoughts: bool = True) -> dict[str, Any]:
        """A robot item as `SyVLAProcessor.collate` takes it."""
        return {
            "images": self.images(),
            "text": self.text,
            "thought": self.thought if thoughts else None,
            "embodiment": self.embodiment,
            "state": self.state,
            "actions": self.chunk,
            "action_is_pad": ~self.valid,
            "chain": self.chain,
        }


@dataclass(frozen=True)
class Rollout:
    """An episode.

    Attributes:
        info: See [`RolloutInfo`].
        decisions: In order; at least one.
        final: The last observation that the robot sent, for the value of the state that a time limit cut off; of a robot
            that sends none between its decisions, that of its last decision.
    """

    info: RolloutInfo
    decisions: list[Decision]
    final: Decision


class RolloutStore(Protocol):
    """Where rollouts come from. Implementations may be asked by several processes at once."""

    def labelled(self) -> list[RolloutInfo]:
        """Sealed episodes with an outcome, oldest first."""
        ...

    def load(self, episode_ids: Sequence[str]) -> list[Rollout]:
        """These episodes, in this order."""
        ...


class LeRobotRolloutStore:
    """Rollouts that a policy server records, see `syvla.serving.recording.format`.

    Args:
        root: Folder of one recording (`syvla-serve --record`), or of one per rollout (`syvla-serve --rl-run`), where damaged
            ones are left out; it may appear later.
        cameras: View to camera feature; None: inferred from the features' names.
    """

    def __init__(self, root: str | Path, cameras: Mapping[str, str] | None = None) -> None:
        self.root, self.cameras = Path(root), cameras
        self._verified: dict[str, str | None] = {}  # folder of a rollout -> what is wrong with it

    def labelled(self) -> list[RolloutInfo]:
        return [info for info, _, _ in self._facts()]

    def load(self, episode_ids: Sequence[str]) -> list[Rollout]:
        known = {info.episode_id: (info, root, index) for info, root, index in self._facts()}
        missing = [name for name in episode_ids if name not in known]
        if missing:
            raise ValueError(f"{self.root}: has no labelled episodes {missing[:5]}; was the recording moved or cut?")
        loaded: dict[str, Rollout] = {}
        for root in dict.fromkeys(known[name][1] for name in episode_ids):
            loaded |= self._load(root, {n: known[n] for n in episode_ids if known[n][1] == root})
        return [loaded[name] for name in episode_ids]

    def _load(self, root: Path, wanted: Mapping[str, tuple[RolloutInfo, Path, int]]) -> dict[str, Rollout]:
        from syvla.processing.robot_data.robot_dataset import RobotDataset
        from syvla.serving.recording.reader import read_rollouts

        numbers = [index for _, _, index in wanted.values()]
        cameras = None if self.cameras is None else dict(self.cameras)
        dataset = RobotDataset(root, embodiment="", cameras=cameras, episodes=numbers)
        episodes = {episode.episode_index: episode for episode in read_rollouts(root, start=min(numbers))}
        return {
            name: _rollout(info, episodes[index], dataset, position)
            for position, (name, (info, _, index)) in enumerate(wanted.items())
        }

    def _recordings(self) -> list[Path]:
        from syvla.processing.robot_data.lerobot_format import INFO_PATH
        from syvla.serving.recording.seal import SEAL, rollout_problem

        if (self.root / INFO_PATH).is_file():
            return [self.root]
        found = []
        for seal in sorted(self.root.glob(f"*/{SEAL}")):
            name = seal.parent.name
            if name.startswith("."):
                continue
            if name not in self._verified:
                self._verified[name] = problem = rollout_problem(seal.parent)
                if problem is not None:
                    logger.error("rollout %s is damaged and left out: %s", seal.parent, problem)
            if self._verified[name] is None and seal.is_file():  # nobody has put it aside meanwhile
                found.append(seal.parent)
        return found

    def _facts(self) -> list[tuple[RolloutInfo, Path, int]]:
        from syvla.processing.robot_data.lerobot_format import read_info
        from syvla.serving.recording.recorder import read_facts

        found = []
        for root in self._recordings():
            for index in range(read_info(root).total_episodes):
                try:
                    facts = read_facts(root, index)
                except ValueError as error:
                    if root == self.root:
                        raise
                    logger.warning("rollout left out until the server is started again, which restores it: %s", error)
                    continue
                if facts.outcome is None:  # nobody has said yet: it waits, it never counts as 0
                    continue
                if facts.outcome not in (0, 1):
                    raise ValueError(
                        f"{root}: episode {facts.episode_id} has outcome {facts.outcome!r}, expected 0 or 1; label it anew"
                    )
                info = RolloutInfo(
                    facts.episode_id,
                    tuple(facts.policy_versions),
                    int(facts.outcome),
                    facts.embodiment,
                    facts.timed_out,
                )
                found.append((facts.ended_at, info, root, index))
        return [entry[1:] for entry in sorted(found, key=lambda entry: entry[0])]


def _rollout(info: RolloutInfo, episode: Any, dataset: Any, position: int) -> Rollout:
    first = int(dataset.episode_starts[position])
    own = np.arange(episode.chunks.shape[1])[None] >= episode.frozen_steps[:, None]  # not carried over
    valid = episode.valid & own
    offset = first - int(episode.frames[0])  # the first row of an episode is a decision

    def decision(number: int, row: int, state: np.ndarray) -> Decision:
        return Decision(
            dataset,
            row,
            state,
            episode.chunks[number],
            valid[number],
            dataset.tasks[dataset.task_indices[row]],
            episode.thoughts[number] or None,
            info.embodiment,
            episode.chains[number],
        )

    decisions = [
        decision(number, int(episode.frames[number]) + offset, episode.states[number])
        for number in range(len(episode.frames))
    ]
    last = first + int(dataset.episode_lengths[position]) - 1
    return Rollout(info, decisions, decision(len(decisions) - 1, last, dataset.states[last]))
