"""A recorded dataset, a SyVLA checkpoint and a saved LeRobot policy that the tests share."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from lerobot_usage import make, policy_config

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three demonstrations with thoughts, pictures in the parquet files."""
    from syvla.evaluation.demonstration_recording import record_demonstrations

    root = tmp_path_factory.mktemp("recording") / "tabletop"
    record_demonstrations(root, episodes=3, progress=False)
    return root


@pytest.fixture(scope="session")
def video_recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from syvla.evaluation.demonstration_recording import record_demonstrations

    root = tmp_path_factory.mktemp("recording") / "tabletop_videos"
    record_demonstrations(root, episodes=3, progress=False, use_videos=True, image_size=64)
    return root


@pytest.fixture(scope="session")
def syvla_checkpoint(tmp_path_factory: pytest.TempPathFactory, recording: Path) -> Path:
    """A SyVLA checkpoint, random weights, that knows the tabletop and one more robot."""
    from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
    from syvla.processing import RobotDataset, build_tiny_processor

    folder = tmp_path_factory.mktemp("syvla") / "checkpoint"
    other = {"state_dim": 6, "action_dim": 7}
    config = SyVLAConfig.tiny(embodiments={"other_robot": other, "tabletop": {"state_dim": 14, "action_dim": 14}})
    torch.manual_seed(0)
    SyVLAModel(config).save_pretrained(folder)
    processor = build_tiny_processor(config)
    statistics = {
        kind: {"mean": [0.0] * other[f"{kind}_dim"], "std": [1.0] * other[f"{kind}_dim"]}
        for kind in ("state", "action")
    }
    processor.set_embodiment("other_robot", statistics)
    own = RobotDataset(recording, embodiment="tabletop").statistics()
    processor.set_embodiment("tabletop", own, {"state": "quantile", "action": "min_max"})
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def saved_policy(tmp_path_factory: pytest.TempPathFactory, recording: Path, syvla_checkpoint: Path) -> Path:
    """A policy saved as lerobot-train saves it."""
    policy, pre, post, _ = make(recording, policy_config(syvla_checkpoint=str(syvla_checkpoint), embodiment="tabletop"))
    folder = tmp_path_factory.mktemp("lerobot") / "pretrained_model"
    for part in (policy, pre, post):
        part.save_pretrained(folder)
    return folder
