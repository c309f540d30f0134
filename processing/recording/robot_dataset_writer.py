"""Recording in the LeRobot v3.0 format, so that every saved episode survives a crash.

`save_episode()` writes in the order videos, data, tasks, episode row, statistics, `info.json`, each file put in place
in one step. `info.json` with its episode count comes last: what a kill leaves beyond that count is ignored by the reader
and cleared away when the dataset is opened for recording again.
"""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from syvla.durable_files import replace_durably, write_atomically, write_json, write_text
from syvla.processing.robot_data import lerobot_format as fmt
from syvla.processing.robot_data.arrow_columns import episode_schema, repeat_language_rows, to_arrow, to_numpy
from syvla.processing.robot_data.statistics import DatasetStatistics, has_statistics, vector_statistics
from syvla.processing.robot_data.video import CODEC_NAMES, default_codec, video_info

from .episode_buffer import EpisodeBuffer, PreparedEpisode
from .parquet_files import GrowingTable
from .setup import CARD, comparable, new_info, read_episode_rows

logger = logging.getLogger(__name__)

_STAGING = ".recording"
_EPISODES_PER_FILE = 500
_STATISTICS_GROWTH = 1.1  # stats.json is renewed when the data has grown by a tenth, and on finalize


class RobotDatasetWriter:
    """Records episodes into a LeRobot v3.0 dataset; reopening an existing one goes on after its last saved episode.

    Args:
        root: Folder of the dataset: new, empty, or one that this format has been recorded into.
        fps: Frames per second, an integer; frame k of an episode gets the timestamp k / fps.
        features: As in LeRobot's `info.json`, the user's own ones: `{key: {"dtype", "shape", "names"}}`. Cameras have
            dtype "image" or "video" and shape (H, W, 3).
        robot_type: Name of the robot, for `info.json`.
        use_videos: True: cameras become mp4 files. False: PNG images inside the parquet files (lossless). None: each
            camera as its own dtype says.
        thoughts: Whether the dataset has thoughts (LeRobot's `language_persistent` column). None: it has if the first
            saved episode has any.
        video_codec: "libsvtav1" or "h264"; None takes the first that PyAV has, or that of the existing dataset.

    Raises:
        ValueError: Features out of the format, or other than those of the existing dataset.
        FileExistsError: `root` holds something else.
        RuntimeError: Another process is recording there.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        fps: int,
        features: Mapping[str, Mapping[str, Any]],
        robot_type: str | None = None,
        use_videos: bool | None = True,
        thoughts: bool | None = None,
        video_codec: str | None = None,
    ):
        self.root = Path(root)
        existing = (self.root / fmt.INFO_PATH).is_file()
        if not existing and self.root.exists() and any(path.name != _STAGING for path in self.root.iterdir()):
            raise FileExistsError(f"{self.root} is not empty and no LeRobot dataset; choose another folder")
        self._info = new_info(fps, features, robot_type, use_videos)
        self._thoughts = thoughts
        self._codec = video_codec
        self._lock = self._acquire()
        try:
            if existing:
                self._resume()
            else:
                if thoughts:
                    self._add_language_column()
                write_json(self.root / fmt.INFO_PATH, self._info)
                self._tasks: dict[str, int] = {}
            self._open_files()
        except BaseException:
            self._release()
            raise
        self._buffer: EpisodeBuffer | None = None

    @property
    def num_episodes(self) -> int:
        return int(self._info["total_episodes"])

    @property
    def num_frames(self) -> int:
        return int(self._info["total_frames"])

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        return copy.deepcopy(self._info["features"])

    def add_frame(self, frame: Mapping[str, Any], task: str, thought: str | None = None) -> None:
        """Adds a frame to the current episode.

        Args:
            frame: A value per declared feature: images uint8 (H, W, 3), vectors of the declared shape in raw units.
            task: Instruction of the episode.
            thought: What the robot is doing from this frame on; it holds until another one is given.

        Raises:
            ValueError: A missing or unknown feature, another shape or type, NaN or infinity; names the feature. The
                frame is not added and recording can go on.
        """
        if self._lock is None:
            raise RuntimeError(f"{self.root}: the writer is finalized; open a new RobotDatasetWriter to record more")
        if thought is not None and self._thoughts is False:
            raise ValueError(
                f"thought: {self.root} has no {fmt.LANGUAGE_PERSISTENT} column, and a dataset's columns are fixed by"
                " its first episode; record into a new folder with thoughts=True"
            )
        if self._buffer is None:
            if self._video_keys and self._codec is None:
                self._codec = default_codec()
            staging = self.root / _STAGING / f"episode-{self.num_episodes:06d}"
            self._buffer = EpisodeBuffer(self._info["features"], self._info["fps"], staging, self._codec)
        self._buffer.add(frame, task, thought)

    def save_episode(self) -> int:
        """Writes the current episode; when it returns, the episode survives a crash. Returns its index.

        Raises:
            ValueError: There are no frames. Any other error (a full disk) loses this episode only: the writer is
                closed, and opening a new one goes on after the last saved episode.
        """
        buffer = self._buffer
        if buffer is None or not buffer.length:
            raise ValueError(f"{self.root}: the episode has no frames; call add_frame first")
        if self._thoughts is None:
            self._thoughts = bool(buffer.thoughts)
            if self._thoughts:
                self._add_language_column()
                self._open_files()
        self._save_or_close(buffer)
        self._buffer = None
        return self.num_episodes - 1

    def save_prepared(self, episode: PreparedEpisode) -> int:
        """Saves an episode that was encoded elsewhere, in this dataset's file system; otherwise like `save_episode`.

        Raises:
            ValueError: It has no frames, or thoughts that the dataset has no column for.
        """
        if self._lock is None or self._buffer is not None:
            raise RuntimeError(
                f"{self.root}: the writer is finalized or records an episode of its own; save that first"
            )
        if not episode.length or (episode.thoughts and not self._thoughts):
            raise ValueError(
                f"{self.root}: expected a prepared episode with frames, and thoughts only with thoughts=True"
            )
        self._thoughts = bool(self._thoughts)
        self._save_or_close(episode)
        return self.num_episodes - 1

    @property
    def staging(self) -> Path:
        """Folder for unfinished files; names that begin with "episode-" are removed when the dataset is opened again."""
        return self.root / _STAGING

    def _save_or_close(self, episode: EpisodeBuffer | PreparedEpisode) -> None:
        try:
            self._save(episode)
        except BaseException:
            self._release()  # the files on disk are sound, this object's picture of them may not be
            raise

    def discard_episode(self) -> None:
        """Drops the frames added since the last saved episode."""
        if self._buffer is not None:
            self._buffer.discard()
            self._buffer = None

    def finalize(self) -> None:
        """Brings `stats.json` up to date, writes a dataset card and lets go of the folder. May be called twice."""
        if self._lock is None:
            return
        try:
            if self._buffer is not None:
                logger.warning("%s: %d frames were not saved and are dropped", self.root, self._buffer.length)
                self.discard_episode()
            if self.num_frames > self._statistics_frames:
                self._save_statistics(self.num_frames)
            if not (self.root / "README.md").exists():
                card = CARD.format(name=self.root.name, episodes=self.num_episodes, frames=self.num_frames)
                write_text(self.root / "README.md", card)
        finally:
            self._release()

    def __enter__(self) -> RobotDatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finalize()

    # -- opening ------------------------------------------------------------------------------------------------------

    def _acquire(self) -> FileLock:
        (self.root / _STAGING).mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / _STAGING / "lock", thread_local=False)  # any thread may finalize
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RuntimeError(
                f"{self.root}: another process is recording or annotating here; choose another folder"
            ) from error
        for leftover in (self.root / _STAGING).glob("episode-*"):
            shutil.rmtree(leftover)
        return lock

    def _release(self) -> None:
        if self._lock is not None:
            shutil.rmtree(self.root / _STAGING, ignore_errors=True)
            self._lock.release()
            self._lock = None  # type: ignore[assignment]

    def _resume(self) -> None:
        """Takes over the state of the existing dataset after checking that it is the same kind of recording."""
        info = fmt.read_info(self.root)
        if not info.is_v3:
            raise ValueError(f"{self.root}: format {info.codebase_version} can be read but not extended; record anew")
        has_language = fmt.LANGUAGE_PERSISTENT in info.features
        for name, wanted, found in (
            ("fps", self._info["fps"], info.fps),
            ("features", comparable(self._info["features"]), comparable(info.features)),
        ):
            if wanted != found:
                raise ValueError(f"{self.root}: the existing dataset has {name} {found}, expected {wanted}; match it")
        if info.total_episodes or has_language:
            if self._thoughts and not has_language:
                raise ValueError(f"{self.root}: the existing dataset has no thoughts; record into a new folder")
            self._thoughts = has_language
        elif self._thoughts:
            self._add_language_column()
        raw = copy.deepcopy(info.raw)
        if has_language or not self._thoughts:
            self._info = raw
        for feature in info.features.values():
            used = (feature.get("info") or {}).get("video.codec")
            codec = next((codec for codec, standard in CODEC_NAMES.items() if standard == used), None)
            if codec and self._codec not in (None, codec):
                raise ValueError(f"{self.root}: video_codec {self._codec!r}, but its videos are {used}; leave it out")
            self._codec = self._codec or codec
        path = self.root / fmt.TASKS_PATH
        frame = pd.read_parquet(path) if path.is_file() else None
        self._tasks = {} if frame is None else {str(task): int(i) for task, i in frame["task_index"].items()}

    def _open_files(self) -> None:
        """Sets up the growing files and statistics for the current features, after clearing what a crash left."""
        features = self._info["features"]
        self._video_keys = [key for key, feature in features.items() if feature["dtype"] == "video"]
        self._vector_keys = [
            key for key, value in features.items() if has_statistics(value) and value["dtype"] not in fmt.IMAGE_DTYPES
        ]
        rows = read_episode_rows(self.root, self.num_episodes)
        last = rows[-1] if rows else None

        def position(kind: str) -> tuple[int, int] | None:
            return None if last is None else (last[f"{kind}/chunk_index"], last[f"{kind}/file_index"])

        chunks = self._info.get("chunks_size", fmt.CHUNKS_SIZE)
        data_schema = fmt.huggingface_features(features).arrow_schema
        self._data = GrowingTable(
            self.root, self._info["data_path"], data_schema, position("data"),
            row_group_per_episode=True, chunks_size=chunks,
        )  # fmt: skip
        self._episodes = GrowingTable(
            self.root, fmt.EPISODES_PATH, episode_schema(features), position("meta/episodes"),
            row_group_per_episode=False, max_rows=_EPISODES_PER_FILE, chunks_size=chunks,
        )  # fmt: skip
        self._data.recover("index", self.num_frames)
        self._episodes.recover("episode_index", self.num_episodes)
        self._video_positions = {key: position(f"videos/{key}") for key in self._video_keys}
        for key in self._video_keys:
            self._next_video(key)[1].unlink(missing_ok=True)
        self._statistics = DatasetStatistics(features)
        self._statistics_frames = 0
        if rows:
            self._load_statistics(rows)
            self._save_statistics(self.num_frames)

    def _load_statistics(self, rows: list[dict[str, Any]]) -> None:
        features = self._info["features"]
        files = list(dict.fromkeys((row["data/chunk_index"], row["data/file_index"]) for row in rows))
        tables = [pq.read_table(self._data.path(file), columns=self._vector_keys) for file in files]
        table = pa.concat_tables([table.select(self._vector_keys) for table in tables])
        columns = {
            key: to_numpy(table.column(key), features[key]["shape"], features[key]["dtype"], key)
            for key in self._vector_keys
        }
        cameras = [key for key, feature in features.items() if feature["dtype"] in fmt.IMAGE_DTYPES]
        for row in rows:
            frames = slice(row["dataset_from_index"], row["dataset_to_index"])
            images = {
                key: {name[len(f"stats/{key}/") :]: v for name, v in row.items() if name.startswith(f"stats/{key}/")}
                for key in cameras
            }
            self._statistics.add_episode({key: values[frames] for key, values in columns.items()}, images)

    def _add_language_column(self) -> None:
        feature = {"dtype": "language", "shape": [1], "names": None}
        self._info["features"] = {**self._info["features"], fmt.LANGUAGE_PERSISTENT: feature}

    # -- saving -------------------------------------------------------------------------------------------------------

    def _save(self, buffer: EpisodeBuffer | PreparedEpisode) -> None:
        episode, length = self.num_episodes, buffer.length
        row = self._save_videos(buffer)
        columns = self._columns(buffer)
        statistics = self._episode_statistics(buffer, columns)

        position = self._data.next_position()
        self._data.append(self._table(self._data.schema, columns))
        self._save_tasks()
        row |= {
            "episode_index": episode,
            "tasks": list(dict.fromkeys(buffer.tasks)),
            "length": length,
            "data/chunk_index": position[0],
            "data/file_index": position[1],
            "dataset_from_index": self.num_frames,
            "dataset_to_index": self.num_frames + length,
        }
        for key, values in statistics.items():
            row |= {f"stats/{key}/{name}": value for name, value in values.items()}
        row["meta/episodes/chunk_index"], row["meta/episodes/file_index"] = self._episodes.next_position()
        self._episodes.append(pa.Table.from_pylist([row], self._episodes.schema))

        self._statistics.add_episode({key: columns[key] for key in self._vector_keys}, statistics)
        if self.num_frames + length >= _STATISTICS_GROWTH * self._statistics_frames:
            self._save_statistics(self.num_frames + length)
        info = {
            **self._info,
            "total_episodes": episode + 1,
            "total_frames": self.num_frames + length,
            "total_tasks": len(self._tasks),
            "splits": {"train": f"0:{episode + 1}"},
        }
        write_json(self.root / fmt.INFO_PATH, info)
        self._info = info
        shutil.rmtree(self.root / _STAGING / f"episode-{episode:06d}", ignore_errors=True)

    def _next_video(self, key: str) -> tuple[tuple[int, int], Path]:
        last = self._video_positions[key]
        position = (0, 0) if last is None else fmt.next_file(*last, self._info.get("chunks_size", fmt.CHUNKS_SIZE))
        template = self._info["video_path"] or fmt.VIDEO_PATH
        path = fmt.render_path(template, video_key=key, chunk_index=position[0], file_index=position[1])
        return position, self.root / path

    def _save_videos(self, buffer: EpisodeBuffer | PreparedEpisode) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for key, finished in buffer.finish_videos().items():
            position, path = self._next_video(key)
            replace_durably(finished, path)
            self._video_positions[key] = position
            row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"] = position
            row[f"videos/{key}/from_timestamp"] = 0.0
            row[f"videos/{key}/to_timestamp"] = buffer.length / self._info["fps"]
            if not self._info["features"][key].get("info"):
                assert self._codec is not None
                self._info["features"][key]["info"] = video_info(path, self._codec)
        return row

    def _columns(self, buffer: EpisodeBuffer | PreparedEpisode) -> dict[str, Any]:
        length = buffer.length
        for task in buffer.tasks:
            self._tasks.setdefault(task, len(self._tasks))
        columns = buffer.columns()
        columns["timestamp"] = (np.arange(length) / self._info["fps"]).astype(np.float32)
        columns["frame_index"] = np.arange(length)
        columns["episode_index"] = np.full(length, self.num_episodes)
        columns["index"] = self.num_frames + np.arange(length)
        columns["task_index"] = np.array([self._tasks[task] for task in buffer.tasks])
        if self._thoughts:
            columns[fmt.LANGUAGE_PERSISTENT] = buffer.thoughts
        return columns

    def _table(self, schema: pa.Schema, columns: Mapping[str, Any]) -> pa.Table:
        length = len(columns["index"])
        arrays = [
            repeat_language_rows(columns[field.name], length, field.type)
            if field.name in fmt.LANGUAGE_COLUMNS
            else to_arrow(columns[field.name], field.type)
            for field in schema
        ]
        return pa.Table.from_arrays(arrays, schema=schema)

    def _episode_statistics(
        self, buffer: EpisodeBuffer | PreparedEpisode, columns: Mapping[str, Any]
    ) -> dict[str, dict[str, Any]]:
        return {
            **{key: statistics.result() for key, statistics in buffer.image_statistics.items()},
            **{key: vector_statistics(columns[key]) for key in self._vector_keys},
        }

    def _save_tasks(self) -> None:
        if len(self._tasks) > self._info["total_tasks"] or not (self.root / fmt.TASKS_PATH).is_file():
            # By pandas: LeRobot finds the instruction through pandas' index metadata in the footer.
            index = pd.Index(list(self._tasks), name="task", dtype=object)
            frame = pd.DataFrame({"task_index": np.arange(len(self._tasks), dtype=np.int64)}, index=index)
            write_atomically(self.root / fmt.TASKS_PATH, frame.to_parquet)

    def _save_statistics(self, frames: int) -> None:
        write_json(self.root / fmt.STATS_PATH, self._statistics.result())
        self._statistics_frames = frames
