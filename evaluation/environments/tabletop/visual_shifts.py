"""Changes of what the cameras see and of nothing else: light, the head camera's mount, table and background.

They are drawn anew at every reset, after the episode itself, so a seed means the same episode with and without. The sizes are
ours: about what a lab that is set up again differs by.
"""

from __future__ import annotations

import colorsys
import math

import mujoco
import numpy as np

from .ray_camera import DAYLIGHT, Light

SHIFTS = ("lighting", "camera", "background")

CAMERA_OFFSET = 0.02  # meters, either way on each axis
CAMERA_TURN = math.radians(3.0)  # either way about each axis of the camera
_HEAD = "head"
_TABLE = "table"


class VisualShift:
    """One kind of change, for the scenes of one environment.

    Args:
        kind: "lighting": strength from 0.5 to 1.6 of the usual, the key light from anywhere above, warm or cold. "camera":
            the head camera is up to `CAMERA_OFFSET` away on each axis and turned by up to `CAMERA_TURN`; those at the wrists
            stay. "background": table and surroundings in other, pale colors.
    """

    def __init__(self, kind: str) -> None:
        if kind not in SHIFTS:
            raise ValueError(f"shift: expected None or one of {list(SHIFTS)}, got {kind!r}")
        self.kind = kind
        self._mounts: dict[int, tuple[mujoco.MjModel, np.ndarray, np.ndarray]] = {}  # of scenes as they were built

    def apply(self, model: mujoco.MjModel, rng: np.random.Generator) -> Light:
        """Draws a change: puts it into the model, and returns the light to draw pictures in."""
        if self.kind == "lighting":
            return _draw_light(rng)
        if self.kind == "camera":
            self._move_camera(model, rng)
            return DAYLIGHT
        model.geom(_TABLE).rgba[:3] = _pale_color(rng)
        return Light(background=_pale_color(rng))

    def forget(self) -> None:
        """The scenes so far are gone."""
        self._mounts.clear()

    def _move_camera(self, model: mujoco.MjModel, rng: np.random.Generator) -> None:
        camera = model.camera(_HEAD)
        key = id(model)
        if key not in self._mounts:
            self._mounts[key] = (model, camera.pos.copy(), camera.quat.copy())
        _, position, orientation = self._mounts[key]
        camera.pos[:] = position + rng.uniform(-CAMERA_OFFSET, CAMERA_OFFSET, 3)
        turn, turned = np.empty(4), np.empty(4)
        mujoco.mju_euler2Quat(turn, rng.uniform(-CAMERA_TURN, CAMERA_TURN, 3), "xyz")
        mujoco.mju_mulQuat(turned, orientation, turn)
        camera.quat[:] = turned


def _draw_light(rng: np.random.Generator) -> Light:
    strength = math.exp(rng.uniform(math.log(0.5), math.log(1.6)))
    azimuth, height = rng.uniform(0, 2 * math.pi), rng.uniform(math.radians(20), math.radians(80))
    warmth = rng.uniform(-0.2, 0.2)
    return Light(
        ambient=DAYLIGHT.ambient * strength,
        key=DAYLIGHT.key * strength,
        head=DAYLIGHT.head * strength,
        direction=(math.cos(azimuth) * math.cos(height), math.sin(azimuth) * math.cos(height), math.sin(height)),
        tint=(1 + warmth, 1.0, 1 - warmth),
        background=tuple(min(1.0, strength * part) for part in DAYLIGHT.background),  # type: ignore[arg-type]
    )


def _pale_color(rng: np.random.Generator) -> tuple[float, float, float]:
    """Little saturated, so that it is no object's color."""
    return colorsys.hsv_to_rgb(rng.uniform(0, 1), rng.uniform(0, 0.35), rng.uniform(0.35, 0.9))
