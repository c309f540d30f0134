"""Small transforms between data sets, environments and robots on one side and the model's views on the other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

# Last name parts that cameras carry in public data sets, per view. A single wrist camera counts as the left one, as in
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


def infer_cameras(keys: Iterable[str]) -> dict[str, str]:
    """Maps camera features to views by their names.

    Args:
        keys: Camera features, for example `observation.images.head`.

    Returns:
        View to feature, for example `{"center": "observation.images.head"}`. A lone camera is the centre view.

    Raises:
        ValueError: No camera, or not exactly one, for the centre view, or two for another one; lists them.
    """
    keys = list(keys)
    if len(keys) == 1:
        return {"center": keys[0]}
    found: dict[str, list[str]] = {}
    for key in keys:
        if view := _view_of(key):
            found.setdefault(view, []).append(key)
    ambiguous = {view: names for view, names in found.items() if len(names) > 1}
    if ambiguous or "center" not in found:
        what = f"several cameras for {ambiguous}" if ambiguous else "none of them is named like a centre view"
        raise ValueError(
            f"cameras: expected to find the views from the names of {keys}, but {what}; name them with"
            ' cameras={"center": "observation.images....", "left_wrist": ..., "right_wrist": ...}'
        )
    return {view: names[0] for view, names in found.items()}


def _view_of(key: str) -> str | None:
    name = key.rsplit(".", 1)[-1].lower()
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
