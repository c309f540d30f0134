"""Robot demonstrations that are fetched while they are used: the samples of `RobotDataset`, without its download."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow.parquet as pq

from syvla.processing.streaming.file_cache import FileCache
from syvla.processing.streaming.streamed_files import StreamedFiles
from syvla.processing.transforms import DEFAULT_VIEWS

from .frame_table import load_frames
from .image_store import ImageColumns, decode_row, image_columns, read_images
from .lerobot_format import DatasetError
from .metadata import DatasetMetadata, read_metadata
from .robot_dataset import RobotDataset
from .source import locate_dataset
from .stated_statistics import stated_statistics
from .streamed_metadata import default_cache_folder, is_url, locate_streamed
from .vector_parts import DEFAULT_KEYS, VectorKey
from .video import VideoError, VideoReader

CACHE_GB = 50.0
"""Bound of the cache where none is given."""

_EPISODES_BYTES = 64 * 2**20  # states and actions of the episodes used last that a process keeps
_IMAGES_BYTES = 128 * 2**20  # the same of images stored in parquet, still encoded


def open_robot_dataset(
    path: str | Path, *, streaming: bool = False, cache_gb: float | None = None, **options: Any
) -> RobotDataset:
    """Opens a dataset as an entry of `robot_datasets` says.

    Args:
        path: Folder, Hub dataset, or with `streaming` a URL.
        streaming: Fetch files when they are needed, see `StreamedRobotDataset`.
        cache_gb: Bound of its cache.
        options: Of `RobotDataset`.

    Raises:
        ValueError: An option has no effect, or the dataset cannot be opened.
    """
    _require_flag(streaming)
    if streaming:
        return StreamedRobotDataset(path, cache_gb=cache_gb, **options)
    _require_no_streaming(path, cache_gb)
    return RobotDataset(path, **options)


def open_metadata(
    path: str | Path,
    *,
    streaming: bool = False,
    cache_gb: float | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> DatasetMetadata:
    """Reads `meta/` of a dataset and nothing else; arguments as `open_robot_dataset`."""
    _require_flag(streaming)
    if streaming:
        return _read(locate_streamed(path, revision=revision, cache_dir=cache_dir))
    _require_no_streaming(path, cache_gb)
    return read_metadata(locate_dataset(path, revision=revision, episodes=()))


class StreamedRobotDataset(RobotDataset):
    """Frames of a distant LeRobot dataset, fetched when asked for: every item is that of `RobotDataset`, bit for bit.

    Only `meta/` is read when it is opened, so nothing that needs all frames is there: `states`, `actions` and the like raise,
    and statistics are those that the metadata states. A data or video file is fetched whole into a cache on disk that
    processes share (`FileCache`), and held there while a sample is read. Values are checked as they are read.

    Args:
        path: See `locate_streamed`.
        cache_gb: Bound of the cache in gigabytes (10^9 bytes); None is `CACHE_GB`. All that use a folder must agree on it.
        cache_dir: Folder of the cache; None is `syvla/streaming` in the Hugging Face cache.
        cache_images, memory_limit: Have no effect here and are refused.
        patience: Seconds that a link may be down before an error; None is that of `RemoteFolder`.

    The others are those of `RobotDataset`.

    Raises:
        ValueError: An argument is wrong or has no effect.
        DatasetError: The metadata contradicts itself or the arguments.
        StreamingError: The source cannot be read.
        CacheError: Another run uses the cache with another bound.
    """

    streamed = True

    def __init__(
        self,
        path: str | Path,
        *,
        embodiment: str,
        cameras: dict[str, str] | None = None,
        state_key: VectorKey = DEFAULT_KEYS["state"],
        action_key: VectorKey = DEFAULT_KEYS["action"],
        chunk_size: int = 50,
        episodes: Sequence[int] | None = None,
        thought_source: str | None = "auto",
        revision: str | None = None,
        tolerance_s: float = 1e-4,
        cache_images: bool = False,
        memory_limit: int | None = None,
        cache_dir: str | Path | None = None,
        filter_file: str | Path | None = None,
        control_hz: float | None = None,
        resample: str = "linear",
        views: Sequence[str] = DEFAULT_VIEWS,
        cache_gb: float | None = None,
        patience: float | None = None,
    ):
        if cache_images or memory_limit is not None:
            name = "cache_images" if cache_images else "memory_limit"
            raise ValueError(f"{name}: has no effect with streaming, which holds no dataset in memory; leave it out")
        limit = _limit(cache_gb)
        located = locate_streamed(path, revision=revision, cache_dir=cache_dir, patience=patience)
        self.url = located.source.url
        self._filter = self._choose(
            _read(located),
            embodiment=embodiment,
            cameras=cameras,
            state_key=state_key,
            action_key=action_key,
            chunk_size=chunk_size,
            episodes=episodes,
            thought_source=thought_source,
            tolerance_s=tolerance_s,
            filter_file=filter_file,
            control_hz=control_hz,
            resample=resample,
            views=views,
        )
        cache = FileCache(Path(cache_dir) if cache_dir is not None else default_cache_folder(), limit)
        self.files = StreamedFiles(located.source, cache, located.state)
        lengths = self.metadata.lengths[self.episodes]
        if self._filter is not None:
            kept = (self._filter.kept_frames(e, int(n)) for e, n in zip(self.episodes, lengths, strict=True))
            lengths = np.array([int(keep.sum()) for keep in kept], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._read_lately: OrderedDict[int, _StreamedEpisode] = OrderedDict()
        self._stored_images = _StoredImages(self.files, self.url)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range: {self.url} has {len(self)} frames in these episodes")
        episode, local = self._place(index % len(self))
        return episode[local]

    def action_chunk(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        episode, local = self._place(index)
        return episode.action_chunk(local)

    def thought_at(self, index: int) -> str | None:
        episode, local = self._place(index)
        return episode.thought_at(local)

    def read_images(self, index: int, views: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        episode, local = self._place(index)
        return episode.read_images(local, views)

    def files_of(self, index: int) -> list[str]:
        """Names of the files that a sample needs, in the order in which it reads them."""
        return self.episode_files(self.episodes[self._position(index)])

    # -- what the dataset is ------------------------------------------------------------------------------------------

    @property
    def episode_lengths(self) -> np.ndarray:
        return np.diff(self._starts)

    @property
    def episode_starts(self) -> np.ndarray:
        return self._starts[:-1]

    @property
    def used_tasks(self) -> list[str]:
        """All instructions of the dataset: which of them the selected episodes have is only known to their frames."""
        return self.tasks

    @property
    def thoughts(self) -> list[str]:
        """None: they are known when they are read."""
        return []

    def longest_text_frames(self) -> set[int]:
        """None: see `thoughts`."""
        return set()

    @property
    def states(self) -> np.ndarray:
        self._absent("states")

    @property
    def actions(self) -> np.ndarray:
        self._absent("actions")

    @property
    def timestamps(self) -> np.ndarray:
        self._absent("timestamps")

    @property
    def task_indices(self) -> np.ndarray:
        self._absent("task_indices")

    @property
    def num_frames_with_thought(self) -> int:
        self._absent("num_frames_with_thought")

    def action_vectors(self, delta_actions: Sequence[int] | None = None) -> Iterator[np.ndarray]:
        self._absent("action_vectors")

    def statistics(self, delta_actions: Sequence[int] | None = None) -> dict[str, dict[str, list[float]]]:
        """Statistics as the metadata states them, see `stated_statistics`."""
        return stated_statistics(self.metadata, self.episodes, self._vectors, delta_actions)

    def _absent(self, name: str) -> NoReturn:
        raise ValueError(
            f"{name}: {self.url} is streamed, and its frames are never all in memory; download it and leave streaming out"
        )

    # -- episodes -----------------------------------------------------------------------------------------------------

    def _position(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def _place(self, index: int) -> tuple[RobotDataset, int]:
        """The episode of a frame, and the frame's number in it."""
        position = self._position(index)
        if position not in self._read_lately:
            self._read_lately[position] = _StreamedEpisode(self, self.episodes[position])
            held = sum(episode.nbytes for episode in self._read_lately.values())
            while held > _EPISODES_BYTES and len(self._read_lately) > 1:
                held -= self._read_lately.popitem(last=False)[1].nbytes
        self._read_lately.move_to_end(position)
        return self._read_lately[position], index - int(self._starts[position])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_read_lately": OrderedDict()}


