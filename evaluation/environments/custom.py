"""An environment of your own, named "module:Class": what it must offer, and a check of it before anything is measured.

The class is a `gymnasium.Env` with the attributes of `base.RobotEnvironment`; `examples/own_environment.py` is one. Its
constructor takes `task` and the options of `--env-option`. The module is looked for in the working directory too. A method
`make_expert()` that returns a `ScriptedExpert` is optional.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

_ATTRIBUTES: dict[str, str] = {
    "embodiment": "a name",
    "task": "the name of its task",
    "tasks": "the names of all tasks",
    "cameras": "the names of its cameras",
    "view_cameras": "center, left_wrist, right_wrist: camera",
    "state_names": "a name for each dimension of the state",
    "action_names": "a name for each dimension of the action",
    "action_space": "gymnasium's Box of the action",
    "control_hz": "control steps per second",
    "max_steps": "control steps of an episode",
    "render_camera": "a method: camera, height, width -> uint8 (height, width, 3)",
}
_VIEWS = ("center", "left_wrist", "right_wrist")


def is_custom(name: str) -> bool:
    """Whether a name has the form "module:Class"."""
    return re.fullmatch(r"\w+(\.\w+)*:\w+", name) is not None


def check_environment(name: str, environment: Any) -> None:
    """Looks at an environment's attributes, its first observation, and whether a seed means one episode.

    Args:
        name: For messages.
        environment: Just made; it is reset twice.

    Raises:
        ValueError: If something is missing, ill-formed, or left over from the episode before.
    """
    missing = [f"{key} ({what})" for key, what in _ATTRIBUTES.items() if not hasattr(environment, key)]
    if missing:
        raise ValueError(f"environment {name!r}: lacks {', '.join(missing)}; see syvla.evaluation.environments.base")
    views, cameras = dict(environment.view_cameras), tuple(environment.cameras)
    if not views or not set(views) <= set(_VIEWS) or not set(views.values()) <= set(cameras):
        raise ValueError(
            f"environment {name!r}: view_cameras: expected some of {', '.join(_VIEWS)}, each with one of the cameras "
            f"{list(cameras)}, got {views}"
        )
    shape = getattr(environment.action_space, "shape", None)
    if shape != (len(environment.action_names),):
        raise ValueError(
            f"environment {name!r}: action_space: expected a Box of shape ({len(environment.action_names)},) for the names "
            f"{list(environment.action_names)}, got shape {shape}"
        )
    if not environment.control_hz > 0 or not environment.max_steps >= 1:
        raise ValueError(
            f"environment {name!r}: expected control_hz > 0 and max_steps >= 1, got {environment.control_hz} and "
            f"{environment.max_steps}"
        )
    first = _reset(name, environment)
    environment.step(np.zeros(shape, np.float32))
    second = _reset(name, environment)
    changed = [key for key in first if not np.array_equal(first[key], second[key])]
    if changed:
        raise ValueError(
            f"environment {name!r}: reset(seed=0) gives another {changed[0]} the second time; a seed must mean one episode: "
            "draw from self.np_random after super().reset(seed=seed), and set everything anew"
        )


def _reset(name: str, environment: Any) -> dict[str, np.ndarray]:
    """Copies of a first observation's parts, each looked at."""
    answer = environment.reset(seed=0)
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise ValueError(f"environment {name!r}: reset: expected (observation, info), got {type(answer).__name__}")
    observation, info = answer
    if not isinstance(observation, Mapping) or not isinstance(observation.get("images"), Mapping):
        raise ValueError(
            f'environment {name!r}: observation: expected {{"images": {{camera: picture}}, "state": numbers}}'
        )
    for key, kind in (("instruction", str), ("success", bool | np.bool_)):
        if not isinstance(info.get(key), kind):
            raise ValueError(
                f"environment {name!r}: info[{key!r}]: expected {'a text' if kind is str else 'True or False'}, got "
                f"{info.get(key)!r}"
            )
    state = np.asarray(observation.get("state"))
    if state.shape != (len(environment.state_names),) or state.dtype.kind not in "fiu" or not np.isfinite(state).all():
        raise ValueError(
            f"environment {name!r}: observation['state']: expected {len(environment.state_names)} finite numbers, which are "
            f"{', '.join(environment.state_names)}; got {state.dtype} {state.shape}"
        )
    parts = {"state": state.copy()}
    for camera in environment.cameras:
        picture = np.asarray(observation["images"].get(camera))
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(
                f"environment {name!r}: observation['images'][{camera!r}]: expected uint8 (H, W, 3), got {picture.dtype} "
                f"{picture.shape}"
            )
        parts[f"picture of {camera}"] = picture.copy()
    return parts
