"""Policies that closed-loop evaluation can drive: a SyVLA checkpoint, the scripted expert, and one that does nothing.

A policy turns observations into action chunks in physical units. It is called with a batch of observations of several
episodes, and its answer for one of them must not depend on the others: all randomness comes from the seed of each call.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np

from serving.action_chunks import ActionChunks

from .environments.base import Observation, RobotEnvironment, ScriptedExpert


class Policy(Protocol):
    """What `evaluate_closed_loop` needs of a policy.

    Attributes:
        name: For reports and progress bars.
        chunk_size: T, the number of actions per call.
    """

    name: str
    chunk_size: int

    def identity(self) -> dict[str, Any]:
        """JSON-serialisable description that changes whenever the policy's behaviour may change."""
        ...

    def start_episode(self, environment: RobotEnvironment, seed: int) -> None:
        """Called after the environment was reset to the episode of `seed`."""
        ...

    def predict(
        self,
        observations: Sequence[Observation],
        instructions: Sequence[str],
        *,
        seeds: Sequence[int],
        environments: Sequence[RobotEnvironment],
    ) -> ActionChunks:
        """Action chunks for B observations.

        Args:
            observations: B observations.
            instructions: B task instructions.
            seeds: B seeds, unique to episode and call; the only source of randomness.
            environments: The B environments, for policies that need privileged state; others ignore them.
        """
        ...


class ExpertPolicy:
    """The environment's scripted expert, which sees the simulator's state: what the task allows at best."""

    name = "expert"
    chunk_size = 1

    def __init__(self) -> None:
        self._experts: WeakKeyDictionary[RobotEnvironment, ScriptedExpert] = WeakKeyDictionary()

    def identity(self) -> dict[str, Any]:
        return {"policy": "expert"}

    def start_episode(self, environment: RobotEnvironment, seed: int) -> None:
        from .environments import make_expert

        if environment not in self._experts:
            self._experts[environment] = make_expert(environment)
        self._experts[environment].reset()

    def predict(
        self,
        observations: Sequence[Observation],
        instructions: Sequence[str],
        *,
        seeds: Sequence[int],
        environments: Sequence[RobotEnvironment],
    ) -> ActionChunks:
        """See `Policy.predict`."""
        answers = [self._experts[environment].act() for environment in environments]
        actions = np.stack([np.asarray(action, dtype=np.float32) for action, _ in answers])[:, None]  # (B, 1, D)
        return ActionChunks(actions, [thought for _, thought in answers])


class StillPolicy:
    """Commands the present joint positions, so that the robot holds still: its success would be a broken task."""

    name = "still"
    chunk_size = 1

    def identity(self) -> dict[str, Any]:
        return {"policy": "still"}

    def start_episode(self, environment: RobotEnvironment, seed: int) -> None:
        """Nothing to prepare."""

    def predict(
        self,
        observations: Sequence[Observation],
        instructions: Sequence[str],
        *,
        seeds: Sequence[int],
        environments: Sequence[RobotEnvironment],
    ) -> ActionChunks:
        """See `Policy.predict`.

        Raises:
            ValueError: If action and state are different quantities, so that holding still has no meaning.
        """
        for environment in environments:
            if len(environment.state_names) != len(environment.action_names):
                raise ValueError(
                    f"policy 'still': needs actions that are target states, but {environment.embodiment!r} has "
                    f"{len(environment.state_names)} state and {len(environment.action_names)} action dimensions"
                )
        return ActionChunks(np.stack([observation["state"] for observation in observations])[:, None])  # (B, 1, D)


BASELINES: dict[str, type[ExpertPolicy] | type[StillPolicy]] = {"expert": ExpertPolicy, "still": StillPolicy}


def load_policy(model: str, environment: RobotEnvironment, **options: Any) -> Policy:
    """A policy for `environment`.

    Args:
        model: "expert", "still", or folder or Hub id of a checkpoint.
        environment: Gives embodiment and cameras.
        **options: For a checkpoint: see `SyVLAPolicy.from_pretrained`.

    Raises:
        FileNotFoundError: If `model` is the path of a folder that does not exist.
    """
    if model in BASELINES:
        return BASELINES[model]()
    if model.startswith((".", "/", "~")) and not Path(model).is_dir():
        raise FileNotFoundError(f"model: {model} is not a folder; expected a checkpoint, or one of {sorted(BASELINES)}")
    from serving.policy import SyVLAPolicy  # torch, which an environment with a policy server behind it may lack

    return SyVLAPolicy.from_pretrained(model, environment.embodiment, environment.view_cameras, **options)
