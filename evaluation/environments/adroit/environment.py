"""Adroit (Rajeswaran et al. 2018): a Shadow hand with 24 joints, on an arm, from gymnasium-robotics (MIT license).

Four tasks, each an embodiment of its own ("adroit_door", ...), because the arm's joints differ:

- `door` (28 joints): undo the latch and swing the door open, to 1.35 rad.
- `hammer` (26): pick up the hammer and drive the nail into the board, to within 1 cm.
- `pen` (24): turn the pen in the hand until it points as the green one does, to a cosine of 0.95.
- `relocate` (30): carry the ball into the green sphere, to within 10 cm.

Simulation, draws and success are the package's own; a seed gives the episode that the package gives for it. Its observation,
with the poses of the objects, is not used: a policy sees pictures and its own joints.

Observation: pictures of the model's cameras `vil_camera`, from which most work on Adroit with pictures looks, and `fixed`,
nearer, which takes the place of a wrist's view; both show the joints where they are (the package's renderer, 2 ms before).
State: the joints' positions [rad; m for the arm's slides `ARTx` to `ARTz`] in the order of the actuators. Action (each -1 to
1): where each joint is to go, as a share of its actuator's range, in the same order; 0 is the middle. 100 control steps per
second.

Episodes end at success and are cut at 200 steps, as the package registers them. It says at every step whether the goal is
reached. Here one such step is success (`goal_steps=1`); DAPG's own count asks for more than 20 (`pen`) or 25 of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium_robotics.envs.adroit_hand import (
    AdroitHandDoorEnv,
    AdroitHandHammerEnv,
    AdroitHandPenEnv,
    AdroitHandRelocateEnv,
)

from syvla.evaluation.environments.simulator import SimulatorEnv, check_options, check_task, went_unstable

_SIMULATORS: dict[str, Any] = {
    "door": AdroitHandDoorEnv,
    "hammer": AdroitHandHammerEnv,
    "pen": AdroitHandPenEnv,
    "relocate": AdroitHandRelocateEnv,
}
INSTRUCTIONS = {
    "door": "turn the handle and open the door",
    "hammer": "pick up the hammer and drive the nail into the board",
    "pen": "turn the blue pen in the hand until it points like the green pen",
    "relocate": "pick up the blue ball and carry it into the green sphere",
}
MAX_STEPS = 200


class AdroitEnv(SimulatorEnv):
    """One Adroit task.

    Args:
        task: One of `AdroitEnv.tasks`.
        image_size: Side of the square pictures in pixels, or (height, width).
        max_steps: Control steps after which the episode is truncated.
        look: See `SimulatorEnv`.
        goal_steps: Steps at which the goal has to be reached, in a row or not, for success.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 100}
    tasks = tuple(_SIMULATORS)
    cameras = ("vil_camera", "fixed")
    view_cameras: ClassVar[dict[str, str]] = {"center": "vil_camera", "right_wrist": "fixed"}
    control_hz = 100.0

    def __init__(
        self,
        task: str,
        *,
        image_size: int | tuple[int, int] = 224,
        max_steps: int = MAX_STEPS,
        look: str = "official",
        goal_steps: int = 1,
    ) -> None:
        check_task(task, self.tasks, self.task_groups)
        if not 1 <= goal_steps <= max_steps:
            raise ValueError(f"goal_steps: expected 1 to {max_steps}, the steps of an episode, got {goal_steps}")
        self._simulator = _SIMULATORS[task](reward_type="sparse")
        joints = [self.model.joint(number) for number in self.model.actuator_trnid[:, 0]]
        self._addresses = np.array([joint.qposadr[0] for joint in joints])
        self.embodiment = f"adroit_{task}"
        self.state_names = self.action_names = tuple(joint.name for joint in joints)
        super().__init__(task, image_size, max_steps, look)
        self._goal_steps = self.description["goal_steps"] = goal_steps
        self.max_step_motion = np.full(len(joints), 0.1, dtype=np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (len(joints),), np.float32)
        self._reached = 0

    @classmethod
    def check_tasks(cls, tasks: Sequence[str], options: Mapping[str, Any]) -> None:
        super().check_tasks(tasks, options)
        if len(set(tasks)) > 1:
            raise ValueError(
                f"tasks: got {list(tasks)}, whose arms have different joints, so that no policy acts in more than one; "
                "run one evaluation per task"
            )

    @property
    def model(self) -> mujoco.MjModel:
        return self._simulator.model

    @property
    def data(self) -> mujoco.MjData:
        return self._simulator.data

    @property
    def state(self) -> np.ndarray:
        positions: np.ndarray = self.data.qpos[self._addresses]
        return positions

    @property
    def instruction(self) -> str:
        return INSTRUCTIONS[self.task]

    @property
    def success(self) -> bool:
        return self._reached >= self._goal_steps

    def _begin(self, seed: int | None, options: Mapping[str, Any]) -> None:
        check_options(options, ())
        self._simulator.reset(seed=seed)
        self._reached = 0

    def _advance(self, action: np.ndarray) -> None:
        *_, info = self._simulator.step(action)
        if went_unstable(self.data):
            self._reached, self._steps = 0, self.max_steps  # a failure, whatever the state that MuJoCo went back to
            return
        self._reached += bool(info["success"])

    def close(self) -> None:
        super().close()
        self._simulator.close()
