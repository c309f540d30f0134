"""ALOHA in simulation (Zhao et al. 2023): two ViperX arms with 14 joints at 50 Hz, from gym-aloha's scenes (Apache-2.0).

Only gym-aloha's scene files are used, with MuJoCo itself: its own environment draws three 640x480 pictures at every step
(0.4 s), has no wrist cameras and imports dm-control. Draws, reward and limits are re-implemented from it.

Observation: pictures of `top`, `left_wrist` and `right_wrist`; state (14-D): six joint angles [rad] and the gripper's
opening (0 closed, 1 open) of the left arm, then of the right. Action (14-D): targets in the same order and units.

Tasks, with gym-aloha's reward of 0 to 4, of which 4 is success and ends the episode:

- `transfer_cube`: the right arm picks up the cube (reward 2) and hands it to the left (4: a finger of the left gripper
  touches the cube, which is off the table).
- `insertion`: the arms pick up peg (right) and socket (left) (2), bring them together (3) and insert the peg until it
  touches the pin inside the socket (4).

Episodes are cut at 400 steps, as in ALOHA's own simulated datasets (gym-aloha registers 300), or where wild actions make
the simulation unstable, which counts as a failure.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium import spaces

from syvla.evaluation.environments.simulator import SimulatorEnv, check_options, check_task, went_unstable

SIDES = ("left", "right")
ARM_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
ARM_DIMENSION = len(ARM_JOINTS) + 1
HOME = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0)  # radians
HOME_FINGER = 0.02239  # meters
FINGER_CLOSED, FINGER_OPEN = 0.01844, 0.05800  # meters; what openings 0 and 1 mean, as in gym-aloha
PHYSICS_STEPS = 10  # of 2 ms per control step
MAX_JOINT_SPEED = 3.0  # rad/s; scale of the noise of disturbed recordings
MAX_REWARD = 4
SCENES = {"transfer_cube": "bimanual_viperx_transfer_cube.xml", "insertion": "bimanual_viperx_insertion.xml"}
INSTRUCTIONS = {
    "transfer_cube": "pick up the red cube with the right arm and hand it to the left arm",
    "insertion": "pick up the red peg and the blue socket and insert the peg into the socket",
}
OBJECTS = {  # body: x and y ranges [m] of the draw, in the order of the joints; all start 5 cm above the table
    "transfer_cube": {"box": ((0.0, 0.2), (0.4, 0.6))},
    "insertion": {"peg": ((0.1, 0.2), (0.4, 0.6)), "socket": ((-0.2, -0.1), (0.4, 0.6))},
}
START_HEIGHT = 0.05
SOCKET_WALLS = ("socket-1", "socket-2", "socket-3", "socket-4")


class AlohaEnv(SimulatorEnv):
    """Bimanual ALOHA.

    Args:
        task: "transfer_cube" or "insertion".
        image_size: Side of the square pictures in pixels, or (height, width).
        max_steps: Control steps after which the episode is truncated.
        look: See `SimulatorEnv`.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 50}
    embodiment = "aloha"
    tasks = tuple(SCENES)
    cameras = ("top", "left_wrist", "right_wrist")
    view_cameras: ClassVar[dict[str, str]] = {
        "center": "top",
        "left_wrist": "left_wrist",
        "right_wrist": "right_wrist",
    }
    state_names = tuple(f"{side}_{joint}" for side in SIDES for joint in (*ARM_JOINTS, "gripper"))
    action_names = state_names
    control_hz = 50.0

    def __init__(
        self,
        task: str,
        *,
        image_size: int | tuple[int, int] = (240, 320),
        max_steps: int = 400,
        look: str = "official",
    ) -> None:
        check_task(task, self.tasks, self.task_groups)
        super().__init__(task, image_size, max_steps, look)
        self._model = mujoco.MjModel.from_xml_path(str(_assets_folder() / SCENES[task]))
        self._data = mujoco.MjData(self._model)
        joints = [self._model.joint(f"vx300s_{side}/{joint}") for side in SIDES for joint in ARM_JOINTS]
        self._arm_addresses = np.array([joint.qposadr[0] for joint in joints]).reshape(2, -1)
        fingers = [[self._model.joint(f"vx300s_{side}/{name}_finger") for name in SIDES] for side in SIDES]
        self._finger_addresses = np.array([[joint.qposadr[0] for joint in pair] for pair in fingers])  # (arm, finger)
        limits = [[*joint.range] for joint in joints]
        low, high = np.array(limits).reshape(2, -1, 2).transpose(2, 0, 1)
        low, high = np.insert(low, 6, 0.0, axis=1), np.insert(high, 6, 1.0, axis=1)
        self.action_space = spaces.Box(low.ravel().astype(np.float32), high.ravel().astype(np.float32))
        speeds = np.array([MAX_JOINT_SPEED] * len(ARM_JOINTS) + [1.0])
        self.max_step_motion = np.tile(speeds / self.control_hz, 2).astype(np.float32)
        self.reward = 0

    @property
    def model(self) -> mujoco.MjModel:
        return self._model

    @property
    def data(self) -> mujoco.MjData:
        return self._data

    @property
    def state(self) -> np.ndarray:
        arms = self._data.qpos[self._arm_addresses]  # (2, 6)
        openings = (self._data.qpos[self._finger_addresses[:, :1]] - FINGER_CLOSED) / (FINGER_OPEN - FINGER_CLOSED)
        return np.concatenate([arms, openings], axis=1).ravel()

    @property
    def instruction(self) -> str:
        return INSTRUCTIONS[self.task]

    @property
    def success(self) -> bool:
        return self.reward == MAX_REWARD

    def _begin(self, seed: int | None, options: Mapping[str, Any]) -> None:
        check_options(options, ())
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[self._arm_addresses] = HOME
        self._data.qpos[self._finger_addresses] = (HOME_FINGER, -HOME_FINGER)
        self._data.ctrl[:] = np.tile([*HOME, HOME_FINGER, -HOME_FINGER], 2)
        for name, (x_range, y_range) in OBJECTS[self.task].items():
            position = (self.np_random.uniform(*x_range), self.np_random.uniform(*y_range), START_HEIGHT)
            address = self._model.jnt_qposadr[self._model.body(name).jntadr[0]]
            self._data.qpos[address : address + 7] = (*position, 1.0, 0.0, 0.0, 0.0)
        mujoco.mj_forward(self._model, self._data)
        self.reward = 0

    def _advance(self, action: np.ndarray) -> None:
        arms = action.reshape(2, ARM_DIMENSION)
        fingers = FINGER_CLOSED + arms[:, 6:] * (FINGER_OPEN - FINGER_CLOSED)
        self._data.ctrl[:] = np.concatenate([arms[:, :6], fingers, -fingers], axis=1).ravel()
        mujoco.mj_step(self._model, self._data, PHYSICS_STEPS)
        mujoco.mj_forward(self._model, self._data)
        if went_unstable(self._data):
            self.reward, self._steps = 0, self.max_steps
            return
        self.reward = (transfer_reward if self.task == "transfer_cube" else insertion_reward)(self._touching())

    def _touching(self) -> set[frozenset[str]]:
        """Names of the geoms that touch, in pairs."""
        pairs = {(contact.geom1, contact.geom2) for contact in self._data.contact[: self._data.ncon]}
        return {frozenset((self._model.geom(first).name, self._model.geom(second).name)) for first, second in pairs}


