"""Policies to compare with that need no model: the scripted expert, holding still, and random actions.

They act where the environment lives (in a worker process, if there are any), so that the expert sees the simulator's
state and no picture is rendered or sent for them.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

from .environments.base import Observation, RobotEnvironment, ScriptedExpert


@runtime_checkable
class Baseline(Protocol):
    """A policy beside one environment.

    Attributes:
        name: For reports and progress bars.
    """

    name: str

    def identity(self) -> dict[str, Any]:
        """JSON-serializable description that changes whenever the behavior may change."""
        ...

    def start_episode(self, environment: RobotEnvironment) -> None:
        """Called after the environment was reset."""
        ...

    def act(self, environment: RobotEnvironment, observation: Observation, seed: int) -> tuple[np.ndarray, str]:
        """The next action (D_action,) and the thought behind it, empty for none.

        Args:
            environment: The environment, just before the action.
            observation: Its last observation.
            seed: Unique to episode and step; the only source of randomness.
        """
        ...


class ExpertBaseline:
    """The environment's scripted expert, which sees the simulator's state: what the task allows at best."""

    name = "expert"

    def __init__(self) -> None:
        self._environment: RobotEnvironment | None = None
        self._expert: ScriptedExpert

    def identity(self) -> dict[str, Any]:
        return {"policy": self.name}

    def start_episode(self, environment: RobotEnvironment) -> None:
        from .environments import make_expert

        if environment is not self._environment:
            self._environment, self._expert = environment, make_expert(environment)
        self._expert.reset()

    def act(self, environment: RobotEnvironment, observation: Observation, seed: int) -> tuple[np.ndarray, str]:
        """See `Baseline.act`."""
        return self._expert.act()


class StillBaseline:
    """Commands the present joint positions, so that the robot holds still: its success would be a broken task."""

    name = "still"

    def identity(self) -> dict[str, Any]:
        return {"policy": self.name}

    def start_episode(self, environment: RobotEnvironment) -> None:
        """Checks that holding still has a meaning.

        Raises:
            ValueError: If action and state are different quantities.
        """
        if tuple(environment.state_names) != tuple(environment.action_names):
            raise ValueError(
                f"policy 'still': needs actions that are target states, but of {environment.embodiment!r} the state is "
                f"({', '.join(environment.state_names)}) and the action ({', '.join(environment.action_names)}); use "
                "'random' instead"
            )

    def act(self, environment: RobotEnvironment, observation: Observation, seed: int) -> tuple[np.ndarray, str]:
        """See `Baseline.act`."""
        return observation["state"], ""


class RandomBaseline:
    """Independent random actions: uniform between an action dimension's limits, standard normal where it has none."""

    name = "random"

    def identity(self) -> dict[str, Any]:
        return {"policy": self.name}

    def start_episode(self, environment: RobotEnvironment) -> None:
        """Nothing to prepare."""

    def act(self, environment: RobotEnvironment, observation: Observation, seed: int) -> tuple[np.ndarray, str]:
        """See `Baseline.act`."""
        low = np.asarray(environment.action_space.low, dtype=np.float64)
        high = np.asarray(environment.action_space.high, dtype=np.float64)
        generator = np.random.default_rng(seed)
        bounded = np.isfinite(low) & np.isfinite(high)
        uniform = generator.uniform(np.where(bounded, low, 0.0), np.where(bounded, high, 1.0))
        normal = np.clip(generator.standard_normal(low.shape), low, high)
        return np.where(bounded, uniform, normal).astype(np.float32), ""


BASELINES: dict[str, type[ExpertBaseline] | type[StillBaseline] | type[RandomBaseline]] = {
    baseline.name: baseline for baseline in (ExpertBaseline, StillBaseline, RandomBaseline)
}
"""By the name that stands for them in place of a checkpoint."""
