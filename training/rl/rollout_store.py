"""Rollouts as the update sees them: sealed episodes whose outcome a person (or a rewarder) gave, or that need none."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from syvla.serving.recording.decision import Rollout
from syvla.serving.recording.episode_facts import EpisodeFacts, is_reward, read_facts

logger = logging.getLogger(__name__)


class RolloutStore(Protocol):
    """Where rollouts come from. Implementations may be asked by several processes at once."""

    def labeled(self) -> list[EpisodeFacts]:
        """Sealed episodes with an outcome, and all that ended where no labels are asked for, oldest first."""
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
        labels: Whether only labeled rollouts are offered; without, those that wait for a label as well.
    """

    def __init__(self, root: str | Path, cameras: Mapping[str, str] | None = None, *, labels: bool = True) -> None:
        self.root, self.cameras, self.labels = Path(root), cameras, labels
        self._verified: dict[str, str | None] = {}  # folder of a rollout -> what is wrong with it

    def labeled(self) -> list[EpisodeFacts]:
        """See [`RolloutStore`]."""
        return [facts for facts, _, _ in self._labeled()]

    def load(self, episode_ids: Sequence[str]) -> list[Rollout]:
        """See [`RolloutStore`].

        Raises:
            ValueError: An episode is not there, or has no label.
        """
        from syvla.serving.recording.reader import read_rollouts

        places = {facts.episode_id: (root, index) for facts, root, index in self._labeled()}
        missing = [name for name in episode_ids if name not in places]
        if missing:
            raise ValueError(f"{self.root}: has no labeled episodes {missing[:5]}; was the recording moved or cut?")
        loaded: dict[str, Rollout] = {}
        for root in dict.fromkeys(places[name][0] for name in episode_ids):
            numbers = [places[name][1] for name in episode_ids if places[name][0] == root]
            rollouts = read_rollouts(root, cameras=self.cameras, episodes=numbers)
            loaded |= {rollout.facts.episode_id: rollout for rollout in rollouts}
        return [loaded[name] for name in episode_ids]

    def _recordings(self) -> list[Path]:
        from syvla.processing.robot_data.lerobot_format import INFO_PATH
        from syvla.serving.recording.episode_facts import SEAL, rollout_problem

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

    def _labeled(self) -> list[tuple[EpisodeFacts, Path, int]]:
        """Facts, recording and number of every labeled episode, oldest first."""
        from syvla.processing.robot_data.lerobot_format import read_info

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
                    if not self.labels:
                        found.append((facts, root, index))
                    continue
                if not is_reward(facts.outcome):
                    raise ValueError(
                        f"{root}: episode {facts.episode_id} has outcome {facts.outcome!r}, expected 0 to 1; label it anew"
                    )
                found.append((facts, root, index))
        return sorted(found, key=lambda entry: entry[0].ended_at)


def aggregated(store: RolloutStore, consumed: Sequence[str], rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The rollouts with a person's corrections: those that earlier updates have taken, then those of this one.

    Args:
        store: Where they are.
        consumed: Names of those that earlier updates have taken.
        rollouts: Of this update.
    """
    known = {facts.episode_id: facts.corrections for facts in store.labeled()} if consumed else {}
    if gone := [name for name in consumed if name not in known]:
        logger.warning(
            "%d earlier rollouts are gone, and with them what people corrected in them: %s", len(gone), gone[:3]
        )
    earlier = [name for name in consumed if known.get(name)]
    return [*store.load(earlier), *(rollout for rollout in rollouts if rollout.corrections)]


def replayed(store: RolloutStore, consumed: Sequence[str], most: int | None) -> list[Rollout]:
    """Rollouts that earlier updates have taken and that are still there, oldest first.

    Args:
        store: Where they are.
        consumed: Their names, in the order in which they were taken.
        most: How many of the newest ones; None: all.
    """
    wanted = list(consumed if most is None else consumed[max(len(consumed) - most, 0) :])
    known = {facts.episode_id for facts in store.labeled()} if wanted else set()
    if gone := [name for name in wanted if name not in known]:
        logger.warning("%d earlier rollouts are gone and are not learned from again: %s", len(gone), gone[:3])
    return store.load([name for name in wanted if name in known])
