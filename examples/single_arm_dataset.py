"""Records a dataset of one's own robot, here a simulated arm with two cameras at 30 Hz. Replace `demonstrations` by yours.

    python examples/single_arm_dataset.py --episodes 40 --output outputs/single_arm

Every frame holds the images, the state, and the action that was commanded then; an episode has one instruction.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from syvla.evaluation.environments import make_environment, make_expert
from syvla.evaluation.environments.demonstration import Demonstration, demonstrate
from syvla.processing import RobotDatasetWriter

HZ = 30
SIDE, JOINTS = "left", 7
CAMERAS = {"front": "head", "wrist": f"{SIDE}_wrist"}  # camera of the dataset to camera of the simulator
NAMES = ["shoulder_pan", "shoulder_lift", "elbow", "forearm", "wrist_flex", "wrist_roll", "gripper"]


def demonstrations(image_size: int) -> Iterator[Demonstration]:
    """Successful episodes in which the left arm lifts a cube."""
    env = make_environment("tabletop", "lift", image_size=image_size, control_hz=HZ, max_steps=8 * HZ)
    expert = make_expert(env)
    seed = 0
    while True:
        env.reset(seed=seed)
        if list(env.unwrapped.layout.arms) == [SIDE] and (attempt := demonstrate(env, expert, seed=seed)).success:
            yield attempt
        seed += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--image-size", type=int, default=64, help="side of the pictures in pixels")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    size = [options.image_size, options.image_size, 3]
    features: dict[str, dict[str, Any]] = {
        f"observation.images.{camera}": {"dtype": "video", "shape": size, "names": ["height", "width", "channels"]}
        for camera in CAMERAS
    }
    for key in ("observation.state", "action"):
        features[key] = {"dtype": "float32", "shape": [JOINTS], "names": NAMES}
    source = demonstrations(options.image_size)
    with RobotDatasetWriter(
        options.output, fps=HZ, features=features, robot_type="single_arm", use_videos=True
    ) as writer:
        frames = 0
        for _ in range(options.episodes):
            attempt = next(source)
            for step in range(len(attempt.actions)):
                frame = {f"observation.images.{name}": attempt.images[camera][step] for name, camera in CAMERAS.items()}
                frame["observation.state"] = attempt.states[step][:JOINTS]
                frame["action"] = attempt.actions[step][:JOINTS]
                writer.add_frame(frame, task=attempt.instruction)
                frames += 1
            writer.save_episode()
    print(json.dumps({"dataset": str(options.output), "episodes": options.episodes, "frames": frames, "fps": HZ}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
