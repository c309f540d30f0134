"""Scripted pick-and-place for tasks of LIBERO's four suites, from the simulator's own object poses.

There are two kinds of grasp: a product from above at its middle or neck, a bowl at its rim. The gripper keeps the orientation
it starts with and comes down from above, so a few things are out of its reach. Two things are moved one after the other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from .environment import LiberoEnv

METERS_PER_ACTION = 0.05  # what the OSC_POSE controller makes of an action of 1
ARRIVED = 0.012  # meters
PHASES = ("reach", "descend", "grasp", "lift", "carry", "lower", "release", "retreat")
WAITS = {"grasp": 12, "release": 6}  # control steps of phases in which only the gripper moves
OPEN, CLOSED = -1.0, 1.0
STALLED_STEPS = 40  # after which a phase goes on although its goal was not reached


@dataclass(frozen=True)
class Grasp:
    """How things of a suite are grasped and put down; all in meters.

    Attributes:
        offset: From the object's origin to the grasp point (3,).
        clearance: Height above the grasp point on the way to it.
        carry_height: Height of the grasp point above the goal's origin on the way there.
        release_height: Height of the grasp point above the goal's origin when letting go.
    """

    offset: tuple[float, float, float]
    clearance: float
    carry_height: float
    release_height: float


BOWL = Grasp((0.0, 0.05, 0.02), clearance=0.12, carry_height=0.20, release_height=0.06)
PRODUCT = Grasp((0.0, 0.0, 0.0), clearance=0.12, carry_height=0.26, release_height=0.16)
GRASPS = {"libero_object": PRODUCT, "libero_spatial": BOWL}
UNSOLVED = (
    "libero_object_1",  # the hand meets the tin that stands beside the cream cheese
    "libero_spatial_4",  # the bowl is inside a drawer
    "libero_spatial_7",  # the bowl's rim on the stove is not where it is grasped elsewhere
)


@dataclass(frozen=True)
class Move:
    """One thing that goes to one place.

    Attributes:
        thing: LIBERO's name of an object.
        goal: LIBERO's name of an object, or of a region of a fixture.
        grasp: How it is grasped and put down.
    """

    thing: str
    goal: str
    grasp: Grasp


MOVES = {
    "libero_object_2": (
        Move(
            "salad_dressing_1",
            "basket_1",
            Grasp((0.0, 0.0, 0.045), clearance=0.12, carry_height=0.3, release_height=0.2),
        ),
    ),
    "libero_goal_1": (Move("akita_black_bowl_1", "flat_stove_1_cook_region", BOWL),),
    "libero_goal_4": (Move("akita_black_bowl_1", "wooden_cabinet_1_top_side", BOWL),),
    "libero_goal_6": (
        Move("cream_cheese_1", "akita_black_bowl_1", replace(PRODUCT, carry_height=0.2, release_height=0.1)),
    ),
    "libero_goal_8": (Move("akita_black_bowl_1", "plate_1", BOWL),),
    "libero_10_0": (Move("alphabet_soup_1", "basket_1", PRODUCT), Move("tomato_sauce_1", "basket_1", PRODUCT)),
    "libero_10_7": (Move("alphabet_soup_1", "basket_1", PRODUCT), Move("cream_cheese_1", "basket_1", PRODUCT)),
}
"""Of the tasks that are not one move of the suite's kind of thing."""

TASKS = tuple(
    task for task in LiberoEnv.tasks if (task.rpartition("_")[0] in GRASPS or task in MOVES) and task not in UNSOLVED
)
"""Tasks that have an expert."""

FAR = 0.03  # meters beside a thing, from which the gripper stays above what it has put down


