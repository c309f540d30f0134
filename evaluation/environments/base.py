"""What an environment must offer so that recording, closed-loop evaluation and rollouts can drive it.

Back-ends are ordinary `gymnasium.Env` classes with a few more attributes. Nothing here imports a simulator.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

EVALUATION_SEED_OFFSET = 1_000_000
"""First seed of closed-loop evaluation. Demonstrations use seeds below it, so that the two never meet."""

Observation = dict[str, Any]
"""`{"images": {camera: uint8 (H, W, 3)}, "state": float32 (D,)}`, state in the physical units of `state_names`. The images
may be any mapping that renders a picture when it is looked up, until the next step."""


@runtime_checkable
class RobotEnvironment(Protocol):
    """A language-conditioned robot environment with the gymnasium API.

    Attributes:
        embodiment: Name under which the processor keeps this robot's dimensions and statistics.
        task: Name of the task being run.
        tasks: Names of all tasks of this back-end.
        cameras: Names of the cameras in `observation["images"]`.
        view_cameras: Model view ("center", "left_wrist", "right_wrist") to camera name; a view may be absent.
        state_names: One name per dimension of `observation["state"]`.
        action_names: One name per dimension of the action.
        action_space: gymnasium's `Box` of the action; infinite where a dimension has no limit.
        control_hz: Control steps per second of simulated time.
        max_steps: Control steps after which an episode is truncated.

    It may also have `description`, a JSON-serializable dict of facts that belong beside every result, such as a
    simulator's version, or that its assets are stand-ins; `max_step_motion` (D_action,), by which recorded disturbances are
    measured; `make_expert()`, which returns a `ScriptedExpert`; and `task_groups`, names of several tasks.
    """

    embodiment: str
    task: str
    tasks: tuple[str, ...]
    cameras: tuple[str, ...]
    view_cameras: dict[str, str]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    action_space: Any
    control_hz: float
    max_steps: int

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode. The info holds `instruction` (str) and `success` (bool)."""
        ...

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Applies one action `(D_action,)`. The info holds `instruction` (str) and `success` (bool).

        It may hold `failure_reason` (str): why an episode that is terminated without success has failed.
        """
        ...

    def render_camera(self, camera: str, height: int, width: int) -> np.ndarray:
        """Picture of one camera at any size, uint8 (height, width, 3), for videos."""
        ...

    def close(self) -> None:
        """Frees what the environment holds."""
        ...


class ScriptedExpert(Protocol):
    """A privileged controller that solves the task and says which sub-task it is at."""

    def reset(self) -> None:
        """Prepares for the episode that the environment has just been reset to."""
        ...

    def act(self) -> tuple[np.ndarray, str]:
        """Action for the present state `(D_action,)` and the thought (sub-task in words) behind it."""
        ...
