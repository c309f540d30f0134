"""Tasks of the tabletop: what lies where, the instruction, and when it counts as done.

Success is physical and has to hold for `HOLD_STEPS` consecutive control steps:

- `lift`: the object's lowest extent is at least `LIFT_HEIGHT` above the table.
- `place`: the object rests on the table with its center within `PLACE_RADIUS` of the pad's center, slower than
  `REST_SPEED`, and the gripper that moved it is open wider than the object.
- `bar_lift`: both ends of the bar are at least `BAR_LIFT_HEIGHT` above the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mujoco
import numpy as np

from .choice_shapes import ITEM_SHAPES, NUMBER_HALF_SIZE
from .scene import BAR_HALF_SIZE, COLORS, OBJECT_HALF_SIZE, SIDES, SceneObject

HOLD_STEPS = 3
LIFT_HEIGHT = 0.06  # meters
BAR_LIFT_HEIGHT = 0.05  # meters
PLACE_RADIUS = 0.035  # meters
REST_SPEED = 0.05  # meters per second

X_RANGE = (-0.05, 0.09)  # meters; where objects may lie
UNSEEN_X_RANGE = (0.105, 0.13)  # meters; where the object of `place` lies out of distribution
Y_RANGE = (0.03, 0.13)  # meters from the middle line, on either side
PAD_Y_RANGE = (-0.03, 0.13)  # meters from the middle line towards the arm that places
MAX_YAW = 0.35  # radians; objects are turned by at most this much
CLEARANCE = 0.105  # meters between the centers of two things on the table: room for an open gripper

SHAPES = ("cube", "cylinder")
OPTIONS = ("arm", "color", "shape", "position", "pad_color", "pad_position")


@dataclass(frozen=True)
class Layout:
    """One episode's draw.

    Attributes:
        instruction: Sentence for the policy.
        arms: Arms that do the work, ("left",), ("right",) or both.
        target: Words for the object to handle, such as "red cube".
        objects: Bodies of the scene.
        poses: Body name to (x, y, yaw) on the table [m, m, rad].
        colors: Body name to color name.
        goal: Words for the place to put it, empty without one.
        digits: Body name to the digit that it shows.
        reasoning: What follows from the instruction, for the first thought; empty where there is nothing to work out.
    """

    instruction: str
    arms: tuple[str, ...]
    target: str
    objects: tuple[SceneObject, ...]
    poses: dict[str, tuple[float, float, float]]
    colors: dict[str, str]
    goal: str = ""
    digits: dict[str, int] = field(default_factory=dict)
    reasoning: str = ""


class CrowdedTableError(RuntimeError):
    """The things drawn so far leave no room for the next; the layout has to be drawn again."""


@dataclass(frozen=True)
class Draw:
    """Options of one reset, checked; what they leave open is drawn from the generator."""

    rng: np.random.Generator
    shapes: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()  # aspects to draw from what demonstrations do not show, see tabletop_choice_tasks

    def __post_init__(self) -> None:
        unknown = sorted(set(self.options) - set(OPTIONS))
        if unknown:
            raise ValueError(f"options: unknown {unknown}; known are {list(OPTIONS)}")

    def choice(self, key: str, values: Sequence[str]) -> str:
        """The option `key`, or one of `values` at random (drawn in any case, so that options do not shift the rest)."""
        drawn = values[int(self.rng.integers(len(values)))]
        value: str = self.options.get(key, drawn)
        if value not in values:
            raise ValueError(f"options[{key!r}]: expected one of {list(values)}, got {value!r}")
        return value

    def position(
        self,
        key: str,
        arm: str,
        *,
        away_from: Sequence[tuple[float, float, float]] = (),
        x_range: tuple[float, float] = X_RANGE,
        y_range: tuple[float, float] = Y_RANGE,
    ) -> tuple[float, float]:
        """The option `key` as (x, y), or a free place at random; `y_range` counts from the middle towards `arm`."""
        if key in self.options:
            point = np.asarray(self.options[key], dtype=float)
            if point.shape != (2,) or not np.isfinite(point).all():
                raise ValueError(f"options[{key!r}]: expected (x, y) in meters, got {self.options[key]!r}")
            return float(point[0]), float(point[1])
        for _ in range(50):
            x = float(self.rng.uniform(*x_range))
            y = float(self.rng.uniform(*y_range)) * (1 if arm == "left" else -1)
            if all(np.hypot(x - other[0], y - other[1]) >= CLEARANCE for other in away_from):
                return x, y
        raise CrowdedTableError(f"{key}: found no free place")

    def yaw(self) -> float:
        """A turn of at most `MAX_YAW` radians."""
        return float(self.rng.uniform(-MAX_YAW, MAX_YAW))


class Task:
    """Base of the tasks. `name` is the task's name in the environment."""

    name: str

    def sample(self, draw: Draw, distractors: int) -> Layout:
        """Draws an episode."""
        raise NotImplementedError

    def achieved(
        self, model: mujoco.MjModel, data: mujoco.MjData, layout: Layout, openings: Mapping[str, float]
    ) -> bool:
        """Whether the goal state holds now. `openings` are the gripper openings [m] per arm."""
        raise NotImplementedError

    def mistake(
        self, model: mujoco.MjModel, data: mujoco.MjData, layout: Layout, openings: Mapping[str, float]
    ) -> str | None:
        """What has been done that counts as a failure and ends the episode, such as a wrong choice; None if nothing."""
        return None


