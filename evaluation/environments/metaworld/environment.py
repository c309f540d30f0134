"""MetaWorld (Yu et al. 2019, MIT license): 50 tasks of a Sawyer arm, with the scripted experts that come with it.

Observation: pictures of MetaWorld's cameras `corner2`, `gripperPOV` and `topview`, called "center", "left_wrist" and
"right_wrist" (the arm has one hand; the view from above takes the free place), and the 4-dimensional state: hand x, y, z
[m] and the gripper's opening (0 closed, 1 open). `corner2` stands where most of the literature moves it, nearer to the
table than MetaWorld's own, and is turned upright (the camera is mounted upside down).

Action (4-D, each -1 to 1): move of the hand along x, y, z (1 is 1 cm per step) and the gripper's effort (1 closes, -1
opens). 80 control steps per second of simulated time; success is MetaWorld's own, at any step, and ends the episode.
Episodes are cut at 500 steps, `max_path_length`.

Goals lie where the seed says (MetaWorld's benchmarks draw 50 fixed ones per task from the same ranges).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium import spaces
from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

from syvla.evaluation.environments.simulator import SimulatorEnv, check_options

from .tasks import DIFFICULTIES, LEROBOT_SENTENCES, SENTENCES, TASK_WORDS

MAX_PATH_LENGTH = 500
_GOAL_OBSERVABLE: dict[str, Any] = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
CORNER_POSITION = (0.75, 0.075, 0.7)  # meters


class MetaWorldEnv(SimulatorEnv):
    """One MetaWorld task.

    Args:
        task: One of `MetaWorldEnv.tasks`, such as "push-v3".
        image_size: Side of the square pictures in pixels, or (height, width).
        max_steps: Control steps after which the episode is truncated, up to 500.
        look: See `SimulatorEnv`.
        sentences: "lerobot" asks in the words that LeRobot has published, "plain" in ours, which differ from task to task.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 80}
    embodiment = "metaworld"
    tasks = tuple(TASK_WORDS)
    task_groups: ClassVar[dict[str, tuple[str, ...]]] = DIFFICULTIES
    cameras = ("center", "left_wrist", "right_wrist")
    view_cameras: ClassVar[dict[str, str]] = {camera: camera for camera in cameras}
    simulator_cameras: ClassVar[dict[str, str]] = dict(zip(cameras, ("corner2", "gripperPOV", "topview"), strict=True))
    state_names = ("hand_x", "hand_y", "hand_z", "gripper_opening")
    action_names = ("hand_dx", "hand_dy", "hand_dz", "gripper")
    control_hz = 80.0

    def __init__(
        self,
        task: str,
        *,
        image_size: int | tuple[int, int] = 224,
        max_steps: int = MAX_PATH_LENGTH,
        look: str = "official",
        sentences: str = "lerobot",
    ) -> None:
        super().__init__(task, image_size, max_steps, look)
        if sentences not in SENTENCES:
            raise ValueError(f"sentences: expected one of {list(SENTENCES)}, got {sentences!r}")
        self.sentences = self.description["sentences"] = sentences
        if max_steps > MAX_PATH_LENGTH:
            raise ValueError(f"max_steps: expected at most {MAX_PATH_LENGTH}, MetaWorld's own limit, got {max_steps}")
        self._simulator: Any = _GOAL_OBSERVABLE[f"{task}-goal-observable"](seed=0)
        self._simulator.seeded_rand_vec = True  # draw from the seeded generator, not from numpy's global one
        self._simulator._freeze_rand_vec = False  # a new draw at every reset
        self.model.camera("corner2").pos[:] = CORNER_POSITION
        self.max_step_motion = np.ones(4, dtype=np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self._solved = False

    @property
    def model(self) -> mujoco.MjModel:
        return self._simulator.model

    @property
    def data(self) -> mujoco.MjData:
        return self._simulator.data

    @property
    def state(self) -> np.ndarray:
        state: np.ndarray = self.full_state[:4]
        return state

    @property
    def instruction(self) -> str:
        return LEROBOT_SENTENCES[self.task] if self.sentences == "lerobot" else TASK_WORDS[self.task].instruction

    @property
    def success(self) -> bool:
        return self._solved

    def _begin(self, seed: int | None, options: Mapping[str, Any]) -> None:
        check_options(options, ())
        self._simulator.seed(int(self.np_random.integers(2**31)))
        self.full_state, _ = self._simulator.reset()
        """MetaWorld's own observation (39,): hand, gripper, objects, all of the step before, goal. For experts."""
        self._solved = False

    def _advance(self, action: np.ndarray) -> None:
        self.full_state, _, _, _, info = self._simulator.step(action.astype(np.float32))
        self._solved = bool(info["success"])

    def _oriented(self, camera: str, picture: np.ndarray) -> np.ndarray:
        return picture[::-1, ::-1] if camera == "center" else picture

    def close(self) -> None:
        super().close()
        self._simulator.close()
