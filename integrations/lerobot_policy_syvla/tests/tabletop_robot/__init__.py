"""SyVLA's tabletop simulator as a robot of LeRobot, so that `lerobot-rollout` runs without hardware.

Used with `--robot.discover_packages_path=tabletop_robot`. At the end it appends what it was sent to `log`, as JSON.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.robots import Robot, RobotConfig

from syvla.evaluation.environments import make_environment


@RobotConfig.register_subclass("tabletop_robot")
@dataclass
class TabletopRobotConfig(RobotConfig):
    image_size: int = 32
    log: str | None = None


class TabletopRobot(Robot):
    config_class = TabletopRobotConfig
    name = "tabletop_robot"

    def __init__(self, config: TabletopRobotConfig) -> None:
        super().__init__(config)
        self.config = config
        self._env = make_environment("tabletop", "lift", image_size=config.image_size, max_steps=10_000)
        self._joints = [f"{name}.pos" for name in self._env.state_names]
        self._observation: dict[str, Any] | None = None
        self.cameras = dict.fromkeys(self._env.cameras)
        self.sent: list[list[float]] = []

    @property
    def observation_features(self) -> dict[str, Any]:
        size = (self.config.image_size, self.config.image_size, 3)
        return {**dict.fromkeys(self._joints, float), **dict.fromkeys(self._env.cameras, size)}

    @property
    def action_features(self) -> dict[str, type]:
        return dict.fromkeys(self._joints, float)

    @property
    def is_connected(self) -> bool:
        return self._observation is not None

    @property
    def is_calibrated(self) -> bool:
        return True

    def connect(self, calibrate: bool = True) -> None:
        self._observation, _ = self._env.reset(seed=0)

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def get_observation(self) -> dict[str, Any]:
        assert self._observation is not None
        joints = zip(self._joints, self._observation["state"].tolist(), strict=True)
        return {**dict(joints), **self._observation["images"]}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        values = np.array([float(action[name]) for name in self._joints], dtype=np.float32)
        self.sent.append(values.tolist())
        self._observation = self._env.step(values)[0]
        return action

    def disconnect(self) -> None:
        if self.config.log:
            Path(self.config.log).write_text(json.dumps(self.sent))
        self._observation = None
