"""Camera pictures of one moment that are drawn when somebody looks at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np


class LazyPictures(Mapping[str, np.ndarray]):
    """The pictures of one control step, by camera. A policy that acts in chunks looks at one step in many, and drawing
    costs far more than simulating, so a picture is drawn at its first use and then kept.

    Pickling or copying draws all of them and gives a plain dict.

    Args:
        cameras: Names of the cameras.
        draw: Draws one camera as it saw that step, uint8 (H, W, 3), however far the simulation has gone on since.
    """

    def __init__(self, cameras: tuple[str, ...], draw: Callable[[str], np.ndarray]) -> None:
        self._cameras = cameras
        self._draw = draw
        self._drawn: dict[str, np.ndarray] = {}

    def __getitem__(self, camera: str) -> np.ndarray:
        if camera not in self._cameras:
            raise KeyError(camera)
        if camera not in self._drawn:
            self._drawn[camera] = self._draw(camera)
        return self._drawn[camera]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cameras)

    def __len__(self) -> int:
        return len(self._cameras)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)
