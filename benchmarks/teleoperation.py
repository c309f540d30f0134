"""Simulated teleoperation without faults, for the benchmark of the cleaning filters.

The motions follow what is known of people who teleoperate: minimum-jerk reaches with pauses between them, a tremor of 8
to 12 Hz, taps of fingers, grippers that close within a frame or in half a second, commands that arrive late or are held
because the link is slower than the recorder, rounding to the encoder's steps, and angles that wrap during a wrist turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SIDE = 32  # pixels of a picture's sides


@dataclass(frozen=True)
class Recording:
    """Episodes of one robot.

    Attributes:
        name: What robot it is.
        fps: Frames per second.
        names: Names of the dimensions, the same for state and action.
        states, actions: Per episode float32 (T, D).
        pictures: Per episode uint8 (T, SIDE, SIDE, 3).
    """

    name: str
    fps: float
    names: list[str]
    states: list[np.ndarray]
    actions: list[np.ndarray]
    pictures: list[np.ndarray]


def reaches(rng: np.random.Generator, time: np.ndarray, low: float, high: float, speed: float) -> np.ndarray:
    """Minimum-jerk reaches between random points of [low, high] with pauses; `speed` in units per second, mean."""
    value = np.empty_like(time)
    now, here = 0.0, rng.uniform(low, high)
    while now < time[-1] + 1e-9:
        pause = rng.exponential(0.4)
        there = rng.uniform(low, high)
        duration = max(0.35, abs(there - here) / (speed * rng.uniform(0.4, 1.6)))
        moving = (time >= now + pause) & (time < now + pause + duration)
        phase = (time[moving] - now - pause) / duration
        value[(time >= now) & (time < now + pause)] = here
        value[moving] = here + (there - here) * (10 * phase**3 - 15 * phase**4 + 6 * phase**5)
        now, here = now + pause + duration, there
    return value


def tremor(rng: np.random.Generator, time: np.ndarray, size: float) -> np.ndarray:
    """A tremor of 8 to 12 Hz whose size comes and goes."""
    phase = rng.uniform(0, 2 * np.pi, 2)
    envelope = 0.5 + 0.5 * np.sin(2 * np.pi * 0.3 * time + phase[0])
    return size * envelope * np.sin(2 * np.pi * rng.uniform(8, 12) * time + phase[1])


def gripper(rng: np.random.Generator, time: np.ndarray, seconds: float) -> np.ndarray:
    """Opens and closes 2 to 6 times between 0 and 1, each within `seconds`; 0 is within one frame."""
    value = np.zeros_like(time)
    for start in np.sort(rng.uniform(0.5, time[-1], rng.integers(2, 7))):
        target = 1.0 - np.round(value[-1])
        share = np.clip((time - start) / max(seconds, 1e-9), 0, 1)
        value = value + (target - value) * np.where(time >= start, share, 0)
    return value


def fingers(rng: np.random.Generator, time: np.ndarray, count: int) -> np.ndarray:
    """Joints (T, count) of a hand: grasps that all of them share, taps of single ones, glove noise.

    A tap takes 0.15 to 0.3 s: people tap 6 to 7 times a second at most.
    ."""
    grasp = 1.4 * gripper(rng, time, 0.4)[:, None] * rng.uniform(0.6, 1.0, count)
    for _ in range(rng.integers(0, 4)):
        start, length, joint = rng.uniform(0, time[-1]), rng.uniform(0.15, 0.3), rng.integers(count)
        inside = np.clip((time - start) / length, 0, 1)
        grasp[:, joint] += 0.5 * np.sin(np.pi * inside) ** 2
    grasp[:, count - 1] = 0.1  # a joint that is not used
    return grasp + rng.normal(0, 0.004, grasp.shape) * (rng.random(count) < 0.7)


def joints(rng: np.random.Generator, time: np.ndarray, count: int, speed: float = 0.8) -> np.ndarray:
    """Joint angles (T, count) of an arm, rad; the last joint of some episodes is never moved."""
    columns = [reaches(rng, time, -1.2, 1.2, speed) + tremor(rng, time, 0.004) for _ in range(count)]
    values = np.stack(columns, 1)
    if rng.random() < 0.3:
        values[:, -1] = values[0, -1]
    return np.round(values / 0.0015) * 0.0015


def _arm(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    return np.concatenate([joints(rng, time, 6), gripper(rng, time, 0.0)[:, None]], 1)


def _two_arms(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    sides = []
    for _ in range(2):
        closing = gripper(rng, time, 0.5)[:, None] + rng.normal(0, 0.002, (len(time), 1))
        sides += [joints(rng, time, 6, 1.2), closing]
    return np.concatenate(sides, 1)


def _hands(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    return np.concatenate([part for _ in range(2) for part in (joints(rng, time, 7), fingers(rng, time, 12))], 1)


def _pose(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Position (m), Euler angles (rad) around a wrist that points down, where roll wraps, and a gripper."""
    position = np.stack([reaches(rng, time, -0.3, 0.3, 0.25) for _ in range(3)], 1)
    roll = np.pi + tremor(rng, time, 0.02) + reaches(rng, time, -0.1, 0.1, 0.3)
    yaw = reaches(rng, time, -4.0, 4.0, 1.5)
    angles = np.stack([roll, reaches(rng, time, -0.4, 0.4, 0.5), yaw], 1) + rng.normal(0, 0.002, (len(time), 3))
    angles = (angles + np.pi) % (2 * np.pi) - np.pi
    return np.concatenate([position, angles, gripper(rng, time, 0.0)[:, None]], 1)


