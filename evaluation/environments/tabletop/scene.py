"""The dual-arm tabletop as a MuJoCo model: MJCF text built from primitives, no mesh or texture files.

World frame: z = 0 is the table top, x points away from the robot, y to its left; meters, radians, kilograms, seconds.
Each arm has six hinges (base yaw, shoulder, elbow, forearm roll, wrist pitch, wrist yaw) and a parallel gripper; with
all joints at zero the upper arm stands upright, the forearm points along x and the gripper straight down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np

from syvla.evaluation.environments.arm_kinematics import JOINTS_PER_ARM

from . import choice_shapes

SIDES = ("left", "right")
CAMERAS = ("head", "left_wrist", "right_wrist")
ARM_DIMENSION = JOINTS_PER_ARM + 1  # six joints [rad] and the gripper opening [m]
ACTION_DIMENSION = len(SIDES) * ARM_DIMENSION

PHYSICS_TIMESTEP = 0.005
"""Seconds. The implicit integrator holds grasps at this step; a smaller one only costs time."""

BASE_POSITION = {"left": (-0.36, 0.20, 0.0), "right": (-0.36, -0.20, 0.0)}
SHOULDER_HEIGHT = 0.10
UPPER_ARM_LENGTH = 0.28
FOREARM_LENGTH = 0.28
TOOL_LENGTH = 0.125  # wrist center to the point between the finger pads ("tcp")

JOINT_LIMITS = np.array([[-2.0, 2.0], [-1.4, 1.7], [-1.6, 1.6], [-1.8, 1.8], [-1.9, 1.9], [-2.6, 2.6]])
GRIPPER_LIMITS = np.array([0.0, 0.10])  # opening between the pads
HOME_TCP = {"left": (-0.07, 0.17, 0.20), "right": (-0.07, -0.17, 0.20)}

COLORS = {
    "red": (0.85, 0.12, 0.10),
    "green": (0.12, 0.65, 0.18),
    "blue": (0.12, 0.28, 0.90),
    "yellow": (0.95, 0.82, 0.10),
    "purple": (0.55, 0.15, 0.70),
    "orange": (0.98, 0.48, 0.05),
}
TABLE_COLOR = (0.80, 0.78, 0.74)

OBJECT_HALF_SIZE = 0.027  # cubes and cylinders
PAD_HALF_SIZE = 0.05
BAR_HALF_SIZE = (0.016, 0.14, 0.018)
OBJECT_MASS = 0.08


@dataclass(frozen=True)
class CameraMount:
    """A camera in the frame of what carries it: place [m], point looked at [m], what is up in the picture, degrees."""

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    image_up: tuple[float, float, float]
    vertical_field_of_view: float


# The head camera stands between the arms and is framed tightly: at 32 pixels a cube is five pixels wide.
HEAD_CAMERA = CameraMount((-0.20, 0.0, 0.56), (0.03, 0.0, 0.0), (0.0, 0.0, 1.0), 38.0)
WRIST_CAMERA = CameraMount((0.085, 0.0, -0.01), (0.045, 0.0, -0.125), (1.0, 0.0, 0.0), 80.0)


@dataclass(frozen=True)
class SceneObject:
    """Something on the table.

    `shape` is "cube", "cylinder", "bar", "number" or an item of `choice_shapes.ITEM_SHAPES` (free bodies), "pad" (a flat
    mark, no contact) or "container" (an open box that stands fast).
    """

    name: str
    shape: str


def joint_names() -> tuple[str, ...]:
    """Names of the 14 action and state dimensions, in order: left joints, left gripper, right joints, right gripper."""
    return tuple(
        name
        for side in SIDES
        for name in [f"{side}_joint_{i + 1}" for i in range(JOINTS_PER_ARM)] + [f"{side}_gripper"]
    )


def action_limits() -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper joint targets, each (14,): radians for joints, meters of opening for grippers."""
    per_arm = np.concatenate([JOINT_LIMITS, GRIPPER_LIMITS[None]])
    return np.tile(per_arm[:, 0], len(SIDES)), np.tile(per_arm[:, 1], len(SIDES))


