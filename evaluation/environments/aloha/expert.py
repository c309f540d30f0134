"""Scripted experts of the ALOHA tasks: straight lines of the two tool points, turned into joint targets.

Each step moves the commanded tool poses a bounded way towards the present phase's goals, which follow the measured
poses of the objects; inverse kinematics gives the joints.
"""

from __future__ import annotations

import mujoco
import numpy as np

from syvla.evaluation.environments.arm_kinematics import KinematicChain, rotation_matrix, rotation_vector

from .environment import ARM_DIMENSION, ARM_JOINTS, SIDES, AlohaEnv

TOOL = (0.13, 0.0, 0.0)  # meters in the gripper's frame; between the finger pads, 2 cm before their tips
MAX_STEP = 0.006  # meters per control step
MAX_TURN = 0.04  # radians per control step
ARRIVED = 0.002  # meters between the commanded pose and the goal
CLOSING_STEPS = 20
GRASP_HEIGHT = 0.025  # meters above the table
HOVER_HEIGHT = 0.12
SETTLE_STEPS = 8  # after a line, for the arm to catch up with the command
OPEN, CLOSED = 1.0, 0.0
PITCH = 1.05  # radians below the horizontal at which the arms grasp
NAMES = {"box": "red cube", "peg": "red peg", "socket": "blue socket"}
MEETING = np.array([0.0, 0.5, 0.25])  # meters; where the cube changes hands
INSERTION = np.array([0.0, 0.5, 0.15])  # meters; where peg and socket meet
APART = 0.09  # meters from there to each center before the insertion


