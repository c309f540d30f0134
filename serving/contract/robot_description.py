"""Limits of a robot's joints from its URDF or MJCF file, so that nobody copies them by hand. No torch.

URDF names position limits (also the tighter ones of `safety_controller`), speed and effort. MJCF names ranges of joints and
controls, and forces, but no speed; it is read by `mujoco`, which knows its defaults, classes, units and includes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

_MOST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class JointLimits:
    """Limits of one joint, infinite where the file names none: radians or meters, those per second, and newtons (meters)."""

    low: float = -math.inf
    high: float = math.inf
    speed: float = math.inf
    effort: float = math.inf


def read_joint_limits(path: str | Path) -> dict[str, JointLimits]:
    """Joint (in MJCF also actuator) to its limits.

    Raises:
        ValueError: The file is neither, cannot be read, or has a limit that is no number, or a lower one above the upper.
        ImportError: MJCF without `mujoco`.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{path}: expected at most {_MOST_BYTES} bytes, got {path.stat().st_size}")
        text = path.read_text(encoding="utf-8")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:  # a few lines of entities can fill the memory
            raise ValueError(f"{path}: expected XML without DOCTYPE and entities")
        root = ElementTree.fromstring(text)
    except (OSError, UnicodeDecodeError, ElementTree.ParseError) as error:
        raise ValueError(f"{path}: cannot be read as URDF or MJCF ({error})") from None
    if root.tag == "robot":
        found = {str(joint.get("name")): _of_urdf(path, joint) for joint in root.findall("joint") if joint.get("name")}
    elif root.tag == "mujoco":
        found = _of_mjcf(path)
    else:
        raise ValueError(f"{path}: expected a URDF (<robot>) or MJCF (<mujoco>), got <{root.tag}>")
    for name, limits in found.items():
        if limits.low > limits.high:
            raise ValueError(f"{path}: joint {name!r}: expected lower <= upper, got {limits.low} and {limits.high}")
    return found


def _of_urdf(path: Path, joint: ElementTree.Element) -> JointLimits:
    limit, safety = joint.find("limit"), joint.find("safety_controller")
    kind = joint.get("type")

    def number(element: ElementTree.Element | None, name: str, missing: float) -> float:
        text = None if element is None else element.get(name)
        try:
            value = missing if text is None else float(text)
        except ValueError:
            value = math.nan
        if math.isnan(value):
            raise ValueError(f"{path}: joint {joint.get('name')!r}: {name}: expected a number, got {text!r}")
        return value

    if kind not in ("revolute", "prismatic"):
        return JointLimits(speed=number(limit, "velocity", math.inf), effort=number(limit, "effort", math.inf))
    low, high = number(limit, "lower", 0.0), number(limit, "upper", 0.0)  # URDF: 0 where it is missing
    return JointLimits(
        max(low, number(safety, "soft_lower_limit", -math.inf)),
        min(high, number(safety, "soft_upper_limit", math.inf)),
        number(limit, "velocity", math.inf),
        number(limit, "effort", math.inf),
    )


def _of_mjcf(path: Path) -> dict[str, JointLimits]:
    try:
        import mujoco
    except ImportError:
        raise ImportError(f"{path}: reading MJCF needs mujoco; install it with pip install 'syvla[sim]'") from None
    try:
        model = mujoco.MjModel.from_xml_path(str(path))
    except ValueError as error:
        raise ValueError(f"{path}: mujoco cannot read it: {error}") from None
    found = {}
    for i in range(model.njnt):
        if name := model.joint(i).name:
            low, high = map(float, model.jnt_range[i]) if model.jnt_limited[i] else (-math.inf, math.inf)
            effort = float(abs(model.jnt_actfrcrange[i]).max()) if model.jnt_actfrclimited[i] else math.inf
            found[name] = JointLimits(low, high, effort=effort)
    for i in range(model.nu):
        if name := model.actuator(i).name:
            low, high = (
                map(float, model.actuator_ctrlrange[i]) if model.actuator_ctrllimited[i] else (-math.inf, math.inf)
            )
            effort = float(abs(model.actuator_forcerange[i]).max()) if model.actuator_forcelimited[i] else math.inf
            known = found.get(name, JointLimits())
            found[name] = JointLimits(max(low, known.low), min(high, known.high), effort=min(effort, known.effort))
    return found


def limits_of_robot(
    path: str | Path,
    action_names: Sequence[str],
    control_hz: float | None = None,
    joints: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """`low`, `high` and `max_step` for `ActionLimits.of`, for actions that are joint positions in the file's units.

    Args:
        path: URDF or MJCF.
        action_names: Names of the actions' dimensions.
        control_hz: Control rate, which turns a joint's speed into a step. None: speeds are not limited.
        joints: Action to joint, where the names differ; None for an action that is no joint of the file.

    Raises:
        ValueError: See `read_joint_limits`; or an action without a joint of its name.
    """
    known, chosen = read_joint_limits(path), dict(joints or {})
    if stray := sorted(set(chosen) - set(action_names)):
        raise ValueError(f"joints: expected names of actions out of {list(action_names)}, got {stray}")
    missing = sorted({j for n in action_names if (j := chosen.get(n, n)) is not None and j not in known})
    if missing:
        raise ValueError(
            f"{path}: no joints {missing}, it has {sorted(known)[:40]}; say which joint an action means with joints: "
            "{action: joint}, or null for an action that is none"
        )
    entry: dict[str, Any] = {"low": [], "high": [], "max_step": []}
    for name in action_names:
        joint = chosen.get(name, name)
        limits = JointLimits() if joint is None else known[joint]
        step = limits.speed / control_hz if control_hz and limits.speed > 0 else math.inf
        for key, value in (("low", limits.low), ("high", limits.high), ("max_step", step)):
            entry[key].append(value if math.isfinite(value) else None)
    return entry
