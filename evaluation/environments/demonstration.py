"""One demonstration: a scripted expert acts in an environment and everything it saw and did is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import ScriptedExpert
from .disturbance import Disturbance

_DISTURBANCE_STREAM = 7  # keeps the noise apart from the environment's own draw of the same seed


@dataclass
class Demonstration:
    """One attempt. Frame t holds what was seen before action t.

    Attributes:
        task: Name of the task.
        seed: Seed of the episode.
        success: Whether the task was solved.
        instruction: Sentence given to the policy.
        images: Camera to uint8 (T, H, W, 3).
        states: float32 (T, D_state), physical units.
        actions: float32 (T, D_action), the expert's own (clean) actions, physical units.
        thoughts: One sub-task per frame.
    """

    task: str
    seed: int
    success: bool
    instruction: str
    images: dict[str, np.ndarray]
    states: np.ndarray
    actions: np.ndarray
    thoughts: list[str]


def demonstrate(
    env: Any, expert: ScriptedExpert, *, seed: int, action_noise: float = 0.0, recovery: bool = False
) -> Demonstration:
    """Runs the expert for one episode.

    Args:
        env: Environment, see `RobotEnvironment`.
        expert: Expert made for this environment.
        seed: Seed of the episode and of the disturbance.
        action_noise: See `Disturbance`.
        recovery: See `Disturbance`.

    Raises:
        ValueError: If the environment has no `max_step_motion`, by which a disturbance is measured.
    """
    max_step_motion = getattr(env, "max_step_motion", None)
    if max_step_motion is None and (action_noise or recovery):
        raise ValueError(
            f"action_noise, recovery: {type(env.unwrapped).__name__} lacks max_step_motion, its largest motion per control "
            "step in each action dimension; give it that attribute, or record undisturbed"
        )
    observation, info = env.reset(seed=seed)
    expert.reset()
    disturb = Disturbance(
        action_noise=action_noise,
        recovery=recovery,
        max_step_motion=np.zeros(len(env.action_names)) if max_step_motion is None else max_step_motion,
        low=env.action_space.low,
        high=env.action_space.high,
        gripper=np.array([name.endswith("gripper") for name in env.action_names]),
        rng=np.random.default_rng([seed, _DISTURBANCE_STREAM]),
    )
    observations, actions, thoughts, done = [], [], [], False
    while not done:
        action, thought = expert.act()
        observations.append(observation)
        actions.append(action)
        thoughts.append(thought)
        observation, _, terminated, truncated, info = env.step(disturb(action))
        done = terminated or truncated
    return Demonstration(
        task=env.task,
        seed=seed,
        success=bool(info["success"]),
        instruction=info["instruction"],
        images={camera: np.stack([frame["images"][camera] for frame in observations]) for camera in env.cameras},
        states=np.stack([frame["state"] for frame in observations]),
        actions=np.stack(actions),
        thoughts=thoughts,
    )
