"""What a LeRobot dataset says about itself: its episodes, where their frames lie, its instructions (v3.x, v2.1 and v2.0)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from syvla.processing.lfs_pointers import is_lfs_pointer, reading_problem

from .arrow_columns import to_numpy
from .lerobot_format import INFO_PATH, TASKS_PATH, DatasetError, DatasetInfo, read_info, render_path

_MAX_JSONL_BYTES = 2**31


@dataclass(frozen=True)
class VideoSegment:
    """Where an episode's frames of one camera lie: a file relative to the root, and the start in seconds inside it."""

    path: str
    start: float


@dataclass(frozen=True)
class DatasetMetadata:
    """Episodes of a dataset. Paths always come from the episode's own row and the templates in `info.json`.

    Attributes:
        root: Folder of the dataset.
        info: Contents of `meta/info.json`.
        tasks: Instruction per task index.
        lengths: int64 (episodes,), frames per episode.
        columns: Further per-episode columns of `meta/episodes` (v3.0), each (episodes,).
    """

    root: Path
    info: DatasetInfo
    tasks: list[str]
    lengths: np.ndarray
    columns: dict[str, np.ndarray]

    def data_path(self, episode: int) -> str:
        """Path, relative to the root, of the parquet file that holds an episode's frames."""
        return render_path(self.info.data_path, **self._fields(episode, "data"))

    def video(self, episode: int, key: str) -> VideoSegment:
        """Where an episode's video of a camera lies."""
        if self.info.video_path is None:
            raise ValueError(f"{self.root / INFO_PATH}: video_path is null but {key} is a video; correct it")
        path = render_path(self.info.video_path, video_key=key, **self._fields(episode, f"videos/{key}"))
        start = self.columns[f"videos/{key}/from_timestamp"][episode] if self.info.is_v3 else 0.0
        return VideoSegment(path, float(start))

    def _fields(self, episode: int, kind: str) -> dict[str, int]:
        if self.info.is_v3:
            return {name: int(self.columns[f"{kind}/{name}"][episode]) for name in ("chunk_index", "file_index")}
        return {"episode_chunk": episode // self.info.chunks_size, "episode_index": episode}


def read_metadata(root: Path) -> DatasetMetadata:
    """Reads `meta/` of a dataset.

    Raises:
        FileNotFoundError: No dataset there.
        DatasetError: Metadata missing, of another version or contradicting each other; lists every problem.
    """
    info = read_info(root)
    problems: list[str] = []
    reader = _read_v3 if info.is_v3 else _read_v2
    tasks, indices, lengths, columns = reader(root, info, problems)
    if not problems:
        total = info.total_episodes
        keep = indices < total  # a recording that was cut off may hold more rows than it has finished episodes
        indices, lengths = indices[keep], lengths[keep]
        columns = {name: values[keep] for name, values in columns.items()}
        if not np.array_equal(indices, np.arange(total)):
            problems.append(
                f"meta/episodes: holds {len(indices)} episode rows, {INFO_PATH} says {total}, numbered from 0 without a"
                " gap; the download or copy is incomplete, fetch it again"
            )
        elif int(lengths.sum()) != info.total_frames:
            problems.append(
                f"meta/episodes: episodes have {int(lengths.sum())} frames in sum, {INFO_PATH} says"
                f" {info.total_frames}; restore the metadata"
            )
        elif len(lengths) and lengths.min() < 1:
            problems.append(
                f"meta/episodes: episode {int(lengths.argmin())} has length {int(lengths.min())}; remove it"
            )
        problems += [
            f"meta/episodes: {name} holds a negative index; restore it"
            for name, values in columns.items()
            if name.endswith("_index") and len(values) and values.min() < 0
        ]
    if problems:
        raise DatasetError(root, problems)
    return DatasetMetadata(root, info, tasks, lengths, columns)


_Parts = tuple[list[str], np.ndarray, np.ndarray, dict[str, np.ndarray]]


def _read_v3(root: Path, info: DatasetInfo, problems: list[str]) -> _Parts:
    names = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    for key in info.features:
        if info.features[key]["dtype"] == "video":
            names += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    paths = sorted(root.glob("meta/episodes/*/*.parquet"))
    if info.total_episodes and not paths:
        problems.append("meta/episodes: no parquet files; the download or copy is incomplete, fetch it again")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for path in paths:
        where = path.relative_to(root).as_posix()
        try:
            with pq.ParquetFile(path) as file:
                missing = sorted(set(names) - set(file.schema_arrow.names))
                if missing:
                    problems.append(f"{where}: columns {missing} are missing; restore the file")
                    continue
                table = file.read(columns=names)
            for name in names:
                dtype = "float64" if name.endswith("timestamp") else "int64"
                parts[name].append(to_numpy(table.column(name), (), dtype, f"{where}: {name}"))
        except (pa.ArrowException, OSError, ValueError) as error:
            problems.append(f"{where}: {reading_problem(path, f'cannot be read ({error}); restore the file')}")
    columns = {
        name: np.concatenate([*values, np.zeros(0, "float64" if name.endswith("timestamp") else "int64")])
        for name, values in parts.items()
    }
    return _tasks_v3(root, info, problems), columns.pop("episode_index"), columns.pop("length"), columns


def _tasks_v3(root: Path, info: DatasetInfo, problems: list[str]) -> list[str]:
    path = root / TASKS_PATH
    if not path.is_file():
        if info.total_episodes:
            problems.append(f"{TASKS_PATH}: missing; the download or copy is incomplete, fetch it again")
        return []
    try:
        table = pq.read_table(path)
        indices = to_numpy(table.column("task_index"), (), "int64", "task_index")
        texts = [
            name for name in table.column_names if name != "task_index" and _is_text(table.schema.field(name).type)
        ]
        name = "task" if "task" in texts else texts[0]
        return _ordered(dict(zip(indices.tolist(), table.column(name).to_pylist(), strict=True)))
    except (pa.ArrowException, OSError, KeyError, IndexError, ValueError) as error:
        why = reading_problem(path, f"expected columns task (text) and task_index ({error}); restore the file")
        problems.append(f"{TASKS_PATH}: {why}")
        return []


def _read_v2(root: Path, info: DatasetInfo, problems: list[str]) -> _Parts:
    try:
        tasks = _ordered({int(row["task_index"]): row["task"] for row in _jsonl(root / "meta/tasks.jsonl")})
        rows = [(int(row["episode_index"]), int(row["length"])) for row in _jsonl(root / "meta/episodes.jsonl")]
    except (OSError, KeyError, TypeError, ValueError) as error:
        problems.append(f"meta/tasks.jsonl or meta/episodes.jsonl: cannot be read ({error!r}); restore the files")
        return [], np.zeros(0, np.int64), np.zeros(0, np.int64), {}
    table = np.array(sorted(rows), np.int64).reshape(-1, 2)
    return tasks, table[:, 0], table[:, 1], {}


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    if path.stat().st_size > _MAX_JSONL_BYTES:
        raise ValueError(f"{path.name}: more than {_MAX_JSONL_BYTES} bytes")
    if is_lfs_pointer(path):
        raise ValueError(f"{path.name} {reading_problem(path, '')}")
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def _ordered(tasks: dict[int, Any]) -> list[str]:
    if sorted(tasks) != list(range(len(tasks))) or not all(isinstance(text, str) for text in tasks.values()):
        raise ValueError("task indices must be 0, 1, 2, ... with a text each")
    return [tasks[index] for index in range(len(tasks))]


def _is_text(kind: pa.DataType) -> bool:
    text: bool = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return text
