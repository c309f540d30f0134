"""Scenes of `benchmarks.decoupling_study` in numbers instead of pictures, and the scripted experts' demonstrations.

The question is what reaches the expert through the query states, not how well it sees. So the head camera is replaced by
one small array for each thing on the table, which says where it lies and what it shows or is; the expert's image encoder
reads it as a view. The things to choose from are sorted from left to right, so that no place tells the right one. State and
action are tool point, yaw and opening of both grippers; inverse kinematics turns actions into joint targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decoupling_study_language import TARGETS
from syvla.durable_files import write_atomically
from syvla.evaluation.environments import make_environment, make_expert
from syvla.evaluation.environments.arm_kinematics import JOINTS_PER_ARM, rotation_about_z
from syvla.evaluation.environments.tabletop.scene import ARM_DIMENSION, GRIPPER_LIMITS, SIDES

VIEWS = ("first", "second", "third", "goal")
ARM_POSE = 5  # tool point [m], yaw [rad], opening [m]
DIM = ARM_POSE * len(SIDES)
SIDE = 4  # pixels; a view is an array (3, SIDE, SIDE)
FEATURES = 3 * SIDE * SIDE
CENTER, SCALE = np.array([0.03, 0.0, 0.05]), np.array([0.06, 0.10, 0.05])  # meters; places come out in about [-2, 2]
YAW_SCALE = 0.35  # radians
STATE_SCALE = np.tile([0.06, 0.10, 0.05, YAW_SCALE, 0.05], len(SIDES))
STATE_CENTER = np.tile([0.03, 0.0, 0.10, 0.0, 0.05], len(SIDES))
_GOAL, _BOX, _FIRST_TARGET = 5, 6, 7  # places of the features: goal, of which kind, one for each target


class Scene:
    """An environment after its reset, as the policy reads and drives it.

    Args:
        env: `TabletopEnv` that has been reset.
    """

    def __init__(self, env: Any) -> None:
        self.env = env.unwrapped
        layout = self.env.layout
        named = [item.name for item in layout.objects if item.name != "goal"]
        self.names = sorted(named, key=lambda name: -layout.poses[name][1])
        self.targets = [target_number(layout, self.env.task, name) for name in self.names]
        self.target = target_number(layout, self.env.task, "object")

    def state(self) -> np.ndarray:
        """Normalized, float32 (DIM,)."""
        return ((self.arms(self.env.state) - STATE_CENTER) / STATE_SCALE).astype(np.float32)

    def arms(self, joints: np.ndarray) -> np.ndarray:
        """Tool points, yaws and openings (DIM,) of all joint values (14,)."""
        parts = []
        for number, side in enumerate(SIDES):
            start = number * ARM_DIMENSION
            point, rotation = self.env.kinematics[side].forward(joints[start : start + JOINTS_PER_ARM])
            parts += [*point, half_turn(np.arctan2(rotation[1, 0], rotation[0, 0])), joints[start + JOINTS_PER_ARM]]
        return np.array(parts)

    def views(self) -> tuple[np.ndarray, np.ndarray]:
        """float32 (len(VIEWS), FEATURES), and which of them there are, bool (len(VIEWS),)."""
        found, present = np.zeros((len(VIEWS), FEATURES), np.float32), np.zeros(len(VIEWS), bool)
        for row, name in [*enumerate(self.names), (len(VIEWS) - 1, "goal")]:
            body = self.env.data.body(name)
            found[row, :3] = (body.xpos - CENTER) / SCALE
            found[row, 3] = half_turn(np.arctan2(body.xmat[3], body.xmat[0])) / YAW_SCALE
            found[row, 4] = 1.0
            present[row] = True
            if name == "goal":
                found[row, _GOAL], found[row, _BOX] = 1.0, float(self.env.task == "bagging")
            else:
                found[row, _FIRST_TARGET + self.targets[row]] = 1.0
        return found, present

    def joint_targets(self, action: np.ndarray) -> np.ndarray:
        """Joint targets (14,) of a normalized action (DIM,)."""
        wanted = action * STATE_SCALE + STATE_CENTER
        targets = np.empty(ARM_DIMENSION * len(SIDES))
        for number, side in enumerate(SIDES):
            own = slice(number * ARM_DIMENSION, number * ARM_DIMENSION + JOINTS_PER_ARM)
            pose = wanted[number * ARM_POSE : (number + 1) * ARM_POSE]
            rotation = rotation_about_z(float(pose[3]))
            targets[own] = self.env.kinematics[side].inverse(pose[:3], rotation, self.env.state[own], iterations=15)
            targets[own.stop] = np.clip(pose[4], *GRIPPER_LIMITS)
        return targets


def half_turn(angle: float) -> float:
    """The angle [rad] within a quarter turn either way, of what looks the same after half a turn."""
    return float((angle + np.pi / 2) % np.pi - np.pi / 2)


def target_number(layout: Any, task: str, name: str) -> int:
    """Number in `TARGETS` of a thing to choose."""
    if task == "calculating":
        return TARGETS.index((task, str(layout.digits[name])))
    if task == "bagging":
        return TARGETS.index((task, next(item.shape for item in layout.objects if item.name == name)))
    return TARGETS.index((task, layout.colors[name]))


def make_world(task: str, *, max_steps: int, ood: tuple[str, ...] = ()) -> Any:
    return make_environment("tabletop", task, image_size=1, max_steps=max_steps, ood=list(ood))


@dataclass(frozen=True)
class Demonstrations:
    """Every frame of successful episodes, one after the other.

    Attributes:
        states: float32 (F, DIM); actions: what the expert commanded, normalized likewise, float32 (F, DIM).
        views: float32 (F, V, FEATURES); present: bool (F, V).
        starts, lengths: First frame and number of frames of each episode, int64 (E,).
        targets: Number in `TARGETS` of each episode, int64 (E,).
        others: Target of another thing on the table, int64 (E,).
    """

    states: np.ndarray
    actions: np.ndarray
    views: np.ndarray
    present: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    targets: np.ndarray
    others: np.ndarray

    def things(self, episode: int) -> list[int]:
        """Targets on the table of an episode, from left to right."""
        start = self.starts[episode]
        return [int(row[_FIRST_TARGET:].argmax()) for row in self.views[start, self.present[start]][:-1]]

    def chunks(self, frames: np.ndarray, episodes: np.ndarray, size: int) -> np.ndarray:
        """Actions from each frame on, the last one held beyond the episode's end, float32 (B, size, DIM)."""
        last = (self.starts + self.lengths - 1)[episodes]
        return self.actions[np.minimum(frames[:, None] + np.arange(size), last[:, None])]


