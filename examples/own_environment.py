"""An environment of your own for `syvla-eval`, to adapt: a point that has to reach a goal, seen from above.

cd examples
syvla-eval --env own_environment:PointReach --task near --model expert --episodes 5 --env-option radius=0.05
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class PointReach(gymnasium.Env):
    """`--env-option radius=0.1` sets how close is close enough, in meters."""

    embodiment, tasks, cameras, view_cameras = "point", ("near", "far"), ("top",), {"center": "top"}
    state_names, action_names = ("x", "y", "goal_x", "goal_y"), ("dx", "dy")  # meters
    control_hz, max_steps = 10.0, 50

    def __init__(self, task: str, radius: float = 0.1) -> None:
        self.task, self.radius = task, radius
        self.action_space = spaces.Box(-0.1, 0.1, (2,), np.float32)
        picture, state = spaces.Box(0, 255, (64, 64, 3), np.uint8), spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.observation_space = spaces.Dict({"images": spaces.Dict({"top": picture}), "state": state})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)  # everything random comes from self.np_random: a seed means one episode
        angle, self.steps, self.point = self.np_random.uniform(0, 2 * np.pi), 0, np.zeros(2)
        self.goal = {"near": 0.4, "far": 0.9}[self.task] * np.array([np.cos(angle), np.sin(angle)])
        return self.observe(), self.info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.point, self.steps = self.point + np.clip(action, -0.1, 0.1), self.steps + 1
        info = self.info()
        return self.observe(), float(info["success"]), info["success"], self.steps >= self.max_steps, info

    def observe(self) -> dict[str, Any]:
        state = np.concatenate([self.point, self.goal]).astype(np.float32)
        return {"images": {"top": self.render_camera("top", 64, 64)}, "state": state}

    def info(self) -> dict[str, Any]:
        reached = bool(np.linalg.norm(self.point - self.goal) < self.radius)
        return {"instruction": f"reach the {self.task} goal", "success": reached}

    def render_camera(self, camera: str, height: int, width: int) -> np.ndarray:
        y, x = np.mgrid[1 : -1 : height * 1j, -1 : 1 : width * 1j]
        dots = [np.exp(-((x - px) ** 2 + (y - py) ** 2) / 0.01) for px, py in (self.point, self.goal)]
        return (255 * np.stack([dots[0], dots[1], 0 * x], axis=-1)).astype(np.uint8)  # red: the point; green: the goal

    def make_expert(self) -> Any:  # optional; for --model expert and syvla-record
        from types import SimpleNamespace

        towards = lambda: np.clip(self.goal - self.point, -0.1, 0.1).astype(np.float32)  # noqa: E731
        return SimpleNamespace(reset=lambda: None, act=lambda: (towards(), "go to the goal"))