def facing(side: str, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """Rotation (3, 3) of a gripper that points away from its base, then down by `pitch`, turned by `roll` [rad]."""
    base = np.diag([1.0, 1.0, 1.0]) if side == "left" else np.diag([-1.0, -1.0, 1.0])
    rotation: np.ndarray = (
        base @ rotation_matrix(np.array([0.0, pitch, 0.0])) @ rotation_matrix(np.array([roll, 0.0, 0.0]))
    )
    return rotation


class AlohaArm(KinematicChain):
    """One ViperX arm and the tool pose it is commanded to.

    Args:
        env: The environment.
        side: "left" or "right".
    """

    def __init__(self, env: AlohaEnv, side: str) -> None:
        super().__init__(env.model, [f"vx300s_{side}/{joint}" for joint in ARM_JOINTS])
        self.side = side
        self._env = env
        self._body = env.model.body(f"vx300s_{side}/gripper_link").id
        self._slots = slice(SIDES.index(side) * ARM_DIMENSION, SIDES.index(side) * ARM_DIMENSION + len(ARM_JOINTS))

    def _tool_pose(self) -> tuple[np.ndarray, np.ndarray]:
        rotation = self._data.xmat[self._body].reshape(3, 3).copy()
        return self._data.xpos[self._body] + rotation @ TOOL, rotation

    def _update_jacobian(self) -> None:
        point = self._tool_pose()[0]
        mujoco.mj_jac(self._model, self._data, self._jacobian[:3], self._jacobian[3:], point, self._body)

    def reset(self) -> None:
        """Commands the present pose, gripper closed."""
        self.joints = self._env.state[self._slots]
        self.position, self.rotation = self.forward(self.joints)
        self.opening = CLOSED

    def measured(self) -> np.ndarray:
        """Measured tool point (3,) [m]."""
        return self.forward(self._env.state[self._slots])[0]

    def go(self, position: np.ndarray, rotation: np.ndarray) -> bool:
        """Moves the commanded pose one step towards a goal; True once it is there."""
        way, turn = position - self.position, rotation_vector(rotation @ self.rotation.T)
        distance, angle = float(np.linalg.norm(way)), float(np.linalg.norm(turn))
        share = min(1.0, MAX_STEP / max(distance, 1e-9), MAX_TURN / max(angle, 1e-9))
        self.position = self.position + share * way
        self.rotation = rotation_matrix(share * turn) @ self.rotation
        self.joints = self.inverse(self.position, self.rotation, self.joints)
        return distance < ARRIVED and angle < 0.02


class AlohaExpert:
    """Base of the experts.

    Args:
        env: The environment (unwrapped) to act in.
    """

    def __init__(self, env: AlohaEnv) -> None:
        self._env = env
        self._arms = {side: AlohaArm(env, side) for side in SIDES}

    def reset(self) -> None:
        """Prepares for the episode the environment has just been reset to."""
        for arm in self._arms.values():
            arm.reset()
        self._start: dict[str, np.ndarray] = {}
        self._enter("reach")

    def act(self) -> tuple[np.ndarray, str]:
        """Action (14,) float32 and the thought behind it."""
        thought = self._decide()
        targets = [value for side in SIDES for value in (*self._arms[side].joints, self._arms[side].opening)]
        low, high = self._env.action_space.low, self._env.action_space.high
        return np.clip(np.array(targets, dtype=np.float32), low, high), thought

    def _decide(self) -> str:
        raise NotImplementedError

    def _object(self, name: str) -> np.ndarray:
        position: np.ndarray = self._env.data.body(name).xpos.copy()
        return position

    def _enter(self, phase: str) -> None:
        self._phase = phase
        self._waited = 0

    def _then(self, arrived: bool, wait: int, phase: str) -> None:
        """Goes on to `phase` once the goal has been commanded for `wait` steps."""
        self._waited += arrived
        if self._waited > wait:
            self._enter(phase)

    def _pick(self, arms: dict[str, str], pitch: float, following: str) -> str:
        """Reach, lower and grasp with each of `arms` (side to body); leads to the phase `following`."""
        words = " and ".join(f"the {NAMES[body]} with the {side} arm" for side, body in arms.items())
        arrived = True
        for side, body in arms.items():
            arm = self._arms[side]
            height = HOVER_HEIGHT if self._phase == "reach" else GRASP_HEIGHT
            goal = self._start[body] if self._phase == "grasp" else np.array([*self._object(body)[:2], height])
            self._start[body] = goal
            arm.opening = CLOSED if self._phase == "grasp" else OPEN
            arrived &= arm.go(goal, facing(side, pitch))
        if self._phase == "reach":
            self._then(arrived, SETTLE_STEPS, "lower")
            return f"reach {words}"
        if self._phase == "lower":
            self._then(arrived, SETTLE_STEPS, "grasp")
            return f"reach {words}"
        self._then(True, CLOSING_STEPS, following)
        return f"grasp {words}"


class TransferExpert(AlohaExpert):
    """Picks the cube up with the right arm and holds it out; the left gripper, turned on its side, takes it."""

    def _decide(self) -> str:
        if self._phase in ("reach", "lower", "grasp"):
            return self._pick({"right": "box"}, PITCH, "lift")
        left, right = self._arms["left"], self._arms["right"]
        before = MEETING - np.array([0.1, 0.0, 0.0])
        if self._phase == "lift":
            arrived = right.go(MEETING, facing("right", PITCH))
            left.opening = OPEN
            arrived &= left.go(before, facing("left", roll=np.pi / 2))
            self._then(arrived, SETTLE_STEPS, "approach")
            return "lift the red cube with the right arm and bring the left arm next to it"
        if self._phase == "approach":
            self._then(left.go(self._object("box"), facing("left", roll=np.pi / 2)), SETTLE_STEPS, "take")
            return "reach the red cube with the left arm"
        left.opening = CLOSED
        self._then(True, CLOSING_STEPS, "let go")
        if self._phase == "let go":
            right.opening = OPEN
        return "take the red cube with the left arm"


class InsertionExpert(AlohaExpert):
    """Picks up peg and socket, lines them up by their measured poses and pushes them together."""

    def _decide(self) -> str:
        if self._phase in ("reach", "lower", "grasp"):
            return self._pick({"left": "socket", "right": "peg"}, PITCH, "lift")
        apart = APART if self._phase == "lift" else 0.0
        arrived = True
        for side, body, sign in (("left", "socket", -1.0), ("right", "peg", 1.0)):
            arm = self._arms[side]
            held = self._object(body) - arm.measured()
            goal = INSERTION + np.array([sign * apart, 0.0, 0.0])
            arrived &= arm.go(goal - held, facing(side, PITCH))
        if self._phase == "lift":
            self._then(arrived, SETTLE_STEPS, "insert")
            return "lift the red peg and the blue socket and line them up"
        return "insert the red peg into the blue socket"


EXPERTS: dict[str, type[AlohaExpert]] = {"transfer_cube": TransferExpert, "insertion": InsertionExpert}


def make_aloha_expert(env: AlohaEnv) -> AlohaExpert:
    """The scripted expert of the environment's task."""
    return EXPERTS[env.task](env)
