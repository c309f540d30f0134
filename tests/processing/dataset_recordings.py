"""Small recordings for the tests of the dataset reader, writer and validation."""

from pathlib import Path
from typing import Any

import numpy as np

from syvla.processing.recording.robot_dataset_writer import RobotDatasetWriter
from syvla.processing.robot_data.robot_dataset import RobotDataset

CAMERAS = ("head", "left_wrist")


def features(size: int = 16, dtype: str = "image") -> dict[str, dict[str, Any]]:
    camera = {"dtype": dtype, "shape": [size, size, 3], "names": ["height", "width", "channels"]}
    return {
        "observation.state": {"dtype": "float32", "shape": [3], "names": ["a", "b", "c"]},
        "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
        **{f"observation.images.{name}": dict(camera) for name in CAMERAS},
    }


def frame(episode: int, step: int, size: int = 16) -> dict[str, np.ndarray]:
    """Values that tell their episode and step; images are flat, so that video keeps them to a few levels."""
    level = np.uint8((37 * episode + 8 * step) % 256)
    return {
        "observation.state": np.array([episode, step, episode * 100 + step], np.float32),
        "action": np.array([step / 10, -episode], np.float32),
        "observation.images.head": np.full((size, size, 3), level, np.uint8),
        "observation.images.left_wrist": np.full((size, size, 3), 255 - level, np.uint8),
    }


def record_episode(
    writer: RobotDatasetWriter, episode: int, length: int, size: int = 16, thoughts: bool = False
) -> None:
    for step in range(length):
        thought = f"step {step // 2} of episode {episode}" if thoughts else None
        writer.add_frame(frame(episode, step, size), task=f"task {episode % 2}", thought=thought)
    writer.save_episode()


def record(
    root: Path,
    lengths: tuple[int, ...] = (5, 7, 4),
    *,
    use_videos: bool = False,
    size: int = 16,
    thoughts: bool = False,
    fps: int = 10,
    **options: Any,
) -> Path:
    """A finished dataset whose values are those of `frame`; returns its root."""
    with RobotDatasetWriter(root, fps=fps, features=features(size), use_videos=use_videos, **options) as writer:
        for episode, length in enumerate(lengths):
            record_episode(writer, episode, length, size, thoughts)
    return root


def check_content(root: Path, episodes: int, size: int = 16) -> RobotDataset:
    """Opens a recording of `frame` values and compares every item."""
    dataset = RobotDataset(root, embodiment="x", chunk_size=2)
    assert dataset.num_episodes == episodes
    for index in range(len(dataset)):
        item = dataset[index]
        expected = frame(item["episode_index"], item["frame_index"], size)
        np.testing.assert_array_equal(item["state"], expected["observation.state"])
        np.testing.assert_array_equal(item["actions"][0], expected["action"])
        assert item["text"] == f"task {item['episode_index'] % 2}"
        assert item["index"] == index
        for view, key in dataset.cameras.items():
            assert np.abs(item["images"][view].astype(int) - expected[key]).max() <= 3
    return dataset