def record(counts: Mapping[str, int], first_seed: int, max_steps: int, disturbance: float) -> Demonstrations:
    """Demonstrations of each task, from `first_seed` on.

    Args:
        counts: Task to number of successful episodes.
        disturbance: Standard deviation [m] by which the tool points that are carried out differ from what the expert
            commanded, in every third step on average, so that it shows how to recover. What is learned is the command.
    """
    parts: list[tuple[Any, ...]] = []
    for task, count in counts.items():
        env = make_world(task, max_steps=max_steps)
        expert = make_expert(env)
        seed, found = first_seed, 0
        while found < count:
            episode = _demonstrate(env, expert, seed, disturbance)
            seed += 1
            if episode is not None:
                parts.append(episode)
                found += 1
        env.close()
    states, actions, views, present = (np.concatenate([part[k] for part in parts]) for k in range(4))
    lengths = np.array([len(part[0]) for part in parts])
    targets, others = (np.array([part[k] for part in parts]) for k in (4, 5))
    return Demonstrations(states, actions, views, present, np.cumsum(lengths) - lengths, lengths, targets, others)


def _demonstrate(env: Any, expert: Any, seed: int, disturbance: float) -> tuple[Any, ...] | None:
    env.reset(seed=seed)
    expert.reset()
    scene, rng = Scene(env), np.random.default_rng([seed, 1])
    states, actions, views, done = [], [], [], False
    info: dict[str, Any] = {}
    while not done:
        targets = expert.act()[0]
        states.append(scene.state())
        views.append(scene.views())
        actions.append(((scene.arms(targets) - STATE_CENTER) / STATE_SCALE).astype(np.float32))
        carried_out = targets
        if disturbance and rng.random() < 1 / 3:
            moved = actions[-1].copy()
            for arm in range(len(SIDES)):
                tool = slice(arm * ARM_POSE, arm * ARM_POSE + 3)
                moved[tool] += rng.normal(0, disturbance, 3) / STATE_SCALE[tool]
            carried_out = scene.joint_targets(moved)
        _, _, terminated, truncated, info = env.step(carried_out)
        done = terminated or truncated
    if not info["success"]:
        return None
    others = [target for target in scene.targets if target != scene.target]
    found, present = (np.stack([view[k] for view in views]) for k in (0, 1))
    return np.stack(states), np.stack(actions), found, present, scene.target, others[seed % len(others)]


def cached(
    path: Path, counts: Mapping[str, int], first_seed: int, max_steps: int, disturbance: float
) -> Demonstrations:
    """As `record`, from a file where there is one."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = record(counts, first_seed, max_steps, disturbance)
        write_atomically(path, lambda temporary: _save(temporary, found))
    with np.load(path, allow_pickle=False) as arrays:
        return Demonstrations(**{name: arrays[name] for name in Demonstrations.__dataclass_fields__})


def _save(path: Path, found: Demonstrations) -> None:
    with path.open("wb") as file:
        np.savez(file, **{name: getattr(found, name) for name in Demonstrations.__dataclass_fields__})
