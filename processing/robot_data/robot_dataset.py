"""Robot demonstrations as training samples: a map-style reader of LeRobot datasets (v3.x, v2.1 and v2.0)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from syvla.processing.transforms import DEFAULT_VIEWS, camera_line, infer_cameras

from .dataset_arguments import argument_problems, chosen_vectors
from .delta_actions import delta_vectors
from .frame_filter import FrameFilter
from .frame_table import load_frames
from .image_store import MEMORY_LIMIT, ImageStore
from .lerobot_format import DEFAULT_FEATURES, LANGUAGE_PERSISTENT, DatasetError, image_size, is_depth
from .metadata import DatasetMetadata, read_metadata
from .open_videos import OPEN_VIDEOS
from .source import locate_dataset
from .stated_statistics import pool_statistics
from .statistics import RunningStatistics
from .vector_parts import DEFAULT_KEYS, VectorKey, part_names

logger = logging.getLogger(__name__)


class RobotDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Frames of a LeRobot dataset, each with the chunk of actions that starts there.

    An item is a dict: `images` {view: uint8 (H, W, 3)}, `text` (the instruction), `thought` (str or None), `embodiment`,
    `state` float32 (D_state,) and `actions` float32 (T, D_action) in raw physical units, `action_is_pad` bool (T,), True
    beyond the end of the episode, or from a frame on that a filter removed, where the last action is repeated, `index`,
    `episode_index`, `frame_index` (int) and `timestamp` (seconds, float).

    States, actions and indices are held in memory; images are decoded when asked for. Works with forked and spawned
    data-loader workers: open files are never shared between processes.

    Args:
        root_or_repo_id: Folder of the dataset, or "organization/name" on the Hub.
        embodiment: Name under which the processor and the model know this robot's dimensions.
        cameras: View to camera feature, for example `{"center": "observation.images.head"}`; views left out are absent
            from the items. None infers it from the features' names.
        state_key: Feature that is the robot's state, or a list of features, parts of `meta/modality.json` and slices that
            are put together, see `VectorKey`. Of a dataset with that file the default takes all its parts.
        action_key: The same of the action.
        chunk_size: Number of actions T in a chunk.
        episodes: Which episodes, in which order; None takes all.
        thought_source: "auto": the sub-tasks of LeRobot's `language_persistent` column if there is one, else no
            thoughts; None: no thoughts; otherwise the name of a text column.
        revision: Revision of a Hub dataset; None takes the tag of a format that can be read: the first there is of v3.0, v3.1,
            v2.1 and v2.0.
        tolerance_s: Largest distance in seconds between a frame's timestamp and its video frame.
        cache_images: Decode all images once and keep them in memory (N x H x W x 3 bytes per view); for small images.
        memory_limit: Bytes of images stored in parquet up to which they are held in memory undecoded.
        cache_dir: Folder for the memory-mapped copies of larger ones; None is `syvla/arrow` in the Hugging Face cache.
        control_hz: Steps per second of the action chunks, where other than the dataset's frame rate; the target at a step
            between two frames is interpolated. For actions that are target positions: ones that are increments per frame
            (velocities, end-effector deltas) would need scaling: keep their own rate.
        resample: "linear" interpolation between frames, or the "nearest" frame's action.
        filter_file: Filter file of `syvla-clean`: its episodes and frames are left out.
        views: The model's views, which `cameras` is inferred for.
        streaming, cache_gb: Refused here, see `open_robot_dataset`.

    Raises:
        FileNotFoundError: No dataset there.
        DatasetError: The dataset contradicts itself or the arguments; lists every problem with its fix.
    """

    def __init__(
        self,
        root_or_repo_id: str | Path,
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
        memory_limit: int = MEMORY_LIMIT,
        cache_dir: str | Path | None = None,
        filter_file: str | Path | None = None,
        control_hz: float | None = None,
        resample: str = "linear",
        views: Sequence[str] = DEFAULT_VIEWS,
        streaming: bool = False,
        cache_gb: float | None = None,
    ):
        if streaming or cache_gb is not None:
            raise ValueError(
                f"streaming, cache_gb: {root_or_repo_id}: every frame is needed here, which streaming does not bring; leave "
                "both out (`open_robot_dataset` streams)"
            )
        wanted = None if cameras is None else cameras.values()
        root = locate_dataset(root_or_repo_id, revision=revision, episodes=episodes, cameras=wanted)
        chosen = self._choose(
            read_metadata(root),
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
        self._frames = load_frames(
            self.metadata, self.episodes, self._vectors["state"], self._vectors["action"], self.thought_column
        )
        if chosen is not None:
            self._frames = chosen.apply(self._frames, self.episodes)
        stored = self._stored_sizes()
        self._images = ImageStore(self.root, self._frames.files, stored, memory_limit, cache_dir) if stored else None
        self._segments = {
            view: [self.metadata.video(episode, key) for episode in self.episodes]
            for view, key in self.cameras.items()
            if key not in stored
        }
        self._cache: dict[str, np.ndarray] | None = None
        if cache_images:
            self._cache = self._decode_all()

    def _choose(
        self,
        metadata: DatasetMetadata,
        *,
        embodiment: str,
        cameras: dict[str, str] | None,
        state_key: VectorKey,
        action_key: VectorKey,
        chunk_size: int,
        episodes: Sequence[int] | None,
        thought_source: str | None,
        tolerance_s: float,
        filter_file: str | Path | None,
        control_hz: float | None,
        resample: str,
        views: Sequence[str],
    ) -> FrameFilter | None:
        """Checks the arguments against the metadata and takes them over; returns the filter, which is not applied yet."""
        if chunk_size < 1:
            raise ValueError(f"chunk_size: expected at least 1, got {chunk_size}")
        if control_hz is not None and not 0 < control_hz < float("inf"):
            raise ValueError(f"control_hz: expected a positive number of steps per second, got {control_hz}")
        if resample not in ("linear", "nearest"):
            raise ValueError(f"resample: expected 'linear' or 'nearest', got {resample!r}")
        self.metadata, self.info, self.root = metadata, metadata.info, metadata.root
        self.embodiment, self.chunk_size, self.tolerance_s = embodiment, chunk_size, tolerance_s
        self.episodes = list(range(self.info.total_episodes)) if episodes is None else [int(e) for e in episodes]
        chosen = None if filter_file is None else FrameFilter.load(filter_file)
        if chosen is not None:
            chosen.check(self.metadata)
        problems = argument_problems(self.metadata, self.episodes, cameras, views, thought_source)
        self._vectors = chosen_vectors(self.metadata, {"state": state_key, "action": action_key}, problems)
        if problems:
            raise DatasetError(self.root, problems)
        if chosen is not None:
            self.episodes = chosen.kept_episodes(self.episodes, self.metadata)
            if not self.episodes:
                raise DatasetError(self.root, [f"filter_file: {filter_file} removes every selected episode"])
        self.cameras = dict(infer_cameras(self.info.camera_keys, views) if cameras is None else cameras)
        logger.info("%s: %s", self.root, camera_line(self.cameras, self.info.camera_keys, views))
        self.thought_column = LANGUAGE_PERSISTENT if thought_source == "auto" else thought_source
        if thought_source == "auto" and LANGUAGE_PERSISTENT not in self.features:
            self.thought_column = None
        if skipped := self._skipped_features():
            logger.info("%s: not read: %s", self.root, ", ".join(skipped))
        self._sizes = {key: image_size(self.features[key]) for key in self.cameras.values()}
        self.control_hz = control_hz or self.fps
        self._frames_per_step = self.fps / self.control_hz
        self._steps = np.arange(chunk_size) * self._frames_per_step  # in frames
        self._interpolates = resample == "linear" and not float(self._frames_per_step).is_integer()
        return chosen

    def _stored_sizes(self) -> dict[str, tuple[int, int]]:
        """(height, width) of each camera whose images lie in the parquet files."""
        return {key: size for key, size in self._sizes.items() if self.features[key]["dtype"] == "image"}

    streamed = False
    """Whether frames are fetched when asked for; states and actions are then not in memory."""

    def __len__(self) -> int:
        return len(self._frames.index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        frames = self._frames
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range: {self.root} has {len(self)} frames in these episodes")
        index %= len(self)
        position = int(frames.position[index])
        actions, is_pad = self.action_chunk(index)
        return {
            "images": self.read_images(index),
            "text": self.tasks[frames.task_index[index]],
            "thought": self.thought_at(index),
            "embodiment": self.embodiment,
            "state": frames.state[index].copy(),
            "actions": actions,
            "action_is_pad": is_pad,
            "index": int(frames.index[index]),
            "episode_index": self.episodes[position],
            "frame_index": int(frames.frame_index[index]),
            "timestamp": float(frames.timestamp[index]),
        }

    def action_chunk(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Actions float32 (T, D_action) from a frame on, and which of them are padding, bool (T,); as in an item."""
        stretches = self._frames.stretches
        wanted = index + self._steps
        last = int(stretches[np.searchsorted(stretches, index, side="right")]) - 1
        return self._actions_at(np.minimum(wanted, last)), wanted > last

    def thought_at(self, index: int) -> str | None:
        """The thought of a frame; None without one."""
        thought = int(self._frames.thought[index])
        return self._frames.thoughts[thought] if thought >= 0 else None

    def _actions_at(self, positions: np.ndarray) -> np.ndarray:
        """Actions (T, D_action) at frames that need not be whole."""
        if not self._interpolates:
            return self._frames.action[np.floor(positions + 0.5).astype(np.int64)]
        low = np.floor(positions).astype(np.int64)
        share = (positions - low).astype(np.float32)[:, None]
        high = np.minimum(low + 1, np.ceil(positions).astype(np.int64))
        actions: np.ndarray = self._frames.action[low] * (1 - share) + self._frames.action[high] * share
        return actions

    def _skipped_features(self) -> list[str]:
        """Features of the robot and its sensors that the samples leave out; unused cameras have a line of their own."""
        used = {part.key for parts in self._vectors.values() for part in parts} | {self.thought_column}
        used |= {*DEFAULT_FEATURES, *self.info.camera_keys}
        return [
            f"{key} (depth map)" if is_depth(feature) else f"{key} ({feature['dtype']})"
            for key, feature in self.features.items()
            if key not in used
        ]

    # -- what the dataset is -----------------------------------------------------------------------------------------

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self.info.fps

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        """Features as in `meta/info.json`."""
        return self.info.features

    @property
    def tasks(self) -> list[str]:
        """Every instruction of the dataset, by task index."""
        return self.metadata.tasks

    @property
    def num_frames(self) -> int:
        return len(self)

    @property
    def num_episodes(self) -> int:
        return len(self.episodes)

    @property
    def episode_lengths(self) -> np.ndarray:
        """int64 (episodes,), frames of each selected episode."""
        return np.diff(self._frames.starts)

    @property
    def episode_starts(self) -> np.ndarray:
        """int64 (episodes,), this dataset's index of each selected episode's first frame."""
        return self._frames.starts[:-1]

    def episode_files(self, episode: int) -> list[str]:
        """Paths, relative to the root, of the files that hold an episode, as far as they are read."""
        videos = [key for key in self.cameras.values() if self.features[key]["dtype"] == "video"]
        paths = [self.metadata.data_path(episode), *(self.metadata.video(episode, key).path for key in videos)]
        return list(dict.fromkeys(paths))

    def file_runs(self) -> np.ndarray:
        """int64 (runs,), frames of each run of consecutive episodes that lie in the same files, see `FileOrder`."""
        cameras = [key for key in self.cameras.values() if self.features[key]["dtype"] == "video"]
        return file_runs(self.metadata, cameras, self.episodes, self.episode_lengths)

    @property
    def state_dim(self) -> int:
        return sum(part.stop - part.start for part in self._vectors["state"])

    @property
    def action_dim(self) -> int:
        return sum(part.stop - part.start for part in self._vectors["action"])

    @property
    def state_key(self) -> str:
        """Feature, or features, that the state is of."""
        return " + ".join(dict.fromkeys(part.key for part in self._vectors["state"]))

    @property
    def action_key(self) -> str:
        """Feature, or features, that the action is of."""
        return " + ".join(dict.fromkeys(part.key for part in self._vectors["action"]))

    @property
    def state_names(self) -> list[str] | None:
        """Names of the state's dimensions; None if the dataset gives none."""
        return part_names(self._vectors["state"], self.features)

    @property
    def action_names(self) -> list[str] | None:
        """Names of the action's dimensions; None if the dataset gives none."""
        return part_names(self._vectors["action"], self.features)

    @property
    def states(self) -> np.ndarray:
        """float32 (N, D_state) of all frames, raw units; do not write to it."""
        return self._frames.state

    @property
    def actions(self) -> np.ndarray:
        """float32 (N, D_action) of all frames, raw units; do not write to it."""
        return self._frames.action

    @property
    def timestamps(self) -> np.ndarray:
        """float64 (N,), seconds since the start of each episode, as stored; do not write to it."""
        return self._frames.timestamp

    @property
    def task_indices(self) -> np.ndarray:
        """int64 (N,), number of each frame's instruction in `tasks`; do not write to it."""
        return self._frames.task_index

    @property
    def thoughts(self) -> list[str]:
        """The distinct thoughts of the selected episodes; empty without thoughts."""
        return self._frames.thoughts

    @cached_property
    def used_tasks(self) -> list[str]:
        """The instructions of the selected episodes."""
        return [self.tasks[task] for task in np.unique(self._frames.task_index)]

    def longest_text_frames(self) -> set[int]:
        """A frame with the longest instruction and one with the longest thought, by characters."""
        frames = self._frames
        longest_task = max(np.unique(frames.task_index), key=lambda task: len(self.tasks[task]))
        found = {int(np.argmax(frames.task_index == longest_task))}
        if frames.thoughts:
            longest_thought = max(range(len(frames.thoughts)), key=lambda thought: len(frames.thoughts[thought]))
            found.add(int(np.argmax(frames.thought == longest_thought)))
        return found

    @cached_property
    def num_frames_with_thought(self) -> int:
        return int((self._frames.thought >= 0).sum())

    def statistics(self, delta_actions: Sequence[int] | None = None) -> dict[str, dict[str, list[float]]]:
        """Exact statistics of state and action over all frames of the selected episodes (`RunningStatistics.result`).

        Args:
            delta_actions: As in `SyVLAProcessor.set_embodiment`; the action's statistics are then those of the differences
                over all steps of all chunks.

        Raises:
            ValueError: A value is NaN or infinite.
        """
        return pooled_statistics([self], delta_actions)

    def action_vectors(self, delta_actions: Sequence[int] | None = None) -> Iterator[np.ndarray]:
        """The vectors (n, D_action) that the action's statistics are taken over."""
        if delta_actions is None:
            yield self.actions
        else:
            frames = self._frames
            arguments = (frames.action, frames.state, frames.stretches, delta_actions)
            yield from delta_vectors(*arguments, self.chunk_size, self._frames_per_step)

    # -- images -------------------------------------------------------------------------------------------------------

    def read_image(self, view: str, index: int) -> np.ndarray:
        """Decodes the image of a view at a frame, uint8 (H, W, 3); ValueError that names the file where it cannot."""
        return self.read_images(index, [view])[view]

    def read_images(self, index: int, views: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Decodes the images of several views at a frame.

        Args:
            index: Number of the frame in this dataset.
            views: Which views; None takes all of `cameras`.

        Returns:
            View -> uint8 (H, W, 3).

        Raises:
            ValueError: An image cannot be decoded; names its file.
        """
        views = list(self.cameras) if views is None else views
        if self._cache is not None:
            return {view: self._cache[view][index].copy() for view in views}
        frames = self._frames
        stored = [view for view in views if view not in self._segments]
        images = {}
        if stored:
            assert self._images is not None
            place = int(frames.file[index]), int(frames.row[index])
            images = dict(zip(stored, self._images.read(*place, [self.cameras[view] for view in stored]), strict=True))
        for view in views:
            if view in self._segments:
                segment = self._segments[view][frames.position[index]]
                images[view] = self._read_video(segment.path, self.cameras[view], segment.start + self._time(index))
        return {view: images[view] for view in views}

    def _read_video(self, path: str, key: str, time: float) -> np.ndarray:
        return OPEN_VIDEOS.read(self.root / path, self._sizes[key], time, self.tolerance_s)

    def _time(self, index: int) -> float:
        """Seconds since the episode's start; stored in float32, which is too coarse in long episodes."""
        exact = float(self._frames.frame_index[index]) / self.fps
        stored = float(self._frames.timestamp[index])
        return exact if abs(exact - stored) <= self.tolerance_s else stored

    def _decode_all(self) -> dict[str, np.ndarray]:
        cache = {view: np.empty((len(self), *self._sizes[key], 3), np.uint8) for view, key in self.cameras.items()}
        for index in tqdm(range(len(self)), desc="Decoding images", disable=len(self) < 2000, leave=False):
            for view, image in self.read_images(index).items():
                cache[view][index] = image
        return cache


def file_runs(
    metadata: DatasetMetadata,
    cameras: Sequence[str],
    episodes: Sequence[int] | None = None,
    lengths: np.ndarray | None = None,
) -> np.ndarray:
    """Frames of each run of consecutive episodes that lie in the same files, int64 (runs,).

    Args:
        metadata: Of the dataset.
        cameras: Video features that are read.
        episodes: Which episodes, in which order; None: all.
        lengths: Frames of each that are read; None: all.
    """
    chosen = np.arange(len(metadata.lengths)) if episodes is None else np.asarray(episodes)
    lengths = metadata.lengths[chosen] if lengths is None else lengths
    if not metadata.info.is_v3:  # each episode has files of its own
        return np.asarray(lengths)
    kinds = ["data", *(f"videos/{key}" for key in cameras)]
    columns = [metadata.columns[f"{kind}/{name}"][chosen] for kind in kinds for name in ("chunk_index", "file_index")]
    changes = np.any([np.diff(column) != 0 for column in columns], axis=0)
    first = np.concatenate([[0], np.flatnonzero(changes) + 1])
    runs: np.ndarray = np.add.reduceat(lengths, first)
    return runs


def pooled_statistics(
    datasets: Sequence[RobotDataset], delta_actions: Sequence[int] | None = None
) -> dict[str, dict[str, list[float]]]:
    """Exact statistics over the frames of several datasets of one embodiment; see `RobotDataset.statistics`.

    Raises:
        ValueError: A value is NaN or infinite, or the datasets have different dimensions; names them.
    """
    result = {}
    if any(dataset.streamed for dataset in datasets):
        return pool_statistics({str(dataset.root): dataset.statistics(delta_actions) for dataset in datasets})
    for kind in ("state", "action"):
        dims = {str(dataset.root): getattr(dataset, f"{kind}_dim") for dataset in datasets}
        if len(set(dims.values())) > 1:
            listed = ", ".join(f"{root} has {dim}" for root, dim in dims.items())
            raise ValueError(
                f"{kind}: datasets of embodiment {datasets[0].embodiment!r} have different dimensions: {listed}; give each "
                "kind of robot an embodiment of its own"
            )
        running = RunningStatistics(getattr(datasets[0], f"{kind}_dim"))
        for dataset in datasets:
            try:
                for values in [dataset.states] if kind == "state" else dataset.action_vectors(delta_actions):
                    running.update(values)
            except ValueError as error:
                raise ValueError(f"{dataset.root}: {kind}: {error}") from error
        result[kind] = running.result()
    return result
