"""Scripted experts of the tabletop: privileged controllers that solve each task and say what they are doing.

Each control step is decided from the measured state, so an expert recovers when something else moved the robot or the
object. A grasp goes "reach" (down a funnel above the object), "grasp", then on to what the task asks for; an object
that slips out sends its arm back to "reach".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from syvla.evaluation.environments.arm_kinematics import JOINTS_PER_ARM, rotation_about_z

from .choice_shapes import CONTAINER_INNER_HALF_SIZE, ITEM_SHAPES
from .choice_tasks import grip_width
from .environment import TabletopEnv
from .scene import ARM_DIMENSION, BAR_HALF_SIZE, GRIPPER_LIMITS, OBJECT_HALF_SIZE, SIDES
from .tasks import half_height

MAX_STEP = 0.04  # meters per control step that the commanded tool point leads the measured one
LIFT_STEP = 0.03
GRASP_HEIGHT = 0.027  # meters; height of the tool point at the grasp
CARRY_HEIGHT = 0.11
BAR_CARRY_HEIGHT = 0.11
BAR_REACH = 0.10  # meters from the bar's middle to the grasp
FUNNEL_HEIGHT = 0.09  # meters above the grasp while still away from it sideways
ARRIVED = 0.012  # meters
DROP_HEIGHT = 0.062  # meters; height of the tool point above the box, so that the finger tips clear its walls
REASONING_DISTANCE = 0.06  # meters from where the arm started within which its thought is the reasoning
CLOSED, OPEN = float(GRIPPER_LIMITS[0]), float(GRIPPER_LIMITS[1])


@dataclass
class Grasp:
    """Where and how wide to grip: tool point (3,) [m], yaw [rad] of the closing direction, width [m] of the object."""

    position: np.ndarray
    yaw: float
    width: float


class ArmDriver:
    """Moves one arm's tool point in straight lines, gripper pointing down."""

    def __init__(self, env: TabletopEnv, side: str) -> None:
        self._env = env
        self._kinematics = env.kinematics[side]
        start = SIDES.index(side) * ARM_DIMENSION
        self._joints = slice(start, start + JOINTS_PER_ARM)
        self._gripper = start + JOINTS_PER_ARM
        self.side = side

    @property
    def tool(self) -> np.ndarray:
        """Measured tool point (3,) [m]."""
        return self._kinematics.forward(self._env.state[self._joints])[0]

    @property
    def yaw(self) -> float:
        """Measured yaw [rad] of the closing direction."""
        rotation = self._kinematics.forward(self._env.state[self._joints])[1]
        return float(np.arctan2(-rotation[0, 1], rotation[1, 1]))

    @property
    def opening(self) -> float:
        """Measured gripper opening [m]."""
        return float(self._env.state[self._gripper])

    def go(self, targets: np.ndarray, goal: np.ndarray, yaw: float, opening: float, step: float = MAX_STEP) -> None:
        """Writes into `targets` (14,) the joints one step closer to a tool point, and the gripper opening."""
        here = self.tool
        move = goal - here
        distance = float(np.linalg.norm(move))
        position = here + move * min(1.0, step / max(distance, 1e-9))
        joints = self._env.state[self._joints]
        targets[self._joints] = self._kinematics.inverse(position, rotation_about_z(yaw), joints)
        targets[self._gripper] = opening


class TabletopExpert:
    """Base of the experts.

    Args:
        env: The environment (unwrapped) to act in.
    """

    def __init__(self, env: TabletopEnv) -> None:
        self._env = env
        self._phase = "reach"
        self._closing_steps = 0

    def reset(self) -> None:
        """Prepares for the episode the environment has just been reset to."""
        self._phase = "reach"
        self._closing_steps = 0
        self._idle = self._env.state.copy()
        self._arms = {side: ArmDriver(self._env, side) for side in self._env.layout.arms}

    def act(self) -> tuple[np.ndarray, str]:
        """Action (14,) float32 in the environment's control mode, and the thought behind it."""
        targets = self._idle.copy()
        thought = self._decide(targets)
        return self._env.encode_joint_targets(targets), thought

    def _decide(self, targets: np.ndarray) -> str:
        raise NotImplementedError

    def _object_pose(self) -> tuple[np.ndarray, float]:
        body = self._env.data.body("object")
        rotation = body.xmat.reshape(3, 3)
        return body.xpos.copy(), float(np.arctan2(rotation[1, 0], rotation[0, 0]))

    def _reach(self, arm: ArmDriver, grasp: Grasp, targets: np.ndarray) -> bool:
        """Moves towards the grasp down a funnel; True once there."""
        here = arm.tool
        sideways = float(np.linalg.norm(grasp.position[:2] - here[:2]))
        turn = abs(_wrap(grasp.yaw - arm.yaw))
        goal = grasp.position.copy()
        goal[2] += min(FUNNEL_HEIGHT, 2.5 * max(0.0, sideways - 0.01) + 0.3 * max(0.0, turn - 0.1))
        arm.go(targets, goal, grasp.yaw, OPEN)
        return bool(sideways < ARRIVED and abs(here[2] - grasp.position[2]) < ARRIVED and turn < 0.15)

    def _track_closing(self, arms: list[ArmDriver], width: float) -> bool:
        """Counts the steps of closing; True once every gripper has come to rest on something of `width`."""
        self._closing_steps += 1
        return self._closing_steps >= 2 and all(arm.opening < width + 0.008 for arm in arms)

    def _enter(self, phase: str) -> None:
        self._phase = phase
        self._closing_steps = 0


