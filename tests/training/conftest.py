"""A small recorded dataset and an untrained tiny checkpoint."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_syvla import SyVLAConfig, SyVLAModel
from processing import RobotDatasetWriter, build_tiny_processor

VIEWS = ("head", "left_wrist", "right_wrist")


@pytest.fixture(scope="session")
def robot_dataset_path(tmp_path_factory):
    """Three episodes of 12 frames, 14 joints, 32-pixel images; two with thoughts."""
    root = tmp_path_factory.mktemp("data") / "robot"
    rng = np.random.default_rng(0)
    features = {f"observation.images.{v}": {"dtype": "image", "shape": [32, 32, 3], "names": None} for v in VIEWS}
    for key in ("observation.state", "action"):
        features[key] = {"dtype": "float32", "shape": [14], "names": [f"joint_{i}" for i in range(14)]}
    for key, feature in features.items():
        if "images" in key:
            feature["names"] = ["height", "width", "channels"]
    with RobotDatasetWriter(root, fps=10, features=features, use_videos=False, thoughts=True) as writer:
        for episode in range(3):
            for step in range(12):
                frame = {key: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for key in features if "images" in key}
                frame["observation.state"] = rng.normal(size=14).astype(np.float32)
                frame["action"] = frame["observation.state"] + step
                writer.add_frame(frame, "lift the red cube", "reach the red cube" if episode else None)
            writer.save_episode()
    return root


@pytest.fixture(scope="session")
def multimodal_path(tmp_path_factory):
    """Eight chats about one image each."""
    folder = tmp_path_factory.mktemp("chat")
    lines = []
    for i in range(8):
        Image.new("RGB", (32, 32), (30 * i, 0, 0)).save(folder / f"{i}.png")
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many cubes?"}]}
        lines.append(json.dumps({"messages": [user, {"role": "assistant", "content": "two"}], "images": [f"{i}.png"]}))
    path = folder / "chats.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def base_checkpoint(tmp_path_factory):
    """Tiny model with random weights; its processor knows no embodiment yet."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = SyVLAConfig.tiny(embodiments={})
    SyVLAModel(config).save_pretrained(folder)
    build_tiny_processor(config).save_pretrained(folder)
    return folder