_SHARED = (
    "metadata", "info", "root", "embodiment", "chunk_size", "tolerance_s", "cameras", "thought_column", "control_hz",
    "_vectors", "_sizes", "_frames_per_step", "_steps", "_interpolates",
)  # fmt: skip
"""What an episode has of its dataset."""


class _StreamedEpisode(RobotDataset):
    """One episode of a streamed dataset, read by `RobotDataset`'s own methods."""

    def __init__(self, dataset: StreamedRobotDataset, episode: int):
        self.__dict__.update({name: getattr(dataset, name) for name in _SHARED})
        self.episodes = [episode]
        self._files, self._url = dataset.files, dataset.url
        try:
            self._frames = load_frames(
                self.metadata, [episode], self._vectors["state"], self._vectors["action"], self.thought_column,
                dataset.files.lease,
            )  # fmt: skip
        except DatasetError as error:
            raise DatasetError(dataset.url, error.problems) from error
        for kind, values in (("state", self._frames.state), ("action", self._frames.action)):
            if not np.isfinite(values).all():
                frame, dimension = np.argwhere(~np.isfinite(values))[0].tolist()
                problem = (
                    f"{self.metadata.data_path(episode)}: {kind} dimension {dimension} of episode {episode}, frame {frame}, "
                    f"is {values[frame, dimension]}; repair it, or leave the episode out (episodes=[...])"
                )
                raise DatasetError(dataset.url, [problem])
        if dataset._filter is not None:
            self._frames = dataset._filter.apply(self._frames, [episode])
        stored = self._stored_sizes()
        self._images = _EpisodeImages(dataset._stored_images, self._frames.files[0], stored) if stored else None  # type: ignore[assignment]
        self._segments = {
            view: [self.metadata.video(episode, key)] for view, key in self.cameras.items() if key not in stored
        }
        self._cache = None
        arrays = [value for value in vars(self._frames).values() if isinstance(value, np.ndarray)]
        self.nbytes = sum(array.nbytes for array in arrays)

    def _read_video(self, path: str, key: str, time: float) -> np.ndarray:
        with self._files.lease(path) as local:
            try:
                reader = VideoReader(local, self._sizes[key])
                try:
                    return reader.read(time, self.tolerance_s)
                finally:
                    reader.close()
            except VideoError as error:
                raise VideoError(f"{self._url}/{path}: {error}") from error