def look_at(position: Sequence[float], target: Sequence[float], image_up: Sequence[float] = (0.0, 0.0, 1.0)) -> str:
    """MJCF `xyaxes` of a camera at `position` that looks at `target`."""
    backward = np.subtract(position, target).astype(float)
    backward /= np.linalg.norm(backward)
    right = np.cross(image_up, backward)
    right /= np.linalg.norm(right)
    return _numbers([*right, *np.cross(backward, right)])


def build_scene(objects: Sequence[SceneObject]) -> mujoco.MjModel:
    """Compiles the robot, the table and `objects` (their poses are set at reset)."""
    arms = "".join(_arm(side) for side in SIDES)
    bodies = "".join(_object(item) for item in objects)
    head = _camera("head", HEAD_CAMERA)
    return mujoco.MjModel.from_xml_string(f"""
<mujoco model="tabletop">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{PHYSICS_TIMESTEP}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <default>
    <geom condim="4" friction="1.0 0.02 0.001" solref="0.01 1"/>
    <default class="joint"><joint armature="0.15" damping="0.5"/>
      <position kp="400" kv="20" forcerange="-60 60"/></default>
    <default class="finger"><joint type="slide" range="0 {GRIPPER_LIMITS[1] / 2}" armature="0.2" damping="1"/></default>
  </default>
  <worldbody>
    <geom name="table" type="box" size="0.7 0.7 0.03" pos="0.1 0 -0.03" rgba="{_numbers(TABLE_COLOR)} 1"
      contype="4" conaffinity="7"/>
    {head}{arms}{bodies}
  </worldbody>
  <tendon>{"".join(_gripper_tendon(side) for side in SIDES)}</tendon>
  <equality>{"".join(_gripper_coupling(side) for side in SIDES)}</equality>
  <actuator>{"".join(_actuators(side) for side in SIDES)}</actuator>
</mujoco>""")


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.8g}" for value in values)


def _camera(name: str, mount: CameraMount) -> str:
    axes = look_at(mount.position, mount.target, mount.image_up)
    place = f'pos="{_numbers(mount.position)}" xyaxes="{axes}"'
    return f'<camera name="{name}" {place} fovy="{mount.vertical_field_of_view}"/>'