def _nudges(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Velocities (T, 6) from a joystick or keyboard, with nudges of a single frame, and a gripper."""
    steps = np.diff(np.stack([reaches(rng, time, -0.3, 0.3, 0.25) for _ in range(6)], 1), axis=0, append=np.nan)
    steps[-1] = 0
    velocity = np.clip(steps / 0.02, -1, 1)
    frames = rng.integers(1, len(time) - 1, len(time) // 15)
    velocity[frames, rng.integers(0, 6, len(frames))] = rng.choice([-1.0, 1.0], len(frames))
    return np.concatenate([velocity, gripper(rng, time, 0.0)[:, None]], 1)


_ARM = [f"joint_{i}" for i in range(6)]
_SIDE = [f"joint_{i}" for i in range(7)] + [f"finger_{i}" for i in range(12)]
ROBOTS: dict[str, tuple[float, list[str], Callable[[np.random.Generator, np.ndarray], np.ndarray]]] = {
    "one arm, gripper": (30, [*_ARM, "gripper"], _arm),
    "two arms, grippers": (50, [f"{s}_{n}" for s in ("left", "right") for n in [*_ARM, "gripper"]], _two_arms),
    "two arms, hands": (30, [f"{s}_{n}" for s in ("left", "right") for n in _SIDE], _hands),
    "arm by pose": (10, ["x", "y", "z", "roll", "pitch", "yaw", "gripper"], _pose),
    "arm by velocity": (20, ["vx", "vy", "vz", "wx", "wy", "wz", "gripper"], _nudges),
}
"""Frames per second, names and motion of each robot."""


def record(name: str, episodes: int, seed: int) -> Recording:
    """A dataset without faults: 8 to 20 seconds per episode; a third of them over a slow or a stuttering link."""
    fps, names, motion = ROBOTS[name]
    rng = np.random.default_rng(seed)
    states, actions, pictures = [], [], []
    for episode in range(episodes):
        time = np.arange(int(rng.uniform(8, 20) * fps)) / fps
        wanted = motion(rng, time)
        if episode % 3 == 1:
            wanted = wanted[_held(rng, len(time))]
        reached = np.concatenate([wanted[:1].repeat(2, 0), wanted[:-2]])  # the robot follows two frames later
        noise = rng.normal(0, 0.001, wanted.shape)
        states.append((reached + noise).astype(np.float32))
        actions.append(wanted.astype(np.float32))
        pictures.append(_pictures(rng, reached))
    return Recording(name, fps, names, states, actions, pictures)


def _held(rng: np.random.Generator, count: int) -> np.ndarray:
    """Frames at which the command is taken: every second one, or late ones followed by a step that catches up."""
    if rng.random() < 0.5:
        return np.arange(count) // 2 * 2
    late = rng.random(count) < 0.05
    return np.maximum.accumulate(np.where(late, 0, np.arange(count)))


def _pictures(rng: np.random.Generator, states: np.ndarray) -> np.ndarray:
    """A disc that follows the first two dimensions over a textured table, with the noise of a camera."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    table = 90 + 30 * np.sin(x / 3) + 20 * np.cos(y / 4)
    low, spread = states[:, :2].min(0), np.ptp(states[:, :2], axis=0) + 1e-9
    at = (states[:, :2] - low) / spread * (SIDE - 8) + 4
    disc = (x[None] - at[:, :1, None]) ** 2 + (y[None] - at[:, 1:, None]) ** 2 < 16
    gray = np.where(disc, 220.0, table[None])[..., None] + rng.normal(0, 1.5, (len(states), SIDE, SIDE, 3))
    return gray.clip(0, 255).astype(np.uint8)