def transfer_reward(touching: set[frozenset[str]]) -> int:
    """gym-aloha's reward of `transfer_cube`, 0 to 4, from the pairs of geoms that touch."""
    left = frozenset(("red_box", "vx300s_left/10_left_gripper_finger")) in touching
    right = frozenset(("red_box", "vx300s_right/10_right_gripper_finger")) in touching
    on_table = frozenset(("red_box", "table")) in touching
    if left:
        return 3 if on_table else MAX_REWARD
    if right:
        return 1 if on_table else 2
    return 0


def insertion_reward(touching: set[frozenset[str]]) -> int:
    """gym-aloha's reward of `insertion`, 0 to 4, from the pairs of geoms that touch."""

    def socket_touches(other: str) -> bool:
        return any(frozenset((wall, other)) in touching for wall in SOCKET_WALLS)

    if frozenset(("red_peg", "pin")) in touching:
        return MAX_REWARD
    in_the_air = frozenset(("red_peg", "table")) not in touching and not socket_touches("table")
    if socket_touches("red_peg") and in_the_air:
        return 3
    right = frozenset(("red_peg", "vx300s_right/10_right_gripper_finger")) in touching
    if right and socket_touches("vx300s_left/10_left_gripper_finger"):
        return 2 if in_the_air else 1
    return 0


def _assets_folder() -> Path:
    """Scene files of the installed gym-aloha, found without importing it."""
    found = importlib.util.find_spec("gym_aloha")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("No module named 'gym_aloha'", name="gym_aloha")
    return Path(found.origin).parent / "assets"