class LiftExpert(TabletopExpert):
    """Grasps the object with the layout's arm and lifts it; `PlaceExpert` goes on from there."""

    _width = 2 * OBJECT_HALF_SIZE
    _symmetry = np.pi / 2  # turn [rad] after which the object can be gripped likewise, here a cube's; 0: any turn

    def _decide(self, targets: np.ndarray) -> str:
        (arm,) = self._arms.values()
        center, yaw = self._object_pose()
        facing = yaw - self._symmetry * np.round(yaw / self._symmetry) if self._symmetry else 0.0
        grasp = Grasp(np.array([center[0], center[1], max(center[2], GRASP_HEIGHT)]), facing, self._width)
        held = np.linalg.norm(arm.tool - center) < 0.035
        if self._phase in ("grasp", "lift", "carry") and not held:
            self._enter("reach")
        return self._drive(arm, grasp, targets)

    def _drive(self, arm: ArmDriver, grasp: Grasp, targets: np.ndarray) -> str:
        target, side = self._env.layout.target, arm.side
        if self._phase == "reach" and self._reach(arm, grasp, targets):
            self._enter("grasp")
            self._hold_at = arm.tool
        if self._phase == "reach":
            return f"reach the {target} with the {side} arm"
        if self._phase == "grasp":
            arm.go(targets, self._hold_at, grasp.yaw, CLOSED)
            if self._track_closing([arm], grasp.width):
                self._enter("lift")
            else:
                return f"grasp the {target} with the {side} arm"
        return self._after_grasp(arm, grasp, targets)

    def _after_grasp(self, arm: ArmDriver, grasp: Grasp, targets: np.ndarray) -> str:
        goal = np.array([*self._hold_at[:2], CARRY_HEIGHT])
        arm.go(targets, goal, grasp.yaw, CLOSED, LIFT_STEP)
        return f"lift the {self._env.layout.target} with the {arm.side} arm"


class PlaceExpert(LiftExpert):
    """Lifts the object, carries it above the pad, lowers it and lets go."""

    _half_height = OBJECT_HALF_SIZE
    _preposition = "onto"
    _lifted = 0.07  # meters; height of the tool point from which the object is carried
    _missed = 0.03  # meters; an object that was let go further from the goal is grasped again

    def _decide(self, targets: np.ndarray) -> str:
        if self._phase in ("release", "retreat"):
            (arm,) = self._arms.values()
            return self._let_go(arm, targets)
        return super()._decide(targets)

    def _after_grasp(self, arm: ArmDriver, grasp: Grasp, targets: np.ndarray) -> str:
        words = self._env.layout
        pad, tool = self._goal, arm.tool
        center, _ = self._object_pose()
        offset = pad[:2] - center[:2]
        distance = float(np.linalg.norm(offset))
        if self._phase == "lift" and tool[2] > self._lifted:
            self._enter("carry")
        if self._phase == "lift":
            return super()._after_grasp(arm, grasp, targets)
        height = self._height_above_goal(distance)
        if distance < 0.02 and self._may_let_go(tool, center):
            self._enter("release")
            self._hold_at = tool
            return self._let_go(arm, targets)
        arm.go(targets, np.array([*(tool[:2] + offset), height]), grasp.yaw, CLOSED)
        return f"move the {words.target} {self._preposition} the {words.goal} with the {arm.side} arm"

    def _let_go(self, arm: ArmDriver, targets: np.ndarray) -> str:
        if arm.opening > self._width + 0.02:
            self._enter("retreat")
        rise = 0.10 if self._phase == "retreat" else 0.0
        arm.go(targets, self._hold_at + np.array([0.0, 0.0, rise]), arm.yaw, OPEN)
        pad, (center, _) = self._goal, self._object_pose()
        if self._phase == "retreat" and arm.tool[2] > 0.09 and np.linalg.norm(pad[:2] - center[:2]) > self._missed:
            self._enter("reach")
        return f"release the {self._env.layout.target} with the {arm.side} arm"

    @property
    def _goal(self) -> np.ndarray:
        position: np.ndarray = self._env.data.body("pad").xpos
        return position

    def _height_above_goal(self, distance: float) -> float:
        """Height [m] of the tool point while the object is `distance` [m] away from the goal sideways."""
        return GRASP_HEIGHT + min(0.06, 2.0 * max(0.0, distance - 0.01))

    def _may_let_go(self, tool: np.ndarray, center: np.ndarray) -> bool:
        """Whether tool point and object (3,) [m] are low enough above the goal."""
        return bool(center[2] < self._half_height + 0.008)


