"""SyVLA's tabletop simulator as an environment of LeRobot: `lerobot-eval --env.type=syvla_tabletop`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

CAMERAS = ("head", "left_wrist", "right_wrist")
DIMENSIONS = 14  # six joints [rad] and the gripper opening [m], per arm


class TabletopForLeRobot(gym.Env):
    """The tabletop with LeRobot's observation keys. Seeds are shifted to those that `syvla-eval` uses.

    Args:
        task: Name of the task.
        image_size: Side of the pictures in pixels.
        max_steps: Control steps of an episode.
    """

    def __init__(self, task: str, image_size: int, max_steps: int) -> None:
        from syvla.evaluation.environments import EVALUATION_SEED_OFFSET, make_environment

        self._seed_offset = EVALUATION_SEED_OFFSET
        self._env = make_environment("tabletop", task, image_size=image_size, max_steps=max_steps)
        # LeRobot writes videos with this rate, which must be an integer.
        self.metadata = {**self._env.metadata, "render_fps": round(self._env.control_hz)}
        self.render_mode = "rgb_array"
        self.task = task
        self.task_description = ""
        self._max_episode_steps = max_steps
        inner = self._env.observation_space
        self.observation_space = gym.spaces.Dict({"pixels": inner["images"], "agent_pos": inner["state"]})
        self.action_space = self._env.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self._env.reset(seed=None if seed is None else seed + self._seed_offset)
        self.task_description = info["instruction"]
        return _renamed(observation), {"is_success": info["success"]}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self._env.step(np.asarray(action, dtype=np.float32))
        return _renamed(observation), float(reward), terminated, truncated, {"is_success": info["success"]}

    def render(self) -> np.ndarray:
        return self._env.render()

    def close(self) -> None:
        self._env.close()


def _renamed(observation: dict[str, Any]) -> dict[str, Any]:
    return {"pixels": dict(observation["images"]), "agent_pos": observation["state"]}


@EnvConfig.register_subclass("syvla_tabletop")
@dataclass
class TabletopEnvConfig(EnvConfig):
    """Options of the tabletop; needs `pip install 'syvla[sim]'`.

    Attributes:
        task: "lift", or another task of the simulator.
        fps: Control steps per second; the simulator's.
        image_size: Side of the pictures in pixels; the one of the training data.
        episode_length: Control steps after which an episode ends.
    """

    task: str | None = "lift"
    fps: int = 10
    image_size: int = 32
    episode_length: int = 80
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        picture = (self.image_size, self.image_size, 3)
        self.features = {
            ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(DIMENSIONS,)),
            "agent_pos": PolicyFeature(type=FeatureType.STATE, shape=(DIMENSIONS,)),
            **{f"pixels/{camera}": PolicyFeature(type=FeatureType.VISUAL, shape=picture) for camera in CAMERAS},
        }
        self.features_map = {
            ACTION: ACTION,
            "agent_pos": OBS_STATE,
            **{f"pixels/{camera}": f"{OBS_IMAGES}.{camera}" for camera in CAMERAS},
        }

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {"task": self.task, "image_size": self.image_size, "max_steps": self.episode_length}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, VectorEnv]]:
        makers: list[Callable[[], gym.Env]] = [partial(TabletopForLeRobot, **self.gym_kwargs) for _ in range(n_envs)]
        mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
        if use_async_envs and n_envs > 1:
            return {self.type: {0: AsyncVectorEnv(makers, context="spawn", **mode)}}
        return {self.type: {0: SyncVectorEnv(makers, **mode)}}