class PickAndPlaceExpert:
    """Moves objects onto or into others.

    Args:
        env: The environment (unwrapped) to act in.
    """

    def __init__(self, env: LiberoEnv) -> None:
        self._env = env
        if env.task in MOVES:
            self._moves: tuple[Move, ...] = MOVES[env.task]
        else:
            thing, goal = env.simulator.obj_of_interest
            self._moves = (Move(thing, goal, GRASPS[env.suite]),)

    def reset(self) -> None:
        """Prepares for the episode the environment has just been reset to."""
        self._begin(0)

    def act(self) -> tuple[np.ndarray, str]:
        """Action (7,) float32 and the thought behind it."""
        here = self._env.state[:3]
        self._phase_steps += 1
        goal, gripper, thought = self._plan(here)
        while self._done(here, goal):
            if self._phase == "grasp":
                self._held_at = here - self._position(self._move.thing)
            if self._phase == PHASES[-1]:
                self._begin(self._number + 1)
            else:
                self._enter(PHASES[PHASES.index(self._phase) + 1])
            goal, gripper, thought = self._plan(here)
        move = np.clip((goal - here) / METERS_PER_ACTION, -1, 1)
        return np.array([*move, 0.0, 0.0, 0.0, gripper], dtype=np.float32), thought

    def _begin(self, number: int) -> None:
        self._number, self._move = number, self._moves[number]
        self._enter(PHASES[0])

    def _plan(self, here: np.ndarray) -> tuple[np.ndarray, float, str]:
        """Where the present phase takes the gripper (3,) [m], the gripper's action, and the phase in words."""
        grasp, item, goal = self._move.grasp, in_words(self._move.thing), in_words(self._move.goal)
        if self._phase == "grasp":
            return here, CLOSED, f"grasp the {item}"
        if self._phase in ("reach", "descend"):
            point = self._position(self._move.thing) + grasp.offset
            if self._phase == "descend":
                return point, OPEN, f"lower the gripper to the {item}"
            above = _raised(point, grasp.clearance)
            if self._number and np.linalg.norm((point - here)[:2]) > FAR:
                above[2] = max(above[2], here[2])
            return above, OPEN, f"reach above the {item}"
        point = self._position(self._move.goal) + np.array([*self._held_at[:2], 0.0])
        over = _raised(point, grasp.carry_height)
        if self._phase == "lift":
            return np.array([*here[:2], over[2]]), CLOSED, f"lift the {item}"
        if self._phase == "carry":
            return over, CLOSED, f"move the {item} over the {goal}"
        if self._phase == "lower":
            return _raised(point, grasp.release_height), CLOSED, f"lower the {item} to the {goal}"
        return over if self._phase == "retreat" else here, OPEN, f"release the {item}"

    def _done(self, here: np.ndarray, goal: np.ndarray) -> bool:
        if self._phase in WAITS:
            return self._phase_steps > WAITS[self._phase]
        if self._phase == "retreat" and self._number + 1 == len(self._moves):
            return False
        return bool(np.linalg.norm(goal - here) < ARRIVED) or self._phase_steps > STALLED_STEPS

    def _enter(self, phase: str) -> None:
        self._phase = phase
        self._phase_steps = 0

    def _position(self, name: str) -> np.ndarray:
        bodies = self._env.simulator.obj_body_id
        place = self._env.data.xpos[bodies[name]] if name in bodies else self._env.data.site(name).xpos
        position: np.ndarray = place.copy()
        return position


def in_words(name: str) -> str:
    """ "flat stove" for "flat_stove_1_cook_region"."""
    return re.split(r"_\d+", name)[0].replace("_", " ")


def _raised(point: np.ndarray, height: float) -> np.ndarray:
    raised: np.ndarray = point + np.array([0.0, 0.0, height])
    return raised


def make_libero_expert(env: LiberoEnv) -> PickAndPlaceExpert:
    """The scripted expert of the environment's task.

    Raises:
        ValueError: If the task has none.
    """
    if env.task not in TASKS:
        raise ValueError(f"task {env.task!r} has no scripted expert; those that have one are {list(TASKS)}")
    return PickAndPlaceExpert(env)