class CalculatingExpert(PlaceExpert):
    """Says the answer while its arm sets out, then puts the block that shows it on the pad."""

    _lifted = 0.09  # higher than for `place`, as other blocks may stand in the way

    def reset(self) -> None:
        super().reset()
        shape = self._env.layout.objects[0].shape
        self._width, self._half_height = grip_width(shape), half_height(shape)
        self._symmetry = _symmetry(shape)
        (arm,) = self._arms.values()
        self._start = arm.tool

    def _decide(self, targets: np.ndarray) -> str:
        thought = super()._decide(targets)
        (arm,) = self._arms.values()
        setting_out = self._phase == "reach" and np.linalg.norm(arm.tool - self._start) < REASONING_DISTANCE
        return self._env.layout.reasoning if setting_out else thought

    @property
    def _goal(self) -> np.ndarray:
        position: np.ndarray = self._env.data.body("goal").xpos
        return position

    def _height_above_goal(self, distance: float) -> float:
        return GRASP_HEIGHT + min(0.08, 3.0 * max(0.0, distance - 0.01))


class PlaceNamedExpert(CalculatingExpert):
    """Says what it was told to take while its arm sets out, then puts that object on the pad."""


class BaggingExpert(CalculatingExpert):
    """Works out the item that answers the wish and drops it into the box from above the walls."""

    _preposition = "into"
    _lifted = 0.1
    _missed = CONTAINER_INNER_HALF_SIZE

    def _height_above_goal(self, distance: float) -> float:
        return DROP_HEIGHT + min(0.055, 3.0 * max(0.0, distance - 0.01))

    def _may_let_go(self, tool: np.ndarray, center: np.ndarray) -> bool:
        return bool(tool[2] < DROP_HEIGHT + 0.008)


class BarLiftExpert(TabletopExpert):
    """Grasps a bar at both ends and lifts it level."""

    def _decide(self, targets: np.ndarray) -> str:
        target = self._env.layout.target
        center, yaw = self._object_pose()
        axis = np.array([-np.sin(yaw), np.cos(yaw), 0.0])
        height = max(center[2], GRASP_HEIGHT)
        grasps = {}
        for side, sign in (("left", 1), ("right", -1)):
            point = np.array([center[0], center[1], height]) + sign * BAR_REACH * axis
            grasps[side] = Grasp(point, yaw - np.pi / 2 * sign, 2 * BAR_HALF_SIZE[0])
        arms = list(self._arms.values())
        if self._phase != "reach" and any(np.linalg.norm(arm.tool - grasps[arm.side].position) > 0.05 for arm in arms):
            self._enter("reach")
        if self._phase == "reach":
            arrived = [self._reach(arm, grasps[arm.side], targets) for arm in arms]  # every arm moves in any case
            if not all(arrived):
                return f"reach the ends of the {target} with both arms"
            self._enter("grasp")
            self._hold_at = {arm.side: arm.tool for arm in arms}
        if self._phase == "grasp":
            for arm in arms:
                arm.go(targets, self._hold_at[arm.side], grasps[arm.side].yaw, CLOSED)
            if not self._track_closing(arms, 2 * BAR_HALF_SIZE[0]):
                return f"grasp the {target} with both arms"
            self._enter("lift")
        level = min(arm.tool[2] for arm in arms) + LIFT_STEP
        for arm in arms:
            goal = np.array([*self._hold_at[arm.side][:2], min(level, BAR_CARRY_HEIGHT)])
            arm.go(targets, goal, grasps[arm.side].yaw, CLOSED)
        return f"lift the {target} with both arms"


EXPERTS: dict[str, type[TabletopExpert]] = {
    "lift": LiftExpert,
    "place": PlaceExpert,
    "bar_lift": BarLiftExpert,
    "calculating": CalculatingExpert,
    "bagging": BaggingExpert,
    "place_named": PlaceNamedExpert,
}


def make_tabletop_expert(env: TabletopEnv) -> TabletopExpert:
    """The scripted expert of the environment's task."""
    return EXPERTS[env.task](env)


def _symmetry(shape: str) -> float:
    """Turn [rad] after which a thing can be gripped likewise; 0: any turn."""
    if shape == "cylinder" or (shape in ITEM_SHAPES and ITEM_SHAPES[shape].round):
        return 0.0
    return np.pi / 2 if shape == "cube" else np.pi


def _wrap(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)
