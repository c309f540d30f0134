"""Scripted pick-and-place for 16 tasks of LIBERO's suites object and spatial, from the simulator's own object poses.

Each suite asks for one kind of grasp: a product from above at its middle, a bowl at its rim. The gripper keeps the
orientation it starts with and comes down from above, so a few things are out of its reach.
"""

from __future__ import annotations

from dataclasses import dataclass

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


GRASPS = {
    "libero_object": Grasp((0.0, 0.0, 0.0), clearance=0.12, carry_height=0.26, release_height=0.16),
    "libero_spatial": Grasp((0.0, 0.05, 0.02), clearance=0.12, carry_height=0.20, release_height=0.06),
}
UNSOLVED = (
    "libero_object_1",  # the cream cheese lies with its long side across the gripper
    "libero_object_2",  # so does the bottle of salad dressing
    "libero_spatial_4",  # the bowl is inside a drawer
    "libero_spatial_7",  # the bowl's rim on the stove is not where it is grasped elsewhere
)
TASKS = tuple(task for task in LiberoEnv.tasks if task.rpartition("_")[0] in GRASPS and task not in UNSOLVED)
"""Tasks that have an expert."""


class PickAndPlaceExpert:
    """Moves one object onto or into another.

    Args:
        env: The environment (unwrapped) to act in.
    """

    def __init__(self, env: LiberoEnv) -> None:
        self._env = env
        self._grasp = GRASPS[env.suite]
        self._object, self._goal = env.simulator.obj_of_interest
        self._names = {name: name.rpartition("_")[0].replace("_", " ") for name in (self._object, self._goal)}

    def reset(self) -> None:
        """Prepares for the episode the environment has just been reset to."""
        self._enter(PHASES[0])

    def act(self) -> tuple[np.ndarray, str]:
        """Action (7,) float32 and the thought behind it."""
        here = self._env.state[:3]
        self._phase_steps += 1
        goal, gripper, thought = self._plan(here)
        while self._done(here, goal):
            if self._phase == "grasp":
                self._held_at = here - self._position(self._object)
            self._enter(PHASES[PHASES.index(self._phase) + 1])
            goal, gripper, thought = self._plan(here)
        move = np.clip((goal - here) / METERS_PER_ACTION, -1, 1)
        return np.array([*move, 0.0, 0.0, 0.0, gripper], dtype=np.float32), thought

    def _plan(self, here: np.ndarray) -> tuple[np.ndarray, float, str]:
        """Where the present phase takes the gripper (3,) [m], the gripper's action, and the phase in words."""
        item, goal = self._names[self._object], self._names[self._goal]
        if self._phase == "grasp":
            return here, CLOSED, f"grasp the {item}"
        if self._phase in ("reach", "descend"):
            point = self._position(self._object) + self._grasp.offset
            if self._phase == "descend":
                return point, OPEN, f"lower the gripper to the {item}"
            return _raised(point, self._grasp.clearance), OPEN, f"reach above the {item}"
        point = self._position(self._goal) + np.array([*self._held_at[:2], 0.0])
        over = _raised(point, self._grasp.carry_height)
        if self._phase == "lift":
            return np.array([*here[:2], over[2]]), CLOSED, f"lift the {item}"
        if self._phase == "carry":
            return over, CLOSED, f"move the {item} over the {goal}"
        if self._phase == "lower":
            return _raised(point, self._grasp.release_height), CLOSED, f"lower the {item} to the {goal}"
        return over if self._phase == "retreat" else here, OPEN, f"release the {item}"

    def _done(self, here: np.ndarray, goal: np.ndarray) -> bool:
        if self._phase in WAITS:
            return self._phase_steps > WAITS[self._phase]
        arrived = bool(np.linalg.norm(goal - here) < ARRIVED)
        return self._phase != "retreat" and (arrived or self._phase_steps > STALLED_STEPS)

    def _enter(self, phase: str) -> None:
        self._phase = phase
        self._phase_steps = 0

    def _position(self, name: str) -> np.ndarray:
        position: np.ndarray = self._env.data.xpos[self._env.simulator.obj_body_id[name]].copy()
        return position


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