class _StoredImages:
    """Encoded images of the row groups of parquet files that were read last."""

    def __init__(self, files: StreamedFiles, url: str):
        self._files, self.url = files, url
        self._groups: OrderedDict[tuple[str, int], ImageColumns] = OrderedDict()

    def around(self, path: str, row: int, keys: Sequence[str]) -> tuple[ImageColumns, int]:
        """The row group that holds a row of a file, with the cameras' images, and its first row."""
        with self._files.lease(path) as local:
            footer = pq.read_metadata(local)
            ends = np.cumsum([footer.row_group(group).num_rows for group in range(footer.num_row_groups)])
            group = int(np.searchsorted(ends, row, side="right"))
            first = int(ends[group - 1]) if group else 0
            if (path, group) not in self._groups:
                self._groups[path, group] = image_columns(read_images(local, list(keys), [group]))
                held = sum(map(_nbytes, self._groups.values()))
                while held > _IMAGES_BYTES and len(self._groups) > 1:
                    held -= _nbytes(self._groups.popitem(last=False)[1])
        self._groups.move_to_end((path, group))
        return self._groups[path, group], first

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_groups": OrderedDict()}


class _EpisodeImages:
    """Stored images of an episode, in the place of `ImageStore`."""

    def __init__(self, images: _StoredImages, path: str, sizes: dict[str, tuple[int, int]]):
        self._images, self._path, self._sizes = images, path, sizes

    def read(self, file: int, row: int, keys: Sequence[str]) -> list[np.ndarray]:
        columns, first = self._images.around(self._path, row, list(self._sizes))
        return decode_row(columns, row - first, keys, self._sizes, f"{self._images.url}/{self._path}")


def _read(located: Any) -> DatasetMetadata:
    try:
        return read_metadata(located.root)
    except DatasetError as error:
        raise DatasetError(located.source.url, error.problems) from error


def _nbytes(columns: ImageColumns) -> int:
    return sum(chunk.nbytes for _, chunks in columns.values() for chunk in chunks)


def _limit(cache_gb: float | None) -> int:
    if cache_gb is None:
        return int(CACHE_GB * 1e9)
    if isinstance(cache_gb, bool) or not isinstance(cache_gb, int | float) or not 0 < cache_gb < float("inf"):
        raise ValueError(f"cache_gb: expected a positive number of gigabytes, got {cache_gb!r}")
    return int(cache_gb * 1e9)


def _require_flag(streaming: Any) -> None:
    if not isinstance(streaming, bool):
        raise ValueError(f"streaming: expected true or false, got {streaming!r}")


def _require_no_streaming(path: str | Path, cache_gb: float | None) -> None:
    if cache_gb is not None:
        raise ValueError(
            f"cache_gb: {path}: bounds the cache of streaming and has no effect without it; set streaming: true"
        )
    if is_url(path):
        raise ValueError(
            f"path: {path} is a URL, which is only read with streaming: true; set it, or download the folder"
        )
