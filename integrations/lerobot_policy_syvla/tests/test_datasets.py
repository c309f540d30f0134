"""What SyVLA records opens in LeRobotDataset, and what LeRobotDataset records opens in SyVLA's reader, item for item."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from syvla.processing import RobotDataset, RobotDatasetWriter

CHUNK = 8


def torchcodec_works() -> bool:
    try:
        import torchcodec  # noqa: F401
    except (ImportError, OSError, RuntimeError):  # it needs FFmpeg's libraries and the torch it was built for
        return False
    return True


BACKENDS = ["pyav", *(["torchcodec"] if find_spec("torchcodec") and torchcodec_works() else [])]


def pixels(image: torch.Tensor) -> np.ndarray:
    """LeRobot's (3, H, W) in [0, 1] as uint8 (H, W, 3)."""
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def thought(item: dict[str, Any]) -> str | None:
    """The sub-task that holds at a LeRobot item's time."""
    rows = [row for row in item.get("language_persistent", []) if row["style"] == "subtask"]
    begun = [row for row in rows if row["timestamp"] <= float(item["timestamp"]) + 1e-4]
    return max(begun, key=lambda row: row["timestamp"])["content"] if begun else None


def assert_equal_items(ours: RobotDataset, theirs: LeRobotDataset) -> None:
    assert len(ours) == len(theirs)
    assert ours.num_episodes == theirs.meta.total_episodes
    for i in range(len(ours)):
        mine, other = ours[i], theirs[i]
        assert (mine["text"], mine["thought"]) == (other["task"], thought(other))
        for key in ("index", "episode_index", "frame_index"):
            assert mine[key] == int(other[key])
        assert np.float32(mine["timestamp"]) == other["timestamp"].numpy()
        np.testing.assert_array_equal(mine["state"], other["observation.state"].numpy())
        np.testing.assert_array_equal(mine["actions"], other["action"].numpy())
        np.testing.assert_array_equal(mine["action_is_pad"], other["action_is_pad"].numpy())
        for view, key in ours.cameras.items():
            np.testing.assert_array_equal(mine["images"][view], pixels(other[key]))


def open_theirs(root: Path, fps: float, backend: str = "pyav") -> LeRobotDataset:
    deltas = {"action": [step / fps for step in range(CHUNK)]}
    return LeRobotDataset("local/recording", root=root, delta_timestamps=deltas, video_backend=backend)


def test_ours_with_images_opens_in_lerobot(recording):
    ours = RobotDataset(recording, embodiment="tabletop", chunk_size=CHUNK)
    assert ours.num_frames_with_thought == len(ours)
    assert_equal_items(ours, open_theirs(recording, ours.fps))


@pytest.mark.parametrize("backend", BACKENDS)
def test_ours_with_videos_opens_in_lerobot(video_recording, backend):
    ours = RobotDataset(video_recording, embodiment="tabletop", chunk_size=CHUNK)
    assert_equal_items(ours, open_theirs(video_recording, ours.fps, backend))


def test_lerobot_reads_our_exact_statistics(recording):
    ours = RobotDataset(recording, embodiment="tabletop").statistics()
    theirs = open_theirs(recording, 10).meta.stats
    for kind, key in (("state", "observation.state"), ("action", "action")):
        for name, values in ours[kind].items():
            np.testing.assert_allclose(np.asarray(theirs[key][name]).ravel(), values, rtol=0, atol=1e-9)
    assert np.asarray(theirs["observation.images.head"]["mean"]).shape == (3, 1, 1)


def test_a_resumed_recording_of_ours_opens_in_lerobot(tmp_path):
    names = ["height", "width", "channels"]
    features = {
        "observation.state": {"dtype": "float32", "shape": [2], "names": ["a.pos", "b.pos"]},
        "action": {"dtype": "float32", "shape": [2], "names": ["a.pos", "b.pos"]},
        "observation.images.front": {"dtype": "video", "shape": [48, 64, 3], "names": names},
    }
    rng = np.random.default_rng(0)
    for task in ("open the drawer", "close the drawer"):
        with RobotDatasetWriter(tmp_path / "data", fps=15, features=features) as writer:
            for _ in range(2):
                for step in range(9):
                    vectors = {key: rng.normal(size=2).astype(np.float32) for key in ("observation.state", "action")}
                    writer.add_frame(
                        {**vectors, "observation.images.front": np.full((48, 64, 3), 9 * step, np.uint8)}, task
                    )
                writer.save_episode()
    ours = RobotDataset(tmp_path / "data", embodiment="arm", chunk_size=CHUNK)
    assert ours.num_episodes == 4
    assert_equal_items(ours, open_theirs(tmp_path / "data", 15))


@pytest.mark.parametrize("videos", [False, True])
def test_theirs_opens_in_ours(tmp_path, videos):
    root, size = tmp_path / "data", (48, 64, 3)
    joints = {"dtype": "float32", "shape": (6,), "names": [f"joint_{i}.pos" for i in range(6)]}
    camera = {"dtype": "video" if videos else "image", "shape": size, "names": ["height", "width", "channels"]}
    dataset = LeRobotDataset.create(
        "local/recording",
        fps=30,
        root=root,
        robot_type="so101",
        use_videos=videos,
        features={
            "observation.state": joints,
            "action": joints,
            "observation.images.front": camera,
            "observation.images.wrist": camera,
            "next.done": {"dtype": "bool", "shape": (1,), "names": None},
        },
    )
    rng, recorded = np.random.default_rng(0), []
    for episode, task in enumerate(["pick the cube", "place the cube", "pick the cube"]):
        for step in range(12 + episode):
            frame = {
                "observation.state": rng.normal(size=6).astype(np.float32),
                "action": rng.normal(size=6).astype(np.float32),
                "observation.images.front": rng.integers(0, 256, size, dtype=np.uint8),
                "observation.images.wrist": np.full(size, 9 * step, np.uint8),
                "next.done": np.array([step == 11 + episode]),
                "task": task,
            }
            recorded.append((episode, step, frame))
            dataset.add_frame(dict(frame))
        dataset.save_episode()
    dataset.finalize()

    ours = RobotDataset(root, embodiment="so101", chunk_size=CHUNK)
    assert ours.cameras == {"center": "observation.images.front", "left_wrist": "observation.images.wrist"}
    assert ours.state_names == joints["names"]
    assert_equal_items(ours, open_theirs(root, 30))
    for item, (episode, step, frame) in zip((ours[i] for i in range(len(ours))), recorded, strict=True):
        assert (item["episode_index"], item["frame_index"], item["text"]) == (episode, step, frame["task"])
        np.testing.assert_array_equal(item["state"], frame["observation.state"])
        np.testing.assert_array_equal(item["actions"][0], frame["action"])
        if not videos:
            for view, key in ours.cameras.items():
                np.testing.assert_array_equal(item["images"][view], frame[key])