def _object_on_table(
    draw: Draw, arm: str, x_range: tuple[float, float] = X_RANGE
) -> tuple[str, str, tuple[float, float, float]]:
    shape = draw.choice("shape", draw.shapes)
    color = draw.choice("color", tuple(COLORS))
    return shape, color, (*draw.position("position", arm, x_range=x_range), draw.yaw())


def _arm_for(draw: Draw) -> str:
    """The arm asked for, else the one nearer to the position asked for, else a random one."""
    arm = draw.choice("arm", SIDES)
    if "position" in draw.options and "arm" not in draw.options:
        arm = "left" if np.asarray(draw.options["position"], dtype=float).reshape(-1)[-1] >= 0 else "right"
    return arm


def _other_colors(*taken: str) -> tuple[str, ...]:
    return tuple(color for color in COLORS if color not in taken)


def _add_distractors(
    draw: Draw,
    count: int,
    objects: list[SceneObject],
    poses: dict[str, tuple[float, float, float]],
    colors: dict[str, str],
) -> None:
    """Adds things of other colors than those already there, on either side."""
    for index in range(count):
        name = f"distractor_{index + 1}"
        remaining = _other_colors(*colors.values())
        colors[name] = remaining[int(draw.rng.integers(len(remaining)))]
        side = SIDES[int(draw.rng.integers(len(SIDES)))]
        objects.append(SceneObject(name, draw.shapes[int(draw.rng.integers(len(draw.shapes)))]))
        poses[name] = (*draw.position("distractor", side, away_from=list(poses.values())), draw.yaw())


class Lift(Task):
    """Lift one object with the arm that is nearer to it."""

    name = "lift"

    def sample(self, draw: Draw, distractors: int) -> Layout:
        arm = _arm_for(draw)
        shape, color, pose = _object_on_table(draw, arm)
        objects, poses, colors = [SceneObject("object", shape)], {"object": pose}, {"object": color}
        _add_distractors(draw, distractors, objects, poses, colors)
        target = f"{color} {shape}"
        return Layout(f"lift the {target}", (arm,), target, tuple(objects), poses, colors)

    def achieved(
        self, model: mujoco.MjModel, data: mujoco.MjData, layout: Layout, openings: Mapping[str, float]
    ) -> bool:
        return lowest_extent(model, data, "object") >= LIFT_HEIGHT


