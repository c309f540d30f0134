"""OpenGL without a display: which implementation MuJoCo uses, a renderer with two looks, a clear error.

`MUJOCO_GL` chooses the implementation ("egl", "osmesa" or "glfw", as everywhere in MuJoCo). Where it is unset and there
is no display, EGL is chosen, the one that works on servers and in containers.

The official look is that of each simulator's own renderer, with shadows, reflections and multi-sampling: what published
datasets and checkpoints have seen. On a CPU (Mesa's llvmpipe) these cost more than everything else: three 64-pixel pictures
of a MetaWorld scene took 365 ms with them and 25 ms in the fast look, which leaves them out. Its pictures are others: a third
of MetaWorld's pixels differ visibly.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from functools import cache
from typing import Any

import numpy as np

_MODULES = {"egl": "mujoco.egl", "osmesa": "mujoco.osmesa", "glfw": "mujoco.glfw", "": "mujoco.glfw"}
_HINT = (
    "on Debian or Ubuntu run `apt-get install -y libegl1 libgl1-mesa-dri libopengl0` and set MUJOCO_GL=egl (or unset "
    "MUJOCO_GL and PYOPENGL_PLATFORM); the environment 'tabletop' needs no OpenGL"
)


LOOKS = {
    "official": "official",
    "fast": "fast: without shadows, reflections and multi-sampling, unlike published pictures",
}
"""Looks of pictures, and what stands beside the results of each."""


class GraphicsUnavailableError(ImportError):
    """OpenGL cannot be used; the message names the packages and the variable."""


def choose_gl() -> str:
    """The OpenGL implementation in use; sets `MUJOCO_GL=egl` where it is unset and there is no display."""
    has_display = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    if sys.platform == "linux" and not has_display:
        os.environ.setdefault("MUJOCO_GL", "egl")
    return os.environ.get("MUJOCO_GL", "").strip().lower()


@cache
def require_graphics() -> None:
    """Chooses the implementation, before MuJoCo is imported where possible, and tries it once per process.

    Raises:
        GraphicsUnavailableError: If no context can be made.
        ModuleNotFoundError: If MuJoCo is not installed.
    """
    if importlib.util.find_spec("mujoco") is None:
        raise ModuleNotFoundError("No module named 'mujoco'", name="mujoco")
    context = _new_context(1, 1)
    context.free()


def _new_context(width: int, height: int) -> Any:
    name = choose_gl()
    if sys.platform == "linux" and name not in _MODULES:
        raise GraphicsUnavailableError(
            f"MUJOCO_GL: expected one of {sorted(filter(None, _MODULES))}, got {name!r}; {_HINT}"
        )
    module = _MODULES.get(name, "mujoco.glfw") if sys.platform == "linux" else "mujoco.gl_context"
    try:
        return importlib.import_module(module).GLContext(width, height)
    except Exception as error:  # ImportError, AttributeError, RuntimeError or an OpenGL error, by what is missing
        raise GraphicsUnavailableError(f"OpenGL ({name or 'glfw'}) does not work here: {error}; {_HINT}") from error


class OffscreenRenderer:
    """Draws cameras of one model at any size.

    Args:
        model: Compiled model. The fast look switches off its multi-sampling and shadow map, which changes nothing but
            pictures.
        hidden_groups: Geom groups that are not drawn.
        look: Key of `LOOKS`.

    Raises:
        GraphicsUnavailableError: If OpenGL does not work.
    """

    def __init__(self, model: Any, hidden_groups: tuple[int, ...] = (), look: str = "official") -> None:
        import mujoco

        self._mujoco = mujoco
        if look == "fast":
            model.vis.quality.offsamples = 0
            model.vis.quality.shadowsize = 0
        self.model = model
        self._size = (256, 256)
        self._context = _new_context(*self._size)
        self._context.make_current()
        self._drawing = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._drawing)
        self._scene = mujoco.MjvScene(model, maxgeom=2000)
        if look == "fast":
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._options = mujoco.MjvOption()
        for group in hidden_groups:
            self._options.geomgroup[group] = False

    def render(self, data: Any, camera: str, height: int, width: int) -> np.ndarray:
        """Picture of a camera of the model, upright as a photograph, uint8 (height, width, 3)."""
        mujoco = self._mujoco
        self._context.make_current()
        if height > self._drawing.offHeight or width > self._drawing.offWidth:
            mujoco.mjr_resizeOffscreen(
                max(width, self._drawing.offWidth), max(height, self._drawing.offHeight), self._drawing
            )
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._drawing)
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        view.fixedcamid = self.model.camera(camera).id
        mujoco.mjv_updateScene(
            self.model, data, self._options, None, view, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
        )
        area = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(area, self._scene, self._drawing)
        picture = np.empty((height, width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(picture, None, area, self._drawing)
        return picture[::-1]  # OpenGL's rows run from the bottom up

    def close(self) -> None:
        """Frees the context; the renderer cannot be used afterwards."""
        if self._context is not None:
            self._context.make_current()
            self._drawing.free()
            self._context.free()
            self._context = None
