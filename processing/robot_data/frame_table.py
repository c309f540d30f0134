"""The numeric columns of the selected episodes, loaded once, and where each frame's images lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from syvla.processing.lfs_pointers import reading_problem

from .arrow_columns import to_numpy
from .lerobot_format import LANGUAGE_PERSISTENT, DatasetError
from .metadata import DatasetMetadata
from .vector_parts import VectorPart, join_parts, whole

Locate = Callable[[str], AbstractContextManager[Path]]
"""Of a data file's path, relative to the root, the local file as long as the `with` block lasts."""

_MANY_FILES = 200  # from here on loading shows a progress bar


@dataclass(frozen=True)
class FrameTable:
    """Frames of the selected episodes, one after the other (N in sum).

    Attributes:
        state: float32 (N, D_state), raw units.
        action: float32 (N, D_action), raw units.
        timestamp: float64 (N,), seconds since the start of the episode.
        frame_index: int64 (N,), within the episode.
        index: int64 (N,), within the whole dataset.
        task_index: int64 (N,).
        position: int32 (N,), which of the selected episodes.
        starts: int64 (episodes + 1,), first frame of each selected episode, then N.
        stretches: int64 (stretches + 1,), first frame of each unbroken stretch of recorded frames, then N: `starts`, and
            the frame after each gap that a filter made. No chunk of actions runs past the end of its stretch.
        thought: int32 (N,), index into `thoughts`; -1 where there is none.
        thoughts: The distinct thoughts.
        files: Data files, relative to the root.
        file: int32 (N,), index into `files`.
        row: int64 (N,), row in that file.
    """

    state: np.ndarray
    action: np.ndarray
    timestamp: np.ndarray
    frame_index: np.ndarray
    index: np.ndarray
    task_index: np.ndarray
    position: np.ndarray
    starts: np.ndarray
    stretches: np.ndarray
    thought: np.ndarray
    thoughts: list[str]
    files: list[str]
    file: np.ndarray
    row: np.ndarray


def load_frames(
    metadata: DatasetMetadata,
    episodes: Sequence[int],
    state: str | Sequence[VectorPart],
    action: str | Sequence[VectorPart],
    thought_column: str | None,
    locate: Locate | None = None,
) -> FrameTable:
    """Reads the numeric columns of the selected episodes from their parquet files.

    Args:
        metadata: Of the dataset.
        episodes: Which, in which order.
        state, action: A feature, or the parts to put together.
        thought_column: Text column of the thoughts, or None.
        locate: Yields the local copy of a data file as long as it is read; None: the file lies below the root.

    Raises:
        DatasetError: Files missing or unreadable, columns missing or of another size than `info.json` says, rows that do
            not match the episode's length; lists every problem.
    """
    vectors = {
        name: whole(given, metadata.info.features) if isinstance(given, str) else tuple(given)
        for name, given in (("state", state), ("action", action))
    }
    loader = _Loader(metadata, vectors, thought_column, locate or (lambda path: nullcontext(metadata.root / path)))
    by_file: dict[str, list[tuple[int, int]]] = {}
    for position, episode in enumerate(episodes):
        by_file.setdefault(metadata.data_path(episode), []).append((position, episode))
    for path in tqdm(by_file, desc="Reading frames", unit="file", disable=len(by_file) < _MANY_FILES, leave=False):
        loader.load(path, by_file[path])
    if loader.problems:
        raise DatasetError(metadata.root, loader.problems)
    return loader.finish()