def _arm(side: str) -> str:
    # Contact bits: left arm 1, right arm 2, table and objects 4. An arm does not collide with itself, so that its
    # closed fingers and folded links cost no contacts; joint limits keep it from folding through itself.
    contact = 'contype="1" conaffinity="6"' if side == "left" else 'contype="2" conaffinity="5"'
    link = f'{contact} rgba="0.30 0.31 0.34 1"'
    shell = f'{contact} rgba="0.93 0.93 0.95 1"'
    pad = f'{contact} rgba="0.08 0.08 0.10 1" friction="1.6 0.05 0.002" solimp="0.95 0.99 0.001"'

    def joint(index: int, axis: str) -> str:
        low, high = JOINT_LIMITS[index - 1]
        return f'<joint name="{side}_joint_{index}" class="joint" axis="{axis}" range="{low} {high}"/>'

    def finger(name: str, sign: int) -> str:
        return f"""<body name="{side}_{name}_finger" pos="0 {0.006 * sign} 0" gravcomp="1">
          <joint name="{side}_{name}_finger" class="finger" axis="0 {sign} 0"/>
          <geom name="{side}_{name}_finger" type="box" size="0.013 0.006 0.04" pos="0 0 -0.105" mass="0.04"
            {pad}/></body>"""

    wrist_camera = _camera(f"{side}_wrist", WRIST_CAMERA)
    upper, half_forearm = UPPER_ARM_LENGTH, FOREARM_LENGTH / 2
    return f"""
    <body name="{side}_base" pos="{_numbers(BASE_POSITION[side])}">
      <geom type="cylinder" size="0.055 {SHOULDER_HEIGHT / 2 - 0.01}" pos="0 0 {SHOULDER_HEIGHT / 2 - 0.01}" {link}/>
      <body name="{side}_link_1" pos="0 0 {SHOULDER_HEIGHT}" gravcomp="1">{joint(1, "0 0 1")}
        <geom type="sphere" size="0.045" mass="0.4" {shell}/>
        <body name="{side}_link_2" gravcomp="1">{joint(2, "0 1 0")}
          <geom type="capsule" fromto="0 0 0 0 0 {upper}" size="0.028" mass="0.5" {link}/>
          <body name="{side}_link_3" pos="0 0 {upper}" gravcomp="1">{joint(3, "0 1 0")}
            <geom type="capsule" fromto="0 0 0 {half_forearm} 0 0" size="0.026" mass="0.25" {shell}/>
            <body name="{side}_link_4" pos="{half_forearm} 0 0" gravcomp="1">{joint(4, "1 0 0")}
              <geom type="capsule" fromto="0 0 0 {half_forearm} 0 0" size="0.024" mass="0.2" {link}/>
              <body name="{side}_link_5" pos="{half_forearm} 0 0" gravcomp="1">{joint(5, "0 1 0")}
                <geom type="sphere" size="0.027" mass="0.1" {shell}/>
                <body name="{side}_link_6" gravcomp="1">{joint(6, "0 0 1")}
                  <geom type="box" size="0.022 0.06 0.018" pos="0 0 -0.048" mass="0.15" {shell}/>
                  <site name="{side}_tcp" pos="0 0 -{TOOL_LENGTH}" size="0.005" group="4"/>
                  {wrist_camera}{finger("inner", 1)}{finger("outer", -1)}
                </body>
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>"""


def _gripper_tendon(side: str) -> str:
    # The length of this tendon is the gripper opening, so that its actuator takes meters of opening.
    return f"""<fixed name="{side}_gripper">
      <joint joint="{side}_inner_finger" coef="1"/><joint joint="{side}_outer_finger" coef="1"/></fixed>"""


def _gripper_coupling(side: str) -> str:
    return (
        f"""<joint joint1="{side}_inner_finger" joint2="{side}_outer_finger" polycoef="0 1 0 0 0" solref="0.01 1"/>"""
    )


def _actuators(side: str) -> str:
    joints = "".join(
        f'<position name="{side}_joint_{i}" class="joint" joint="{side}_joint_{i}" ctrlrange="{low} {high}"/>'
        for i, (low, high) in enumerate(JOINT_LIMITS, start=1)
    )
    low, high = GRIPPER_LIMITS
    return f"""{joints}<position name="{side}_gripper" tendon="{side}_gripper" kp="900" kv="18" forcerange="-20 20"
      ctrlrange="{low} {high}"/>"""


def _object(item: SceneObject) -> str:
    if item.shape == "pad":
        return f"""<body name="{item.name}"><geom name="{item.name}" type="box" mass="0" contype="0" conaffinity="0"
          size="{PAD_HALF_SIZE} {PAD_HALF_SIZE} 0.001"/></body>"""
    if item.shape == "container":
        return choice_shapes.container(item.name)
    if item.shape == "number":
        return choice_shapes.number_block(item.name, OBJECT_MASS)
    if item.shape in choice_shapes.ITEM_SHAPES:
        return choice_shapes.item(item.name, item.shape, OBJECT_MASS)
    geometry = {
        "cube": f'type="box" size="{OBJECT_HALF_SIZE} {OBJECT_HALF_SIZE} {OBJECT_HALF_SIZE}"',
        "cylinder": f'type="cylinder" size="{OBJECT_HALF_SIZE} {OBJECT_HALF_SIZE}"',
        "bar": f'type="box" size="{_numbers(BAR_HALF_SIZE)}"',
    }[item.shape]
    return f"""<body name="{item.name}"><freejoint name="{item.name}"/>
      <geom name="{item.name}" {geometry} mass="{OBJECT_MASS}" contype="4" conaffinity="7"/></body>"""
