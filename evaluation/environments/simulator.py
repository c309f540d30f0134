"""What the back-ends on other projects' MuJoCo simulators share: the gymnasium API, checked actions, lazy pictures."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces

from .graphics import LOOKS, OffscreenRenderer
from .lazy_pictures import LazyPictures


@dataclass(frozen=True)
class Moment:
    """What the cameras saw depends on: the configuration at one control step.

    Attributes:
        episode: Number of the episode; a later one may have moved the scenery.
        qpos: Joint positions (nq,).
        mocap_pos: Positions of bodies moved from outside (nmocap, 3).
        mocap_quat: Their orientations (nmocap, 4).
        site_rgba: Colors of the sites (nsite, 4), which show goals and lit burners.
    """

    episode: int
    qpos: np.ndarray
    mocap_pos: np.ndarray
    mocap_quat: np.ndarray
    site_rgba: np.ndarray


class SimulatorEnv(gymnasium.Env):
    """Base of the back-ends. A subclass fills in the class attributes and the methods that raise NotImplementedError.

    Args:
        task: One of `tasks`.
        image_size: Side of the square pictures in pixels, or (height, width).
        max_steps: Control steps after which the episode is truncated.
        look: "official", as the simulator's own renderer draws, or "fast", without shadows, reflections and multi-sampling.

    Attributes:
        max_step_motion: Scale of the noise that a disturbed recording adds to actions, (D_action,), in their units.
        description: Facts about the simulation that belong beside every result, JSON-serializable.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"
    embodiment: str
    tasks: ClassVar[tuple[str, ...]]
    task_groups: ClassVar[dict[str, tuple[str, ...]]] = {}  # further names of several tasks, for evaluations
    cameras: ClassVar[tuple[str, ...]]
    view_cameras: ClassVar[dict[str, str]]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    control_hz: ClassVar[float]
    simulator_cameras: ClassVar[dict[str, str]] = {}  # camera to its name in the model, where that is another
    hidden_groups: ClassVar[tuple[int, ...]] = ()  # of geoms
    max_steps: int
    max_step_motion: np.ndarray

    def __init__(self, task: str, image_size: int | tuple[int, int], max_steps: int, look: str = "official") -> None:
        check_task(task, self.tasks, self.task_groups)
        if look not in LOOKS:
            raise ValueError(f"look: expected one of {list(LOOKS)}, got {look!r}")
        self.look = look
        if max_steps < 1:
            raise ValueError(f"max_steps: expected at least 1, got {max_steps}")
        self.task = task
        self.max_steps = max_steps
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f"image_size: expected a side or (height, width) in pixels, got {image_size!r}")
        pictures = {camera: spaces.Box(0, 255, (*self.image_size, 3), np.uint8) for camera in self.cameras}
        state = spaces.Box(-np.inf, np.inf, (len(self.state_names),), np.float32)
        self.observation_space = spaces.Dict({"images": spaces.Dict(pictures), "state": state})
        self.description: dict[str, Any] = {"mujoco": mujoco.__version__, "look": LOOKS[look]}
        self._renderer: OffscreenRenderer | None = None
        self._scratch: mujoco.MjData
        self._episode = 0
        self._steps = 0
        self._seed: int | None = None

    @classmethod
    def check_tasks(cls, tasks: Sequence[str], options: Mapping[str, Any]) -> None:
        """Looks, before an evaluation begins, whether all of its tasks can be made, without making them.

        Args:
            tasks: Their names.
            options: Keyword arguments of the constructor.

        Raises:
            ValueError: If a task is unknown.
            FileNotFoundError: If a file of one is missing.
        """
        for task in tasks:
            check_task(task, cls.tasks, cls.task_groups)

    @property
    def model(self) -> mujoco.MjModel:
        """The compiled model."""
        raise NotImplementedError

    @property
    def data(self) -> mujoco.MjData:
        """The simulation's state."""
        raise NotImplementedError

    @property
    def state(self) -> np.ndarray:
        """Proprioception (D_state,), see `state_names`."""
        raise NotImplementedError

    @property
    def instruction(self) -> str:
        """Sentence of the present episode."""
        raise NotImplementedError

    @property
    def success(self) -> bool:
        """Whether the task is solved now."""
        raise NotImplementedError

    def _begin(self, seed: int | None, options: Mapping[str, Any]) -> None:
        """Starts an episode; `self.np_random` has been seeded."""
        raise NotImplementedError

    def _advance(self, action: np.ndarray) -> None:
        """Simulates one control step with an action (D_action,) within the action space."""
        raise NotImplementedError

    def _oriented(self, camera: str, picture: np.ndarray) -> np.ndarray:
        """Turns an upright picture the way this back-end's policies are used to."""
        return picture

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode; the same seed and options give the same episode.

        Args:
            seed: Seed of the episode. None continues the present generator.
            options: See the back-end.

        Returns:
            The observation and the info (`instruction`, `success`, `task`, `seed`).
        """
        super().reset(seed=seed)
        self._episode += 1
        self._steps = 0
        self._seed = seed
        self._begin(seed, options or {})
        return self._observation(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Applies one action (D_action,) for `1 / control_hz` seconds; values beyond the action space are clipped.

        Returns:
            Observation, reward (1.0 at success, else 0.0), terminated (success), truncated (`max_steps`), info.

        Raises:
            ValueError: If the action has another shape or a value that is not finite.
            RuntimeError: If called before `reset`.
        """
        if not self._episode:
            raise RuntimeError("step() was called before reset(); call reset() first")
        self._advance(self._checked(action))
        self._steps += 1
        info = self._info()
        return self._observation(), float(info["success"]), info["success"], self._steps >= self.max_steps, info

    def render(self) -> np.ndarray:
        """Picture of the first camera, uint8 (240, 320, 3)."""
        return self.render_camera(self.cameras[0], 240, 320)

    def render_camera(self, camera: str, height: int, width: int) -> np.ndarray:
        """Picture of any camera of the model at any size, uint8 (height, width, 3).

        Raises:
            RuntimeError: If called before `reset`.
            GraphicsUnavailableError: If OpenGL does not work.
        """
        if not self._episode:
            raise RuntimeError("there is nothing to render before reset(); call reset() first")
        return self._draw(self._moment(), camera, height, width)

    def close(self) -> None:
        """Frees what the environment holds."""
        self._close_renderer()

    def _checked(self, action: np.ndarray) -> np.ndarray:
        values = np.asarray(action, dtype=np.float64)
        names = self.action_names
        if values.shape != (len(names),):
            raise ValueError(f"action: expected shape ({len(names)},) = {', '.join(names)}; got {values.shape}")
        if not np.isfinite(values).all():
            wrong = [name for name, value in zip(names, values, strict=True) if not np.isfinite(value)]
            raise ValueError(f"action: expected finite values, got {values[~np.isfinite(values)]} for {wrong}")
        return np.clip(values, self.action_space.low, self.action_space.high)

    def _observation(self) -> dict[str, Any]:
        moment = self._moment()
        images = LazyPictures(self.cameras, lambda camera: self._draw(moment, camera, *self.image_size))
        return {"images": images, "state": self.state.astype(np.float32)}

    def _info(self) -> dict[str, Any]:
        return {"instruction": self.instruction, "success": self.success, "task": self.task, "seed": self._seed}

    def _moment(self) -> Moment:
        data = self.data
        poses = (data.qpos.copy(), data.mocap_pos.copy(), data.mocap_quat.copy())
        return Moment(self._episode, *poses, self.model.site_rgba.copy())

    def _draw(self, moment: Moment, camera: str, height: int, width: int) -> np.ndarray:
        if moment.episode != self._episode:
            raise RuntimeError("the pictures of an earlier episode were never looked at and are gone with its scene")
        renderer = self._ready_renderer()
        self._scratch.qpos[:] = moment.qpos
        self._scratch.mocap_pos[:] = moment.mocap_pos
        self._scratch.mocap_quat[:] = moment.mocap_quat
        mujoco.mj_kinematics(self.model, self._scratch)
        mujoco.mj_comPos(self.model, self._scratch)  # cameras that track a body stand relative to its center of mass
        mujoco.mj_camlight(self.model, self._scratch)
        present = self.model.site_rgba.copy()
        self.model.site_rgba[:] = moment.site_rgba
        name = self.simulator_cameras.get(camera, camera)
        picture = renderer.render(self._scratch, name, height, width)
        self.model.site_rgba[:] = present
        return np.ascontiguousarray(self._oriented(camera, picture))

    def _ready_renderer(self) -> OffscreenRenderer:
        if self._renderer is None or self._renderer.model is not self.model:
            self._close_renderer()
            self._renderer = OffscreenRenderer(self.model, self.hidden_groups, self.look)
            self._scratch = mujoco.MjData(self.model)
        return self._renderer

    def _close_renderer(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


_UNSTABLE = tuple(getattr(mujoco.mjtWarning, f"mjWARN_BAD{what}") for what in ("QPOS", "QVEL", "QACC"))


def went_unstable(data: mujoco.MjData) -> bool:
    """Whether MuJoCo found values beyond its limits since the last reset, and has gone back to the model's initial state."""
    return any(data.warning[kind].number for kind in _UNSTABLE)


def check_task(task: str, tasks: tuple[str, ...], groups: Iterable[str] = ()) -> None:
    """Raises a `ValueError` unless `task` is one of `tasks`; it lists them, or of many the groups, and names close ones."""
    if task in tasks:
        return
    listed = str(list(tasks))
    if len(tasks) > LISTED_TASKS:
        listed = f"{len(tasks)} tasks from {tasks[0]!r} to {tasks[-1]!r}, or of the groups {[*groups, 'all']}"
    close = difflib.get_close_matches(str(task), [*groups, *tasks], n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise ValueError(f"task: expected one of {listed}, got {task!r}{hint}")


LISTED_TASKS = 60
"""More would hide what is said."""


def check_options(options: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Raises a `ValueError` for reset options that the back-end does not know."""
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"options: unknown {unknown}; known are {list(known)}")
