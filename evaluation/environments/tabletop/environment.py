"""A dual-arm tabletop in MuJoCo that needs no OpenGL: two 6-joint arms with grippers, three ray-cast cameras.

Observation: pictures of `head`, `left_wrist` and `right_wrist`, uint8 (H, W, 3), and the 14-dimensional state
(six joint angles [rad] and the gripper opening [m] of the left arm, then of the right).

Action, by `control`:

- `"joints"` (default): 14 absolute targets in the order and units of the state.
- `"ee_delta"`: per arm a move of the tool point (x, y, z) [m] and a turn as rotation vector [rad], both in the world
  frame and relative to the pose commanded last, and the absolute gripper opening [m].

Targets beyond the limits are clipped to them. Within a control step the servo targets move in a straight line, at most
`MAX_JOINT_SPEED` [rad/s] and `MAX_GRIPPER_SPEED` [m/s]; a target further away is reached in later steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces

from syvla.evaluation.environments.arm_kinematics import JOINTS_PER_ARM, ArmKinematics, rotation_matrix, rotation_vector

from .choice_shapes import show_digit
from .choice_tasks import CHOICE_TASKS, unseen_aspects
from .ray_camera import DAYLIGHT, RayCamera
from .scene import (
    ACTION_DIMENSION,
    ARM_DIMENSION,
    CAMERAS,
    COLORS,
    GRIPPER_LIMITS,
    HOME_TCP,
    PHYSICS_TIMESTEP,
    SIDES,
    SceneObject,
    action_limits,
    build_scene,
    joint_names,
)
from .tasks import HOLD_STEPS, SHAPES, TASKS, Draw, Layout, half_height, sample_layout
from .visual_shifts import VisualShift

CONTROLS = ("joints", "ee_delta")
STATIC_SHAPES = ("pad", "container")
MAX_SCENES = 16  # compiled scenes kept; another takes a few milliseconds
MAX_JOINT_SPEED = 3.0  # rad/s
MAX_GRIPPER_SPEED = 0.5  # m/s
MAX_EE_STEP = 0.06  # meters per control step and axis
MAX_EE_TURN = 0.4  # radians per control step and axis
EE_WORKSPACE = np.array([[-0.25, 0.25], [-0.35, 0.35], [0.02, 0.40]])  # meters; commanded tool points stay inside


class TabletopEnv(gymnasium.Env):
    """Dual-arm tabletop.

    Args:
        task: One of `TabletopEnv.tasks`.
        control: "joints" or "ee_delta", see the module's text.
        image_size: Side of the square pictures in pixels, or (height, width).
        render_size: (height, width) of `render()`.
        supersampling: Rays per pixel and axis in observations; 2 smooths edges and costs four times the rays.
        shapes: Shapes to draw objects from, out of "cube" and "cylinder".
        distractors: Number of further objects of other colors on the table (`lift` and `place`), 0 to 2.
        control_hz: Control steps per second; the physics runs at 200 Hz, or a little faster where that is no multiple.
        max_steps: Control steps after which the episode is truncated.
        split: "in_domain" (None means this) or "ood": draw episodes as in demonstrations, or out of their distribution
            (`calculating`, `bagging` and `place_named`, see `choice_tasks`; `place`, position alone).
        ood: Only these aspects out of distribution: some of "expression", "phrasing", "position".
        shift: "lighting", "camera" or "background": every episode is seen in another light, by a head camera mounted
            otherwise, or on another table; see `visual_shifts`. The episodes themselves stay the same.
        render_mode: None or "rgb_array" (pictures of the head camera).

    Raises:
        ValueError: If an argument is out of its range; the message says what was expected.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    embodiment = "tabletop"
    tasks = (*TASKS, *CHOICE_TASKS)
    cameras = CAMERAS
    view_cameras = {"center": "head", "left_wrist": "left_wrist", "right_wrist": "right_wrist"}

    def __init__(
        self,
        task: str = "lift",
        *,
        control: str = "joints",
        image_size: int | tuple[int, int] = 32,
        render_size: tuple[int, int] = (240, 320),
        supersampling: int = 1,
        shapes: tuple[str, ...] = ("cube",),
        distractors: int = 0,
        control_hz: float = 10.0,
        max_steps: int = 80,
        split: str | None = None,
        ood: Sequence[str] | None = None,
        shift: str | None = None,
        render_mode: str | None = "rgb_array",
    ) -> None:
        _expect_one_of("task", task, self.tasks)
        _expect_one_of("control", control, CONTROLS)
        _expect_one_of("render_mode", render_mode, (None, "rgb_array"))
        for shape in shapes:
            _expect_one_of("shapes", shape, SHAPES)
        if not shapes:
            raise ValueError(f"shapes: expected at least one of {list(SHAPES)}, got none")
        if not 0 <= distractors <= 2:
            raise ValueError(f"distractors: expected 0 to 2, got {distractors}")
        if not 1 <= control_hz <= 1 / PHYSICS_TIMESTEP:
            raise ValueError(f"control_hz: expected 1 to {1 / PHYSICS_TIMESTEP:g}, got {control_hz}")
        if max_steps < 1:
            raise ValueError(f"max_steps: expected at least 1, got {max_steps}")
        self.task = task
        self.control = control
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.render_size = render_size
        self.render_mode = render_mode
        self.max_steps = max_steps
        self._substeps = math.ceil(1 / control_hz / PHYSICS_TIMESTEP - 1e-9)  # steps are shorter where they do not fit
        self.control_hz = float(control_hz)
        self.metadata = {**self.metadata, "render_fps": self.control_hz}
        self._task = (TASKS | CHOICE_TASKS)[task]
        self.unseen = unseen_aspects(task, split, ood)
        self._shift = None if shift is None else VisualShift(shift)
        self._light = DAYLIGHT
        self._shapes = tuple(shapes)
        self._distractors = distractors
        self._supersampling = supersampling
        self._scenes: dict[tuple[SceneObject, ...], tuple[mujoco.MjModel, mujoco.MjData, dict[str, ArmKinematics]]] = {}
        self._renderers: dict[tuple[Any, ...], RayCamera] = {}
        self.model: mujoco.MjModel
        self.data: mujoco.MjData
        self.layout: Layout

        self.state_names = joint_names()
        self.joint_low, self.joint_high = action_limits()
        speed = np.array([MAX_JOINT_SPEED] * JOINTS_PER_ARM + [MAX_GRIPPER_SPEED])
        self._max_motion = np.tile(speed, len(SIDES)) / self.control_hz
        if control == "joints":
            self.action_names = self.state_names
            low, high, step = self.joint_low, self.joint_high, self._max_motion
        else:
            parts = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
            self.action_names = tuple(f"{side}_{part}" for side in SIDES for part in parts)
            move = [MAX_EE_STEP] * 3 + [MAX_EE_TURN] * 3
            low = np.tile([*np.negative(move), GRIPPER_LIMITS[0]], len(SIDES))
            high = np.tile([*move, GRIPPER_LIMITS[1]], len(SIDES))
            step = np.tile([*move, MAX_GRIPPER_SPEED / self.control_hz], len(SIDES))
        self.max_step_motion = step.astype(np.float32)
        """Largest change per control step in each action dimension (14,), in the action's units."""
        self.action_space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        margin = np.tile([0.3] * JOINTS_PER_ARM + [0.03], len(SIDES))  # soft limits and contacts may overshoot a little
        pictures = {name: spaces.Box(0, 255, (*self.image_size, 3), np.uint8) for name in CAMERAS}
        state = spaces.Box(
            (self.joint_low - margin).astype(np.float32),
            (self.joint_high + margin).astype(np.float32),
            dtype=np.float32,
        )
        self.observation_space = spaces.Dict({"images": spaces.Dict(pictures), "state": state})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode; the same seed and options give the same episode to the bit.

        Args:
            seed: Seed of the draw. None continues the present generator.
            options: Fixes parts of the draw: `arm` ("left", "right"), `color`, `shape`, `position` (x, y) [m],
                `pad_color`, `pad_position` (x, y) [m]. `calculating`, `bagging` and `place_named` take none.

        Returns:
            The observation and the info (`instruction`, `success`, `task`, `seed`, `failure_reason`: None, or the
            mistake that ended the episode).
        """
        super().reset(seed=seed)
        draw = Draw(self.np_random, self._shapes, options or {}, self.unseen)
        self.layout = sample_layout(self._task, draw, self._distractors)
        self._load_scene(self.layout)
        self._command = self._home.copy()
        self._steps = 0
        self._held = 0
        self._mistaken = 0
        self._mistake: str | None = None
        self._seed = seed
        return self._observation(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Applies one action (14,) for `1 / control_hz` seconds.

        Returns:
            Observation, reward (1.0 at success, else 0.0), terminated (success, or a wrong choice carried out),
            truncated (`max_steps`), info.

        Raises:
            ValueError: If the action has another shape or a value that is not finite.
            RuntimeError: If called before `reset`.
        """
        if not hasattr(self, "_command"):
            raise RuntimeError("step() was called before reset(); call reset() first")
        target = self.decode_action(action)
        start = self._command
        end = start + np.clip(target - start, -self._max_motion, self._max_motion)
        for substep in range(1, self._substeps + 1):
            self.data.ctrl[:] = start + (end - start) * (substep / self._substeps)
            mujoco.mj_step(self.model, self.data)
        mujoco.mj_forward(self.model, self.data)
        self._command = end
        self._steps += 1
        openings = {side: float(self.state[i * ARM_DIMENSION + JOINTS_PER_ARM]) for i, side in enumerate(SIDES)}
        achieved = self._task.achieved(self.model, self.data, self.layout, openings)
        self._held = self._held + 1 if achieved else 0
        self._mistake = self._task.mistake(self.model, self.data, self.layout, openings)
        self._mistaken = self._mistaken + 1 if self._mistake else 0
        info = self._info()
        terminated = info["success"] or info["failure_reason"] is not None
        return self._observation(), float(info["success"]), terminated, self._steps >= self.max_steps, info

    def decode_action(self, action: np.ndarray) -> np.ndarray:
        """Absolute joint targets (14,) within the limits for an action in the environment's own control mode."""
        values = np.asarray(action, dtype=np.float64)
        if values.shape != (ACTION_DIMENSION,):
            raise ValueError(
                f"action: expected shape ({ACTION_DIMENSION},) = {', '.join(self.action_names)}; got {values.shape}"
            )
        if not np.isfinite(values).all():
            names = [name for name, value in zip(self.action_names, values, strict=True) if not np.isfinite(value)]
            raise ValueError(f"action: expected finite values, got {values[~np.isfinite(values)]} for {names}")
        if self.control == "ee_delta":
            values = self._joints_from_deltas(np.clip(values, self.action_space.low, self.action_space.high))
        return np.clip(values, self.joint_low, self.joint_high)

    def encode_joint_targets(self, targets: np.ndarray) -> np.ndarray:
        """Action (14,) float32 in the environment's own control mode that commands joint targets (14,)."""
        if self.control == "joints":
            action = targets
        else:
            action = np.empty(ACTION_DIMENSION)
            for i, side in enumerate(SIDES):
                part = slice(i * ARM_DIMENSION, i * ARM_DIMENSION + JOINTS_PER_ARM)
                position, rotation = self.kinematics[side].forward(self._command[part])
                goal_position, goal_rotation = self.kinematics[side].forward(targets[part])
                action[part] = [*(goal_position - position), *rotation_vector(goal_rotation @ rotation.T)]
                action[part.stop] = targets[part.stop]
        limited: np.ndarray = np.clip(action, self.action_space.low, self.action_space.high).astype(np.float32)
        return limited

    @property
    def state(self) -> np.ndarray:
        """Measured joint angles [rad] and gripper openings [m], (14,) float64."""
        values = np.empty(ACTION_DIMENSION)
        values[self._joint_slots] = self.data.qpos[self._joint_addresses]
        values[self._gripper_slots] = self.data.ten_length[: len(SIDES)]
        return values

    @property
    def instruction(self) -> str:
        """Sentence of the present episode."""
        return self.layout.instruction

    def render(self) -> np.ndarray | None:
        """Picture of the head camera at `render_size`, uint8 (height, width, 3); None without a render mode."""
        return self.render_camera("head", *self.render_size) if self.render_mode == "rgb_array" else None

    def render_camera(self, camera: str, height: int, width: int, supersampling: int = 2) -> np.ndarray:
        """Picture of any camera at any size, uint8 (height, width, 3)."""
        if not hasattr(self, "data"):
            raise RuntimeError("there is nothing to render before reset(); call reset() first")
        key = (id(self.model), camera, height, width, supersampling)
        if key not in self._renderers:
            self._renderers[key] = RayCamera(self.model, camera, height, width, supersampling)
        return self._renderers[key].render(self.data, self._light)

    def close(self) -> None:
        """Frees the compiled scenes."""
        self._renderers.clear()
        self._scenes.clear()
        if self._shift is not None:
            self._shift.forget()

    def _load_scene(self, layout: Layout) -> None:
        if layout.objects not in self._scenes:
            if len(self._scenes) >= MAX_SCENES:
                self.close()
            model = build_scene(layout.objects)
            model.opt.timestep = 1 / (self.control_hz * self._substeps)
            kinematics = {side: ArmKinematics(model, side) for side in SIDES}
            self._scenes[layout.objects] = (model, mujoco.MjData(model), kinematics)
        self.model, self.data, self.kinematics = self._scenes[layout.objects]
        self._index_joints()
        mujoco.mj_resetData(self.model, self.data)
        self._home = self._home_joints()
        self.data.qpos[self._joint_addresses] = self._home[self._joint_slots]
        for i, side in enumerate(SIDES):
            for finger in ("inner", "outer"):
                address = self.model.joint(f"{side}_{finger}_finger").qposadr[0]
                self.data.qpos[address] = self._home[self._gripper_slots[i]] / 2
        self.data.ctrl[:] = self._home
        for item in layout.objects:
            self._put(item, layout.poses[item.name])
            if item.name in layout.colors:
                self.model.geom(item.name).rgba[:3] = COLORS[layout.colors[item.name]]
            if item.name in layout.digits:
                show_digit(self.model, item.name, layout.digits[item.name])
        if self._shift is not None:
            self._light = self._shift.apply(self.model, self.np_random)
        mujoco.mj_forward(self.model, self.data)

    def _put(self, item: SceneObject, pose: tuple[float, float, float]) -> None:
        x, y, yaw = pose
        position = (x, y, half_height(item.shape))
        quaternion = (np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
        if item.shape in STATIC_SHAPES:
            self.model.body(item.name).pos[:] = position
            self.model.body(item.name).quat[:] = quaternion
        else:
            address = self.model.joint(item.name).qposadr[0]
            self.data.qpos[address : address + 7] = (*position, *quaternion)

    def _index_joints(self) -> None:
        self._gripper_slots = [i * ARM_DIMENSION + JOINTS_PER_ARM for i in range(len(SIDES))]
        self._joint_slots = [i for i in range(ACTION_DIMENSION) if i not in self._gripper_slots]
        self._joint_addresses = [self.model.joint(self.state_names[i]).qposadr[0] for i in self._joint_slots]

    def _home_joints(self) -> np.ndarray:
        parts = []
        for side in SIDES:
            joints = self.kinematics[side].inverse(np.array(HOME_TCP[side]), np.eye(3), np.zeros(JOINTS_PER_ARM))
            parts += [joints, GRIPPER_LIMITS[1:]]
        return np.concatenate(parts)

    def _joints_from_deltas(self, deltas: np.ndarray) -> np.ndarray:
        targets = np.empty(ACTION_DIMENSION)
        for i, side in enumerate(SIDES):
            part = slice(i * ARM_DIMENSION, i * ARM_DIMENSION + JOINTS_PER_ARM)
            move = deltas[part]
            position, rotation = self.kinematics[side].forward(self._command[part])
            position = np.clip(position + move[:3], EE_WORKSPACE[:, 0], EE_WORKSPACE[:, 1])
            goal = rotation_matrix(move[3:]) @ rotation
            targets[part] = self.kinematics[side].inverse(position, goal, self._command[part])
            targets[part.stop] = deltas[part.stop]
        return targets

    def _observation(self) -> dict[str, Any]:
        size = (*self.image_size, self._supersampling)
        images = {camera: self.render_camera(camera, *size) for camera in CAMERAS}
        return {"images": images, "state": self.state.astype(np.float32)}

    def _info(self) -> dict[str, Any]:
        return {
            "instruction": self.layout.instruction,
            "success": self._held >= HOLD_STEPS,
            "task": self.task,
            "seed": self._seed,
            "failure_reason": self._mistake if self._mistaken >= HOLD_STEPS else None,
        }


def _expect_one_of(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}: expected one of {list(known)}, got {value!r}")