class Place(Task):
    """Put one object on the marked pad, which lies within reach of the same arm.

    Out of distribution the object lies 15 mm or more beyond every place where it lies in demonstrations, as the paper moves
    its shirt (Task 1).
    """

    name = "place"

    def sample(self, draw: Draw, distractors: int) -> Layout:
        arm = _arm_for(draw)
        shape, color, pose = _object_on_table(draw, arm, UNSEEN_X_RANGE if "position" in draw.unseen else X_RANGE)
        pad_color = draw.choice("pad_color", _other_colors(color))
        pad_pose = (*draw.position("pad_position", arm, away_from=[pose], y_range=PAD_Y_RANGE), 0.0)
        objects = [SceneObject("object", shape), SceneObject("pad", "pad")]
        poses, colors = {"object": pose, "pad": pad_pose}, {"object": color, "pad": pad_color}
        _add_distractors(draw, distractors, objects, poses, colors)
        target, goal = f"{color} {shape}", f"{pad_color} pad"
        instruction = f"put the {target} on the {goal}"
        return Layout(instruction, (arm,), target, tuple(objects), poses, colors, goal)

    def achieved(
        self, model: mujoco.MjModel, data: mujoco.MjData, layout: Layout, openings: Mapping[str, float]
    ) -> bool:
        item = data.body("object")
        near = np.linalg.norm(item.xpos[:2] - data.body("pad").xpos[:2]) <= PLACE_RADIUS
        resting = lowest_extent(model, data, "object") <= 0.01 and np.linalg.norm(item.cvel[3:]) <= REST_SPEED
        released = openings[layout.arms[0]] > 2 * OBJECT_HALF_SIZE + 0.01
        return bool(near and resting and released)


class BarLift(Task):
    """Lift a bar, one end with each arm."""

    name = "bar_lift"

    def sample(self, draw: Draw, distractors: int) -> Layout:
        color = draw.choice("color", tuple(COLORS))
        x, y = float(draw.rng.uniform(-0.02, 0.07)), float(draw.rng.uniform(-0.02, 0.02))
        if "position" in draw.options:
            x, y = draw.position("position", "left")
        pose = (x, y, float(draw.rng.uniform(-0.2, 0.2)))
        target = f"{color} bar"
        instruction = f"lift the {target} with both arms"
        bar = (SceneObject("object", "bar"),)
        return Layout(instruction, SIDES, target, bar, {"object": pose}, {"object": color})

    def achieved(
        self, model: mujoco.MjModel, data: mujoco.MjData, layout: Layout, openings: Mapping[str, float]
    ) -> bool:
        return lowest_extent(model, data, "object") >= BAR_LIFT_HEIGHT


def sample_layout(task: Task, draw: Draw, distractors: int) -> Layout:
    """Draws layouts until one has room for everything.

    Raises:
        ValueError: If a hundred draws had no room, for example because the positions asked for lie too close together.
    """
    for _ in range(100):
        try:
            return task.sample(draw, distractors)
        except CrowdedTableError:
            continue
    raise ValueError(
        f"{task.name}: no room for everything on the table with options {dict(draw.options)} and {distractors} "
        "distractors; move the positions apart or ask for fewer distractors"
    )


TASKS: dict[str, Task] = {task.name: task for task in (Lift(), Place(), BarLift())}


def half_height(shape: str) -> float:
    """Height [m] of an object's center above the table at rest."""
    if shape in ITEM_SHAPES:
        return ITEM_SHAPES[shape].half_height
    return {
        "cube": OBJECT_HALF_SIZE,
        "cylinder": OBJECT_HALF_SIZE,
        "bar": BAR_HALF_SIZE[2],
        "number": NUMBER_HALF_SIZE[2],
        "pad": 0.001,
        "container": 0.001,
    }[shape]


def lowest_extent(model: mujoco.MjModel, data: mujoco.MjData, name: str) -> float:
    """Height [m] above the table of the lowest corner of an object's box (a cylinder counts as its bounding box)."""
    geom = model.geom(name)
    size = geom.size.copy()
    if geom.type[0] == mujoco.mjtGeom.mjGEOM_CYLINDER:
        size = np.array([size[0], size[0], size[1]])
    return float(data.geom(name).xpos[2] - np.abs(data.geom(name).xmat.reshape(3, 3)[2]) @ size)
