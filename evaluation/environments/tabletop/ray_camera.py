"""Pictures from MuJoCo's own ray casting: no OpenGL, no EGL, no system package.

One `mj_multiRay` call per picture gives for every pixel the geom that is hit and the surface normal there; the color
is the geom's own with Lambert shading. Cost grows with the pixel count (about a microsecond per ray), so it suits small
observations and short videos.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np


@dataclass(frozen=True)
class Light:
    """What lights a scene; the defaults are those of all recordings and evaluations that say nothing else.

    Attributes:
        ambient, key, head: Strength of light from everywhere, from one direction, and from the camera.
        direction: Where the key light is, as seen from the surface; any length.
        tint: Factors on red, green and blue.
        background: Color where nothing is hit, red, green and blue in [0, 1].
    """

    ambient: float = 0.48
    key: float = 0.42
    head: float = 0.16
    direction: tuple[float, float, float] = (-0.35, 0.45, 0.82)
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    background: tuple[float, float, float] = (0.62, 0.72, 0.82)


DAYLIGHT = Light()


class RayCamera:
    """Renders one camera of a model at one size.

    Args:
        model: Model that holds the camera. Its `geom_rgba` is read at every picture, so colors may change.
        camera: Camera name.
        height: Picture height in pixels.
        width: Picture width in pixels; the camera's field of view is the vertical one.
        supersampling: Rays per pixel and axis; 2 casts four rays per pixel and averages them (smooth edges).

    Raises:
        ValueError: If the camera is unknown or a size is not positive.
    """

    def __init__(self, model: mujoco.MjModel, camera: str, height: int, width: int, supersampling: int = 1) -> None:
        self._camera_id = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        if self._camera_id < 0:
            known = [model.camera(i).name for i in range(model.ncam)]
            raise ValueError(f"camera: expected one of {known}, got {camera!r}")
        if min(height, width, supersampling) < 1:
            raise ValueError(f"picture size: expected positive numbers, got {height} x {width}, {supersampling} rays")
        self._model = model
        self._shape = (height, width, supersampling)
        rows, columns = height * supersampling, width * supersampling
        half_height = np.tan(np.deg2rad(model.cam_fovy[self._camera_id]) / 2)
        half_width = half_height * width / height
        x = ((np.arange(columns) + 0.5) / columns * 2 - 1) * half_width
        y = (1 - (np.arange(rows) + 0.5) / rows * 2) * half_height
        grid = np.stack(np.broadcast_arrays(x[None, :], y[:, None], -1.0), axis=-1).reshape(-1, 3)
        self._directions = grid / np.linalg.norm(grid, axis=1, keepdims=True)  # (rays, 3) in the camera frame
        count = len(grid)
        self._geom = np.empty(count, dtype=np.int32)
        self._distance = np.empty(count)
        self._normal = np.empty(count * 3)

    def render(self, data: mujoco.MjData, light: Light = DAYLIGHT) -> np.ndarray:
        """Picture of the present state (after `mj_forward` or `mj_step`), uint8 (height, width, 3)."""
        rays = np.ascontiguousarray(self._directions @ data.cam_xmat[self._camera_id].reshape(3, 3).T)
        mujoco.mj_multiRay(
            self._model, data, data.cam_xpos[self._camera_id].copy(), rays.reshape(-1), None, 1, -1,
            self._geom, self._distance, self._normal, len(rays), mujoco.mjMAXVAL,
        )  # fmt: skip
        normal = self._normal.reshape(-1, 3)
        facing = -np.einsum("ij,ij->i", normal, rays)
        direction = np.array(light.direction) / np.linalg.norm(light.direction)
        shade = light.ambient + light.key * np.maximum(normal @ direction, 0) + light.head * np.maximum(facing, 0)
        color = self._model.geom_rgba[self._geom, :3] * shade[:, None]
        color[self._geom < 0] = np.array(light.background, np.float32)
        if light.tint != DAYLIGHT.tint:
            color = color * np.array(light.tint, np.float32)
        height, width, samples = self._shape
        if samples > 1:
            color = color.reshape(height, samples, width, samples, 3).mean(axis=(1, 3))
        image: np.ndarray = (np.clip(color, 0, 1) * 255 + 0.5).astype(np.uint8).reshape(height, width, 3)
        return image
