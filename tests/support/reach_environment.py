"""A point that has to reach a goal: an environment without a simulator, whose crashes can be ordered.

Registered as a back-end by `register()`; worker processes import this module by its name.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium import spaces

from syvla.evaluation.environments import ENVIRONMENTS, Backend

NAME = "reach"


def register() -> None:
    """Makes the back-end known; a second time changes nothing."""
    ENVIRONMENTS[NAME] = Backend(f"{__name__}:ReachEnvironment", f"{__name__}:ReachExpert", "nothing")


class LazyImages(Mapping):
    """Renders a picture when it is looked up, as long as no further step was taken."""

    def __init__(self, environment: "ReachEnvironment") -> None:
        self.environment, self.step = environment, environment.steps

    def __getitem__(self, camera: str) -> np.ndarray:
        assert self.step == self.environment.steps, "looked at after the next step"
        self.environment.crash("look")
        ReachEnvironment.renderings += 1
        return self.environment.render_camera(camera, 8, 8)

    def __iter__(self):
        return iter(self.environment.cameras)

    def __len__(self) -> int:
        return len(self.environment.cameras)


class ReachEnvironment(gymnasium.Env):
    """Position and goal in [-1, 1]^2; an action moves the point by up to 0.1 per axis.

    Args:
        task: "near" or "far".
        max_steps: Control steps after which the episode is truncated.
        crash_at: Where to fail: "make", "reset", "step", "look" (at an observation's picture), "render" (for the
            video), or with the process: "exit" (in a step) or "hang" (in a step).
        crash_seeds: Episodes that fail.
        crash_times: How often each of them fails, counted by marks in `crash_folder`; 0 fails always.
        crash_folder: Where the marks are kept.
        step_seconds: What a step takes.
    """

    embodiment = "point"
    tasks = ("near", "far")
    cameras = ("top",)
    view_cameras = {"center": "top"}
    state_names = ("x", "y", "goal_x", "goal_y")
    action_names = ("dx", "dy")
    control_hz = 10.0
    description = {"physics": "none, not comparable"}
    renderings = 0
    made = 0

    def __init__(
        self,
        task: str = "near",
        max_steps: int = 30,
        crash_at: str = "",
        crash_seeds: tuple[int, ...] = (),
        crash_times: int = 0,
        crash_folder: str = "",
        step_seconds: float = 0.0,
    ) -> None:
        if task not in self.tasks:
            raise ValueError(f"task: expected one of {list(self.tasks)}, got {task!r}")
        self.task, self.max_steps = task, max_steps
        self.crash_at, self.crash_seeds = crash_at, crash_seeds
        self.crash_times, self.crash_folder = crash_times, crash_folder
        self.step_seconds = step_seconds
        self.action_space = spaces.Box(-0.1, 0.1, (2,), np.float32)
        self.steps = 0
        self.seed = None
        ReachEnvironment.made += 1

    def crash(self, where: str) -> None:
        """Fails if that was ordered for this place and episode."""
        if not self.crash_at.startswith(where) or self.seed not in self.crash_seeds:
            return
        if self.crash_times:
            marks = Path(self.crash_folder) / str(self.seed)
            marks.touch()
            if marks.stat().st_size >= self.crash_times:
                return
            marks.write_text(marks.read_text() + "x")
        if self.crash_at == "step exit":
            os._exit(7)
        if self.crash_at == "step hang":
            time.sleep(60)
        raise RuntimeError(f"the simulator broke in {where}")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.steps = seed, 0
        self.crash("reset")
        self.position = np.zeros(2)
        angle = self.np_random.uniform(0, 2 * np.pi)
        self.goal = (0.4 if self.task == "near" else 0.9) * np.array([np.cos(angle), np.sin(angle)])
        return self.observation(), self.info()

    def step(self, action):
        time.sleep(self.step_seconds)
        self.steps += 1
        if self.steps == 2:
            self.crash("step")
        self.position = self.position + np.clip(action, -0.1, 0.1)
        success = self.info()["success"]
        return self.observation(), float(success), success, self.steps >= self.max_steps, self.info()

    def observation(self):
        return {"images": LazyImages(self), "state": np.concatenate([self.position, self.goal]).astype(np.float32)}

    def info(self):
        return {
            "instruction": f"reach the {self.task} goal",
            "success": bool(np.abs(self.position - self.goal).max() < 0.06),
        }

    def render_camera(self, camera: str, height: int, width: int) -> np.ndarray:
        self.crash("render")
        value = int(np.clip(127 * (1 + self.position[0]), 0, 255))
        return np.full((height, width, 3), value, np.uint8)


class ReachExpert:
    """Walks straight to the goal."""

    def __init__(self, environment: ReachEnvironment) -> None:
        self.environment = environment

    def reset(self) -> None:
        """Nothing to prepare."""

    def act(self):
        towards = np.clip(self.environment.goal - self.environment.position, -0.1, 0.1)
        return towards.astype(np.float32), "go to the goal"


class Walker:
    """A policy that sees only the observation: walks to the goal with noise drawn from each call's seed, in chunks."""

    name, chunk_size = "walker", 4

    def __init__(self, noise: float = 0.06) -> None:
        self.noise = noise
        self.batches: list[int] = []

    def identity(self):
        return {"policy": "walker", "noise": self.noise}

    def predict(self, observations, instructions, *, seeds):
        from syvla.serving.contract.action_chunks import ActionChunks

        self.batches.append(len(observations))
        chunks, thoughts = [], []
        for observation, instruction, seed in zip(observations, instructions, seeds, strict=True):
            assert observation["images"]["top"].shape == (8, 8, 3)
            towards = np.clip((observation["state"][2:] - observation["state"][:2]) / 4, -0.1, 0.1)
            chunks.append(towards + self.noise * np.random.default_rng(seed).standard_normal((4, 2)))
            thoughts.append(f"{instruction}, seed {seed}")
        return ActionChunks(np.asarray(chunks, np.float32), thoughts)
