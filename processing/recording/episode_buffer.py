"""The episode being recorded: checked frames, images encoded as they come, running image statistics, thoughts."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from syvla.processing.robot_data.lerobot_format import DEFAULT_FEATURES, IMAGE_DTYPES, LANGUAGE_COLUMNS, image_size
from syvla.processing.robot_data.statistics import ImageStatistics
from syvla.processing.robot_data.video import VideoWriter

PNG_COMPRESSION = 1  # of 9: a third of the time of the usual 6 for files about a tenth larger


@dataclass(frozen=True)
class PreparedEpisode:
    """A finished episode that another process may have encoded: what `EpisodeBuffer.prepare` returns, picklable.

    Attributes:
        length: Frames.
        tasks: The instruction of each frame.
        thoughts: Rows of `language_persistent`.
        image_statistics: By camera.
        values: See `EpisodeBuffer.columns`.
        videos: Finished files by camera; saving the episode moves them into the dataset.
    """

    length: int
    tasks: list[str]
    thoughts: list[dict[str, Any]]
    image_statistics: dict[str, ImageStatistics]
    values: dict[str, Any]
    videos: dict[str, Path]

    def columns(self) -> dict[str, Any]:
        return dict(self.values)

    def finish_videos(self) -> dict[str, Path]:
        return self.videos


class EpisodeBuffer:
    """Frames of one episode until it is saved. Video goes to `staging` while it is recorded, one file per camera.

    Args:
        features: All features of the dataset.
        fps: Frames per second.
        staging: Folder for unfinished videos.
        codec: Video encoder.
    """

    def __init__(self, features: Mapping[str, Mapping[str, Any]], fps: int, staging: Path, codec: str | None):
        self.length = 0
        self.tasks: list[str] = []
        self.thoughts: list[dict[str, Any]] = []
        self.image_statistics: dict[str, ImageStatistics] = {}
        self._features, self._fps, self._staging, self._codec = features, fps, staging, codec
        self._user_keys = [key for key in features if key not in DEFAULT_FEATURES and key not in LANGUAGE_COLUMNS]
        self._values: dict[str, list[Any]] = {key: [] for key in self._user_keys if features[key]["dtype"] != "video"}
        self._videos: dict[str, VideoWriter] = {}

    def add(self, frame: Mapping[str, Any], task: str, thought: str | None) -> None:
        """Checks and adds a frame; on an error the episode stays as it was."""
        if not isinstance(task, str) or not task.strip():
            raise ValueError(f"task: expected the instruction as text, got {task!r}; pass task='...' with every frame")
        missing, extra = set(self._user_keys) - set(frame), set(frame) - set(self._user_keys)
        if missing or extra:
            raise ValueError(
                f"frame: missing {sorted(missing)}, unknown {sorted(extra)}; pass exactly the declared features"
                f" {self._user_keys} (timestamps and indices are added)"
            )
        values = {key: _checked(key, self._features[key], frame[key]) for key in self._user_keys}
        for key, value in values.items():
            if self._features[key]["dtype"] == "video":
                self._video(key).write(value)
            else:
                self._values[key].append(_png(value) if self._features[key]["dtype"] == "image" else value)
            if self._features[key]["dtype"] in IMAGE_DTYPES:
                self.image_statistics.setdefault(key, ImageStatistics()).update(value)
        if thought is not None and (not self.thoughts or self.thoughts[-1]["content"] != thought):
            self.thoughts.append(language_row(thought, self.length / self._fps))
        self.tasks.append(task)
        self.length += 1

    def columns(self) -> dict[str, Any]:
        """Values of the user's features over the episode: numpy (n, *shape), or lists for texts and images."""
        columns: dict[str, Any] = {}
        for key, values in self._values.items():
            dtype = self._features[key]["dtype"]
            if dtype == "image":
                columns[key] = [{"bytes": v, "path": f"frame-{i:06d}.png"} for i, v in enumerate(values)]
            else:
                columns[key] = values if dtype == "string" else np.stack(values)
        return columns

    def finish_videos(self) -> dict[str, Path]:
        """Completes the video files and returns them by feature, still in the staging folder."""
        for writer in self._videos.values():
            writer.close()
            if writer.num_frames != self.length:
                raise ValueError(
                    f"{writer.path.stem}: {writer.num_frames} of {self.length} frames were encoded; discard"
                )
        return {key: writer.path for key, writer in self._videos.items()}

    def prepare(self) -> PreparedEpisode:
        """The complete episode, its videos finished; nothing may be added afterwards."""
        videos = self.finish_videos()
        return PreparedEpisode(self.length, self.tasks, self.thoughts, self.image_statistics, self.columns(), videos)

    def discard(self) -> None:
        """Drops the unfinished video files."""
        for writer in self._videos.values():
            writer.discard()
        self._videos.clear()

    def _video(self, key: str) -> VideoWriter:
        if key not in self._videos:
            assert self._codec is not None
            height, width = image_size(self._features[key])
            self._staging.mkdir(parents=True, exist_ok=True)
            self._videos[key] = VideoWriter(self._staging / f"{key}.mp4", self._fps, height, width, self._codec)
        return self._videos[key]


def language_row(thought: str, timestamp: float) -> dict[str, Any]:
    """A row of LeRobot's `language_persistent` column: a sub-task that holds from `timestamp` (seconds) on."""
    return {
        "role": "assistant",
        "content": thought,
        "style": "subtask",
        "timestamp": float(np.float32(timestamp)),
        "camera": None,
        "tool_calls": None,
    }


def _checked(key: str, feature: Mapping[str, Any], value: Any) -> Any:
    dtype, shape = feature["dtype"], tuple(feature["shape"])
    if dtype == "string":
        if not isinstance(value, str):
            raise ValueError(f"{key}: expected text, got {type(value).__name__}")
        return value
    array = np.asarray(value)
    if dtype in IMAGE_DTYPES:
        expected = (*image_size(feature), 3)
        if array.shape != expected or array.dtype != np.uint8:
            raise ValueError(
                f"{key}: expected (H, W, 3) uint8 of shape {expected}, got {array.shape} {array.dtype};"
                " move channels last and scale to 0..255"
            )
        return array
    if array.shape == () and shape == (1,):
        array = array.reshape(1)
    if array.shape != shape or not np.can_cast(array.dtype, dtype, "same_kind"):
        raise ValueError(f"{key}: expected shape {shape} {dtype}, got {array.shape} {array.dtype}")
    if not np.isfinite(array).all():
        raise ValueError(f"{key}: expected finite numbers, got {array.tolist()}; drop the frame or the episode")
    return array.astype(dtype)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=PNG_COMPRESSION)
    return buffer.getvalue()