class _Loader:
    def __init__(
        self,
        metadata: DatasetMetadata,
        vectors: Mapping[str, tuple[VectorPart, ...]],
        thought_column: str | None,
        locate: Locate,
    ):
        self.metadata, self._locate = metadata, locate
        self.problems: list[str] = []
        self._vectors = vectors
        keys = dict.fromkeys(part.key for parts in vectors.values() for part in parts)
        self._numeric: dict[str, tuple[str, tuple[int, ...]]] = {
            **{key: ("float32", tuple(metadata.info.features[key]["shape"])) for key in keys},
            "episode_index": ("int64", ()),
            "frame_index": ("int64", ()),
            "index": ("int64", ()),
            "task_index": ("int64", ()),
            "timestamp": ("float64", ()),
        }
        self._frame_columns = [name for name in self._numeric if name not in keys]
        self._thought_column = thought_column
        self._thoughts: dict[str, int] = {}
        self._files: list[str] = []
        self._parts: dict[int, dict[str, np.ndarray]] = {}

    def load(self, path: str, episodes: list[tuple[int, int]]) -> None:
        with self._locate(path) as full:
            if not full.is_file():
                self.problems.append(
                    f"{path}: the data file is missing; the download or copy is incomplete, fetch it again"
                )
                return
            try:
                with pq.ParquetFile(full) as file:
                    self._load(Path(path).as_posix(), file, episodes)
            except (pa.ArrowException, OSError, ValueError) as error:
                self.problems.append(f"{path}: {reading_problem(full, str(error))}")

    def _load(self, path: str, file: pq.ParquetFile, episodes: list[tuple[int, int]]) -> None:
        # LeRobot's own column may be in the files of annotated episodes alone.
        optional = self._thought_column in (None, LANGUAGE_PERSISTENT)
        needed = [*self._numeric, *([] if optional else [self._thought_column])]
        missing = [name for name in dict.fromkeys(needed) if name not in file.schema_arrow.names]
        if missing:
            raise ValueError(f"columns {missing} are missing, meta/info.json lists them; restore the file")
        groups, first = _groups_of(file, [episode for _, episode in episodes])
        table = file.read_row_groups(groups, columns=list(self._numeric))
        columns = {
            name: to_numpy(table.column(name), shape, dtype, name) for name, (dtype, shape) in self._numeric.items()
        }
        owner = columns["episode_index"]
        if (np.diff(owner) < 0).any():
            raise ValueError("rows are not in the order of their episodes; restore the file")
        self._files.append(path)
        ranges = [
            (position, episode, *np.searchsorted(owner, [episode, episode + 1])) for position, episode in episodes
        ]
        thoughts = self._read_thoughts(file, groups, columns, [(int(low), int(high)) for *_, low, high in ranges])
        for position, episode, low, high in ranges:
            length = int(self.metadata.lengths[episode])
            frame = columns["frame_index"][low:high]
            if high - low != length or not np.array_equal(frame, np.arange(length)):
                self.problems.append(
                    f"{path}: holds {high - low} frames of episode {episode}, its metadata says {length}; restore the file"
                )
                continue
            part = {name: columns[name][low:high] for name in self._frame_columns}
            for name, parts in self._vectors.items():
                part[name] = join_parts({key: columns[key][low:high] for key in {p.key for p in parts}}, parts)
            tasks = part["task_index"]
            if tasks.min() < 0 or tasks.max() >= len(self.metadata.tasks):
                self.problems.append(f"{path}: episode {episode} has a task_index without a task; restore meta/tasks")
            part["thought"] = thoughts[low:high]
            part["position"] = np.full(length, position, np.int32)
            part["file"] = np.full(length, len(self._files) - 1, np.int32)
            part["row"] = np.arange(first + low, first + high)
            self._parts[position] = part

    def _read_thoughts(
        self, file: pq.ParquetFile, groups: list[int], columns: dict[str, np.ndarray], ranges: list[tuple[int, int]]
    ) -> np.ndarray:
        """Index of each row's thought, int32 (rows,), of the rows of some row groups."""
        codes = np.full(len(columns["index"]), -1, np.int32)
        if self._thought_column is None or self._thought_column not in file.schema_arrow.names:
            return codes
        if self._thought_column != LANGUAGE_PERSISTENT:
            read = file.read_row_groups(groups, columns=[self._thought_column])
            texts = read.column(0).combine_chunks().dictionary_encode()
            if isinstance(texts, pa.ChunkedArray):
                texts = texts.combine_chunks()
            mapping = np.array([self._code(text) for text in texts.dictionary.to_pylist()] + [-1], np.int32)
            thoughts: np.ndarray = mapping[texts.indices.fill_null(len(mapping) - 1).to_numpy(zero_copy_only=False)]
            return thoughts
        # The rows of an episode are repeated on each of its frames: the first frame's are enough.
        start, stop = 0, 0
        group, rows = groups[0] - 1, None
        for low, high in sorted(ranges):
            while low >= stop and group < groups[-1]:
                group, start, rows = group + 1, stop, None
                stop += file.metadata.row_group(group).num_rows
            if low >= high or low >= stop:
                continue
            if rows is None:
                rows = file.read_row_group(group, columns=[self._thought_column]).column(self._thought_column)
            times, values = self._subtasks(rows[low - start].as_py() or [])
            latest = np.searchsorted(times, columns["timestamp"][low:high] + 1e-4, side="right") - 1
            codes[low:high] = np.where(latest >= 0, values[latest], -1) if len(values) else -1
        return codes

    def _subtasks(self, rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        found = [(row["timestamp"], row["content"]) for row in rows if row.get("style") == "subtask" and row["content"]]
        found.sort(key=lambda row: row[0])
        return np.array([time for time, _ in found]), np.array([self._code(text) for _, text in found], np.int32)

    def _code(self, text: str | None) -> int:
        return self._thoughts.setdefault(text, len(self._thoughts)) if text else -1

    def finish(self) -> FrameTable:
        parts = [self._parts[position] for position in sorted(self._parts)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        del joined["episode_index"]
        starts = np.concatenate([[0], np.cumsum([len(part["index"]) for part in parts])])
        return FrameTable(starts=starts, stretches=starts, thoughts=list(self._thoughts), files=self._files, **joined)


def _groups_of(file: pq.ParquetFile, episodes: Sequence[int]) -> tuple[list[int], int]:
    """Row groups from the first to the last that may hold some episodes, and the rows before them.

    By the statistics of `episode_index` in the file's footer; without them all.
    """
    found, rows = [], [0]
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        rows.append(rows[-1] + group.num_rows)
        columns = (group.column(position) for position in range(group.num_columns))
        statistics = next((c.statistics for c in columns if c.path_in_schema == "episode_index"), None)
        if statistics is None or not statistics.has_min_max:
            return list(range(file.num_row_groups)), 0
        if any(statistics.min <= episode <= statistics.max for episode in episodes):
            found.append(number)
    groups = list(range(found[0], found[-1] + 1)) if found else list(range(file.num_row_groups))
    return groups, rows[groups[0]] if groups else 0
