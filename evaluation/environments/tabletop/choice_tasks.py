"""Tasks in which only the instruction tells what to handle: the paper's two (section 4.1), and one without reasoning.

- `calculating` (Task 2, Calculating and Wrapping; a pad stands in for the towel, as cloth is out of reach here): of two
  or three blocks choose the one that shows the answer of a sum or difference and put it on the pad.
- `bagging` (Task 3, Bagging Snacks; an open box stands in for the cloth bag): of two or three items choose the one that
  answers a vague wish and put it into the box.
- `place_named` (ours): of two objects of different colors put the named one on the pad, which lies between both arms, so
  that nothing but the name tells them apart.

Out of distribution, any of three aspects is unseen, by itself or together with others (`UNSEEN_ASPECTS`): the
expression (arithmetic problem or wish), the phrasing around it, and the position, a row 15 mm or more beyond every place
where the things to choose from lie in demonstrations (the paper moves its shirt, Task 1; here all can). A name has no
unseen expression.

Success, held for `HOLD_STEPS` control steps: the right thing lies at its goal, slower than `REST_SPEED`, and the gripper
nearest to it is open wider than the thing. A wrong thing that lies there likewise is a mistake and ends the episode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import mujoco
import numpy as np

from . import arithmetic_instructions, bagging_catalog
from .choice_shapes import CONTAINER_HEIGHT, CONTAINER_INNER_HALF_SIZE, ITEM_SHAPES, NUMBER_HALF_SIZE
from .scene import COLORS, OBJECT_HALF_SIZE, SIDES, SceneObject
from .tasks import PLACE_RADIUS, REST_SPEED, SHAPES, Draw, Layout, Place, Task, lowest_extent

T = TypeVar("T")

UNSEEN_ASPECTS = ("expression", "phrasing", "position")
SEEN_ROW = (0.03, 0.07)  # meters in x; where the things to choose from lie
UNSEEN_ROW = (0.085, 0.115)
ROW_HALF_WIDTH = 0.125  # meters in y
GOAL_X_RANGE = (-0.09, -0.06)  # meters; pad and box stand nearer, within reach of both arms
GOAL_Y_RANGE = (-0.03, 0.03)

SEEN_NAMINGS = ("put the {} on the pad", "place the {} onto the pad", "bring the {} to the pad")
UNSEEN_NAMINGS = ("the {} belongs on the pad", "move the {} over to the pad", "the pad is for the {}")


class ChoiceTask(Task):
    """Base: one right thing ("object") among two or three, and a goal ("goal") to put it at."""

    mistake_reason: str

    def arrange(self, draw: Draw, count: int) -> tuple[list[tuple[float, float, float]], tuple[float, float, float]]:
        """Poses of `count` things in a row, exchangeable so that none tells the right one, and of the goal."""
        if draw.options:
            raise ValueError(f"options: task {self.name!r} takes none, got {sorted(draw.options)}")
        goal = (*draw.position("goal", "left", x_range=GOAL_X_RANGE, y_range=GOAL_Y_RANGE), 0.0)
        row = UNSEEN_ROW if "position" in draw.unseen else SEEN_ROW
        width = (-ROW_HALF_WIDTH, ROW_HALF_WIDTH)
        poses: list[tuple[float, float, float]] = []
        for _ in range(count):
            place = draw.position("candidate", "left", away_from=[goal, *poses], x_range=row, y_range=width)
            poses.append((*place, draw.yaw()))
        return [poses[int(i)] for i in draw.rng.permutation(count)], goal

    def achieved(
        self, model: mujoco.MjModel, data: mujoco.MjData, layout: Layout, openings: Mapping[str, float]
    ) -> bool:
        return self._put_down(model, data, layout.objects[0], openings)

    def mistake(
        self, model: mujoco.MjModel, data: mujoco.MjData, layout: Layout, openings: Mapping[str, float]
    ) -> str | None:
        others = [item for item in layout.objects if item.name.startswith("other")]
        return self.mistake_reason if any(self._put_down(model, data, item, openings) for item in others) else None

    def _put_down(
        self, model: mujoco.MjModel, data: mujoco.MjData, item: SceneObject, openings: Mapping[str, float]
    ) -> bool:
        """Whether an item lies at the goal and has been let go."""
        body = data.body(item.name)
        if not self.at_goal(model, data, item.name) or np.linalg.norm(body.cvel[3:]) > REST_SPEED:
            return False
        nearest = min(SIDES, key=lambda side: float(np.linalg.norm(data.site(f"{side}_tcp").xpos - body.xpos)))
        return openings[nearest] > grip_width(item.shape) + 0.008

    def at_goal(self, model: mujoco.MjModel, data: mujoco.MjData, name: str) -> bool:
        """Whether a body is where things are to be put."""
        raise NotImplementedError


class Calculating(ChoiceTask):
    """Put the block that shows the answer on the pad."""

    name = "calculating"
    mistake_reason = "wrong block on the pad"

    def sample(self, draw: Draw, distractors: int) -> Layout:
        rng = draw.rng
        answer = int(rng.integers(10))
        problem = _one_of(rng, arithmetic_instructions.problems(answer, unseen="expression" in draw.unseen))
        question = _one_of(rng, arithmetic_instructions.questions(problem, unseen="phrasing" in draw.unseen))
        wrong = rng.permutation([digit for digit in range(10) if digit != answer])[: 1 + int(rng.integers(2))]
        pad_color = _one_of(rng, list(COLORS))
        names = _candidate_names(1 + len(wrong))
        poses, goal = self.arrange(draw, len(names))
        return Layout(
            instruction=question,
            arms=(_nearer_arm(poses[0]),),
            target=f"{answer} block",
            objects=(*(SceneObject(name, "number") for name in names), SceneObject("goal", "pad")),
            poses={**dict(zip(names, poses, strict=True)), "goal": goal},
            colors={"goal": pad_color},
            goal="pad",
            digits=dict(zip(names, (answer, *map(int, wrong)), strict=True)),
            reasoning=f"{problem.reasoning}; reach the {answer} block",
        )

    def at_goal(self, model: mujoco.MjModel, data: mujoco.MjData, name: str) -> bool:
        return _on_pad(model, data, name)


class PlaceNamed(ChoiceTask):
    """Put the named one of two objects on the pad."""

    name = "place_named"
    mistake_reason = "wrong object on the pad"

    def sample(self, draw: Draw, distractors: int) -> Layout:
        rng = draw.rng
        colors = [list(COLORS)[int(i)] for i in rng.permutation(len(COLORS))][:3]
        shapes = [_one_of(rng, draw.shapes) for _ in range(2)]
        naming = _one_of(rng, UNSEEN_NAMINGS if "phrasing" in draw.unseen else SEEN_NAMINGS)
        names = _candidate_names(2)
        poses, goal = self.arrange(draw, 2)
        things = [SceneObject(name, shape) for name, shape in zip(names, shapes, strict=True)]
        target = f"{colors[0]} {shapes[0]}"
        return Layout(
            instruction=naming.format(target),
            arms=(_nearer_arm(poses[0]),),
            target=target,
            objects=(*things, SceneObject("goal", "pad")),
            poses={**dict(zip(names, poses, strict=True)), "goal": goal},
            colors=dict(zip((*names, "goal"), colors, strict=True)),
            goal="pad",
            reasoning=f"reach the {target}",
        )

    def at_goal(self, model: mujoco.MjModel, data: mujoco.MjData, name: str) -> bool:
        return _on_pad(model, data, name)


class Bagging(ChoiceTask):
    """Put the item that answers the wish into the box."""

    name = "bagging"
    mistake_reason = "wrong item in the box"

    def sample(self, draw: Draw, distractors: int) -> Layout:
        rng = draw.rng
        items = [bagging_catalog.CATALOG[int(i)] for i in rng.permutation(len(bagging_catalog.CATALOG))]
        items = items[: 2 + int(rng.integers(2))]
        right = items[0]
        requests = bagging_catalog.requests(
            right, unseen_wish="expression" in draw.unseen, unseen_phrasing="phrasing" in draw.unseen
        )
        request = _one_of(rng, requests)
        names = _candidate_names(len(items))
        poses, goal = self.arrange(draw, len(items))
        things = [SceneObject(name, item.name) for name, item in zip(names, items, strict=True)]
        return Layout(
            instruction=request,
            arms=(_nearer_arm(poses[0]),),
            target=right.name,
            objects=(*things, SceneObject("goal", "container")),
            poses={**dict(zip(names, poses, strict=True)), "goal": goal},
            colors={},
            goal="box",
            reasoning=f"{right.purpose}: reach the {right.name}",
        )

    def at_goal(self, model: mujoco.MjModel, data: mujoco.MjData, name: str) -> bool:
        offset = data.body(name).xpos - data.body("goal").xpos
        inside = np.abs(offset[:2]).max() < CONTAINER_INNER_HALF_SIZE
        return bool(inside and offset[2] < CONTAINER_HEIGHT + 0.005)


CHOICE_TASKS: dict[str, Task] = {task.name: task for task in (Calculating(), Bagging(), PlaceNamed())}

ASPECTS_OF = {
    **dict.fromkeys(CHOICE_TASKS, UNSEEN_ASPECTS),
    PlaceNamed.name: ("phrasing", "position"),
    Place.name: ("position",),
}
"""By task, what can be out of distribution."""


def unseen_aspects(task: str, split: str | None, ood: Sequence[str] | None) -> tuple[str, ...]:
    """Aspects of the instruction and the scene to draw from what demonstrations do not show.

    Args:
        task: Name of the task.
        split: "in_domain" (None means this), or "ood" for all aspects of the task, see `ASPECTS_OF`.
        ood: Only these aspects; implies "ood".

    Raises:
        ValueError: If a name is unknown, the two contradict each other, or the task has no such split.
    """
    if split not in (None, "in_domain", "ood"):
        raise ValueError(f"split: expected 'in_domain' or 'ood', got {split!r}")
    if isinstance(ood, str) or not set(ood or ()) <= set(UNSEEN_ASPECTS):
        raise ValueError(f"ood: expected a list out of {list(UNSEEN_ASPECTS)}, got {ood!r}")
    if split == "in_domain" and ood:
        raise ValueError(f"split='in_domain' has no unseen aspects, got ood={list(ood)}; drop one of them")
    unseen = tuple(aspect for aspect in UNSEEN_ASPECTS if aspect in (ood or ())) if ood is not None else ()
    if split == "ood" and not unseen:
        unseen = ASPECTS_OF.get(task, UNSEEN_ASPECTS)
    if unseen and task not in ASPECTS_OF:
        raise ValueError(f"task {task!r} has no out-of-distribution split; tasks with one are {list(ASPECTS_OF)}")
    if never := set(unseen) - set(ASPECTS_OF.get(task, ())):
        raise ValueError(f"ood: of task {task!r} only {list(ASPECTS_OF[task])} can be unseen, got {sorted(never)}")
    return unseen


def grip_width(shape: str) -> float:
    """Size [m] of a thing to choose in the direction in which the gripper closes."""
    if shape in SHAPES:
        return 2 * OBJECT_HALF_SIZE
    return 2 * NUMBER_HALF_SIZE[1] if shape == "number" else ITEM_SHAPES[shape].grip_width


def _on_pad(model: mujoco.MjModel, data: mujoco.MjData, name: str) -> bool:
    near = np.linalg.norm(data.body(name).xpos[:2] - data.body("goal").xpos[:2]) <= PLACE_RADIUS
    return bool(near and lowest_extent(model, data, name) <= 0.01)


def _candidate_names(count: int) -> list[str]:
    return ["object", *(f"other_{index}" for index in range(1, count))]


def _nearer_arm(pose: tuple[float, float, float]) -> str:
    return "left" if pose[1] >= 0 else "right"


def _one_of(rng: np.random.Generator, values: Sequence[T]) -> T:
    # One number from the generator whatever the length, so that an unseen aspect leaves the rest of the draw as it is.
    return values[int(rng.random() * len(values))]
