"""A small arm's recordings and an untrained checkpoint that knows the arm."""

import numpy as np
import pytest
import torch

from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
from syvla.processing import RobotDataset, RobotDatasetWriter
from syvla.processing.tiny_processor import build_tiny_processor

LENGTHS = (6, 5, 7, 6, 8)
CAMERA = "observation.images.head"
FEATURES = {
    CAMERA: {"dtype": "image", "shape": [16, 16, 3], "names": ["height", "width", "channels"]},
    "observation.state": {"dtype": "float32", "shape": [3], "names": ["x", "y", "gripper"]},
    "action": {"dtype": "float32", "shape": [2], "names": ["gripper", "x"]},
}


@pytest.fixture(scope="session")
def arm_data(tmp_path_factory):
    """Folder of five episodes at 10 Hz; the last two have another instruction."""
    rng = np.random.default_rng(3)
    root = tmp_path_factory.mktemp("openloop") / "arm"
    with RobotDatasetWriter(
        root, fps=10, features=FEATURES, robot_type="arm", use_videos=False, thoughts=True
    ) as writer:
        for episode, length in enumerate(LENGTHS):
            for step in range(length):
                frame = {
                    CAMERA: rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
                    "observation.state": rng.normal(size=3).astype(np.float32),
                    "action": rng.normal(size=2).astype(np.float32),
                }
                writer.add_frame(frame, "push" if episode < 3 else "pull", thought="near" if step < 3 else "far")
            writer.save_episode()
    return root


@pytest.fixture(scope="session")
def arm_checkpoint(arm_data, tmp_path_factory):
    """Folder of a tiny policy with random weights for the arm; chunks of 4."""
    torch.manual_seed(0)
    config = SyVLAConfig.tiny(embodiments={"arm": {"state_dim": 3, "action_dim": 2}}, chunk_size=4)
    processor = build_tiny_processor(config)
    data = RobotDataset(arm_data, embodiment="arm", chunk_size=4)
    processor.set_embodiment(
        "arm", data.statistics(), state_names=data.state_names, action_names=data.action_names, control_hz=10,
        cameras={"center": CAMERA}, action_units=["m", "rad"],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("openloop_checkpoint") / "policy"
    SyVLAModel(config).save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture
def open_arm(arm_data):
    def read(episodes=None, **options):
        return RobotDataset(arm_data, embodiment="arm", chunk_size=4, episodes=episodes, **options)

    return read
