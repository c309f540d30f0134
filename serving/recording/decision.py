"""One decision of a policy, and a rollout: the same objects from the server's answer to the update that learns from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from syvla.serving.contract.rollout_sampler import ChainStep

from .episode_facts import EpisodeFacts


@dataclass(frozen=True, eq=False)
class Decision:
    """What a policy observed and what it answered.

    Attributes:
        images: View to uint8 (H, W, 3), as the policy got them. Those of a recorded decision are read when asked for.
        state: float32 (D_state,), physical units.
        instruction: Not empty.
        embodiment: Name of the robot.
        chunk: float32 (T, D_action), physical units: what the policy predicted.
        seed: Of the flow's noise, 0 <= seed < 2**63; -1 where the client brought the noise, which is not recorded.
        policy_version: Hash of the weights.
        thought: None if the policy did not think for this decision and no earlier thought is in force.
        limited: The chunk as the robot got it, where safety limits changed it; None: as `chunk`. Not recorded.
        executed: How many actions of the chunk ran; None as long as the next request has not said.
        executed_known: Whether the client said so, or sent every step; otherwise `executed` is an assumption.
        control_step: Control steps since the episode began.
        frozen_steps: Actions at the start of the chunk that continue the previous chunk.
        query_age: Age of the query states in seconds; 0 in synchronous use.
        chain: The sampler's stochastic step; None where the flow was integrated as it is.
        taken_over: Whether a person took over while the chunk was in force.
    """

    images: Mapping[str, np.ndarray]
    state: np.ndarray
    instruction: str
    embodiment: str
    chunk: np.ndarray
    seed: int
    policy_version: str
    thought: str | None = None
    limited: np.ndarray | None = None
    executed: int | None = None
    executed_known: bool = False
    control_step: int = 0
    frozen_steps: int = 0
    query_age: float = 0.0
    chain: ChainStep | None = None
    taken_over: bool = False

    @property
    def commands(self) -> np.ndarray:
        """The chunk as the robot got it, float32 (T, D_action)."""
        return self.chunk if self.limited is None else self.limited

    @property
    def valid(self) -> np.ndarray:
        """bool (T,), True where an action ran that is the decision's own, not carried over from the previous chunk."""
        steps = np.arange(len(self.chunk))
        return (steps >= self.frozen_steps) & (steps < (self.executed or 0))

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        chain = 0 if self.chain is None else self.chain.before.nbytes + self.chain.after.nbytes
        return sum(image.nbytes for image in self.images.values()) + self.chunk.nbytes + chain

    def item(self, *, thoughts: bool = True) -> dict[str, Any]:
        """A robot item as `SyVLAProcessor.collate` takes it."""
        return {
            "images": dict(self.images),
            "text": self.instruction,
            "thought": self.thought if thoughts else None,
            "embodiment": self.embodiment,
            "state": self.state,
            "actions": self.chunk,
            "action_is_pad": ~self.valid,
            "chain": self.chain,
        }


@dataclass(frozen=True, eq=False)
class Correction:
    """A control step at which a person acted instead of the policy.

    Attributes:
        images: View to uint8 (H, W, 3). They are read when asked for.
        state: float32 (D_state,), physical units.
        instruction: Not empty.
        embodiment: Name of the robot.
        commands: The person's commands from this step on until the policy acted again or the episode ended, float32 (n, D),
            physical units, n >= 1.
        ends_episode: Whether the person acted until the episode's end.
    """

    images: Mapping[str, np.ndarray]
    state: np.ndarray
    instruction: str
    embodiment: str
    commands: np.ndarray
    ends_episode: bool

    def item(self, chunk_size: int) -> dict[str, Any]:
        """A robot item as `SyVLAProcessor.collate` takes it. A person states no thought."""
        steps = np.arange(chunk_size)
        return {
            "images": dict(self.images),
            "text": self.instruction,
            "thought": None,
            "embodiment": self.embodiment,
            "state": self.state,
            "actions": self.commands[np.minimum(steps, len(self.commands) - 1)],
            "action_is_pad": steps >= len(self.commands),
        }


@dataclass(frozen=True, eq=False)
class Rollout:
    """A recorded episode.

    Attributes:
        facts: What belongs to the whole episode: outcome, robot, policies.
        decisions: In order; at least one.
        final: The last decision with the images and the state of the last observation that the robot sent, for the value
            of the state that a time limit cut off. Of a robot that sends none between its decisions, the last decision.
        corrections: The control steps at which a person acted, in order.
    """

    facts: EpisodeFacts
    decisions: list[Decision]
    final: Decision
    corrections: tuple[Correction, ...] = ()


class StoredImages(Mapping[str, np.ndarray]):
    """The images of one row of a dataset, view to uint8 (H, W, 3); each is decoded anew whenever it is asked for.

    Args:
        dataset: [`RobotDataset`].
        row: Number of the row.
    """

    def __init__(self, dataset: Any, row: int) -> None:
        self.dataset, self.row = dataset, row

    def __getitem__(self, view: str) -> np.ndarray:
        if view not in self.dataset.cameras:
            raise KeyError(view)
        image: np.ndarray = self.dataset.read_image(view, self.row)
        return image

    def __iter__(self) -> Iterator[str]:
        return iter(self.dataset.cameras)

    def __len__(self) -> int:
        return len(self.dataset.cameras)
