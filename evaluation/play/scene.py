"""The simulated table that a person plays with: new scenes, an object put elsewhere while the robot moves, pictures."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from syvla.evaluation.environments import make_environment
from syvla.evaluation.environments.tabletop.scene import COLORS
from syvla.evaluation.environments.tabletop.tasks import X_RANGE, Y_RANGE, half_height

TABLE = {"x": X_RANGE, "y": (-Y_RANGE[1], Y_RANGE[1])}
"""Meters from the table's middle, where demonstrations put objects: x away from the robot, y to its left."""

HEAD_PICTURE = (288, 384)  # (height, width) in pixels
WRIST_PICTURE = (144, 192)
ENDLESS = 1_000_000  # control steps: a person ends an episode, or success does


class PlayScene:
    """One cube, or up to three, on the tabletop of task `lift`.

    Attributes:
        env: `TabletopEnv`.
        observation: The present one.
        success: Whether the episode's own object has been lifted.
        steps: Control steps of the episode.
    """

    def __init__(self) -> None:
        self.env: Any = None
        self.observation: dict[str, Any] = {}
        self.success = False
        self.steps = 0
        self._distractors = -1

    def draw(
        self, seed: int, *, color: str | None = None, position: tuple[float, float] | None = None, distractors: int = 0
    ) -> str:
        """Starts an episode.

        Args:
            seed: Seed of what is left open.
            color: One of `COLORS`.
            position: (x, y) [m] of the object, within `TABLE`.
            distractors: Further cubes of other colors, 0 to 2.

        Returns:
            The episode's own instruction.

        Raises:
            ValueError: An unknown color, a place off the table, or no room.
        """
        options: dict[str, Any] = {}
        if color is not None:
            if color not in COLORS:
                raise ValueError(f"color: expected one of {sorted(COLORS)}, got {color!r}")
            options["color"] = color
        if position is not None:
            options["position"] = _on_table(*position)
        if distractors != self._distractors:
            self.close()
            self.env = make_environment("tabletop", "lift", max_steps=ENDLESS, distractors=distractors)
            self._distractors = distractors
        self.observation, info = self.env.reset(seed=seed, options=options)
        self.success, self.steps = bool(info["success"]), 0
        instruction: str = info["instruction"]
        return instruction

    def move_object(self, x: float, y: float) -> None:
        """Puts the episode's object, at rest, somewhere else on the table; the robot stays as it is.

        Args:
            x, y: Place [m], within `TABLE`.

        Raises:
            ValueError: Off that part of the table.
        """
        place = _on_table(x, y)
        data, model = self.env.data, self.env.model
        joint = model.joint("object")
        shape = next(item.shape for item in self.env.layout.objects if item.name == "object")
        data.qpos[joint.qposadr[0] : joint.qposadr[0] + 7] = [*place, half_height(shape), 1.0, 0.0, 0.0, 0.0]
        data.qvel[joint.dofadr[0] : joint.dofadr[0] + 6] = 0.0
        mujoco.mj_forward(model, data)
        size = self.env.image_size
        self.observation["images"] = {
            camera: self.env.render_camera(camera, *size, supersampling=1) for camera in self.env.cameras
        }
        self.success = False

    def step(self, action: np.ndarray) -> bool:
        """Carries out one action (14,); True once the object has been lifted."""
        self.observation, _, _, _, info = self.env.step(action)
        self.steps += 1
        self.success = bool(info["success"])
        return self.success

    def pictures(self) -> dict[str, np.ndarray]:
        """Camera to a picture for people, uint8 (H, W, 3); the policy sees 32 x 32 pixels."""
        sizes = {camera: HEAD_PICTURE if camera == "head" else WRIST_PICTURE for camera in self.env.cameras}
        return {camera: self.env.render_camera(camera, *size, supersampling=1) for camera, size in sizes.items()}

    def place_at_pixel(self, column: float, row: float) -> tuple[float, float]:
        """Place (x, y) [m] on the table behind a pixel of the head camera's picture, pulled into `TABLE`."""
        height, width = HEAD_PICTURE
        camera = self.env.model.camera("head").id
        half = np.tan(np.deg2rad(self.env.model.cam_fovy[camera]) / 2)
        ray = np.array(
            [((column + 0.5) / width * 2 - 1) * half * width / height, (1 - (row + 0.5) / height * 2) * half, -1.0]
        )
        direction = self.env.data.cam_xmat[camera].reshape(3, 3) @ ray
        origin = self.env.data.cam_xpos[camera]
        if direction[2] >= 0:  # the pixel shows what is above the table's horizon: the nearest is the table's far end
            return TABLE["x"][1], 0.0
        x, y = (origin - direction * origin[2] / direction[2])[:2]
        return float(np.clip(x, *TABLE["x"])), float(np.clip(y, *TABLE["y"]))

    @property
    def object_place(self) -> tuple[float, float]:
        """Where the episode's object is, (x, y) [m]."""
        x, y, _ = self.env.data.body("object").xpos
        return float(x), float(y)

    def close(self) -> None:
        """Frees the simulator; `draw` makes it anew."""
        if self.env is not None:
            self.env.close()
            self._distractors = -1


def _on_table(x: float, y: float) -> tuple[float, float]:
    for name, value in (("x", x), ("y", y)):
        low, high = TABLE[name]
        if not low <= value <= high:
            raise ValueError(f"{name}: expected {low} to {high} meters, where demonstrations put objects, got {value}")
    return float(x), float(y)
