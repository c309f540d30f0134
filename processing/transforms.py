"""Small transforms between datasets, environments and robots on one side and the model's views on the other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

DEFAULT_VIEWS = ("center", "left_wrist", "right_wrist")

# Name parts that cameras carry in public datasets, per view. A single wrist camera counts as the left one, as in
# openpi's LIBERO policies.
_LEFT, _RIGHT, _WRIST = {"left"}, {"right"}, {"wrist", "hand", "gripper", "arm", "eye_in_hand"}
_CENTER = {
    "center",
    "centre",
    "head",
    "top",
    "front",
    "main",
    "base",
    "primary",
    "high",
    "exterior",
    "scene",
    "agentview",
}


def infer_cameras(keys: Iterable[str], views: Sequence[str] = DEFAULT_VIEWS) -> dict[str, str]:
    """Maps camera features to views by their names. Cameras that are like none of the views are left out.

    Args:
        keys: Camera features, for example `observation.images.head`.
        views: The model's views. A camera of the same name as a view is that view.

    Returns:
        View to feature, for example `{"center": "observation.images.head"}`. A lone camera is the first view.

    Raises:
        ValueError: No camera for the first view, or two for one view; lists them.
    """
    keys = list(keys)
    if len(keys) == 1:
        return {views[0]: keys[0]}
    found: dict[str, list[str]] = {}
    for key in keys:
        name = _camera_name(key)
        if name in views:
            found.setdefault(name, []).insert(0, key)
    exact = set(found)
    for key in keys:
        view = _view_of(_camera_name(key))
        if view is not None and view in views and view not in exact and _camera_name(key) not in exact:
            found.setdefault(view, []).append(key)
    ambiguous = {view: names for view, names in found.items() if len(names) > 1}
    if ambiguous or views[0] not in found:
        what = f"several cameras for {ambiguous}" if ambiguous else f"none of them is named like the view {views[0]!r}"
        example = ", ".join(f'"{view}": "observation.images...."' for view in views)
        raise ValueError(
            f"cameras: expected to find the views from the names of {keys}, but {what}; name them with cameras={{{example}}}."
            " Further cameras, a second one of the scene for example, need views of the model: syvla-finetune --views"
        )
    return {view: found[view][0] for view in views if view in found}


def camera_line(cameras: Mapping[str, str], available: Iterable[str], views: Iterable[str]) -> str:
    """One line that says which camera each view shows, which cameras no view shows, and which views have no camera."""
    used = ", ".join(f"{view} = {key}" for view, key in cameras.items()) or "none"
    unused = ", ".join(key for key in available if key not in cameras.values()) or "none"
    missing = ", ".join(view for view in views if view not in cameras) or "none"
    return f"cameras: {used}; unused: {unused}; views without a camera: {missing}"


def _camera_name(key: str) -> str:
    """Name of a camera without what every camera feature begins with: "wrist.left" of "observation.images.wrist.left"."""
    return re.sub(r"^(observation\.)?(images?\.)?", "", key).replace(".", "_").lower() or key


def _view_of(name: str) -> str | None:
    words = set(re.split(r"[^a-z]+|(?<=[a-z])(?=\d)", name)) | {name}
    if words & _WRIST:
        return "right_wrist" if words & _RIGHT else "left_wrist"
    if words & _CENTER or name in ("image", "images", "rgb", "camera", "cam"):
        return "center"
    return None


@dataclass(frozen=True)
class NameViews:
    """Renames cameras to views and drops the rest: `{camera: image}` to `{view: image}`.

    Attributes:
        cameras: View to camera name. Cameras that an input lacks are absent from the result.
    """

    cameras: Mapping[str, str]

    def __call__(self, images: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {view: images[camera] for view, camera in self.cameras.items() if camera in images}


@dataclass(frozen=True)
class ResizeViews:
    """Resizes images uint8 (H, W, 3) by bilinear interpolation; the aspect ratio is not kept.

    Attributes:
        height: In pixels.
        width: In pixels.
    """

    height: int
    width: int

    def __call__(self, images: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {view: self._resize(image) for view, image in images.items()}

    def _resize(self, image: np.ndarray) -> np.ndarray:
        if image.shape[:2] == (self.height, self.width):
            return image
        return np.array(Image.fromarray(image).resize((self.width, self.height), Image.Resampling.BILINEAR))
