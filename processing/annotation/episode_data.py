"""A dataset as the pages show it: its episodes' numbers, and single pictures, decoded when asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from syvla.processing.robot_data.lerobot_format import LANGUAGE_PERSISTENT
from syvla.processing.robot_data.robot_dataset import RobotDataset
from syvla.processing.robot_data.source import locate_dataset
from syvla.processing.robot_data.vector_parts import DEFAULT_KEYS

from .pictures import Pictures

_MANY_FILES = 20  # from here on reading shows a progress bar


class EpisodeData:
    """Episodes by their number in the dataset.

    Args:
        root_or_repo_id: Folder of the dataset, or its id on the Hub.
        state_key: See `RobotDataset`.
        action_key: See `RobotDataset`.
        tolerance_s: See `RobotDataset`.

    Raises:
        FileNotFoundError: No dataset there.
        DatasetError: It cannot be read; lists every problem.
    """

    def __init__(
        self,
        root_or_repo_id: str | Path,
        *,
        state_key: str = DEFAULT_KEYS["state"],
        action_key: str = DEFAULT_KEYS["action"],
        tolerance_s: float = 1e-4,
    ) -> None:
        self.root = locate_dataset(root_or_repo_id)
        local = Path(root_or_repo_id).is_dir()
        self.name = self.root.resolve().name if local else str(root_or_repo_id)
        self.dataset = RobotDataset(
            self.root,
            embodiment="any",
            chunk_size=1,
            cameras={},
            thought_source=None,
            state_key=state_key,
            action_key=action_key,
            tolerance_s=tolerance_s,
        )
        self.metadata, self.info = self.dataset.metadata, self.dataset.info
        self.fps = self.dataset.fps
        self.num_episodes = self.dataset.num_episodes
        self.cameras = list(self.info.camera_keys)
        self.state_names = self.dataset.state_names or _numbered("state", self.dataset.state_dim)
        self.action_names = self.dataset.action_names or _numbered("action", self.dataset.action_dim)
        self._files = [self.metadata.data_path(episode) for episode in range(self.num_episodes)]
        self.files = list(dict.fromkeys(self._files))
        """Data files, relative to the root."""
        self.pictures = Pictures(self.metadata, self._files, self.dataset.timestamps, self._starts, tolerance_s)

    @property
    def has_language(self) -> bool:
        """Whether `meta/info.json` lists the column of sub-tasks."""
        return LANGUAGE_PERSISTENT in self.info.features

    @property
    def tasks(self) -> list[str]:
        """Every instruction of the dataset."""
        return self.dataset.tasks

    def length(self, episode: int) -> int:
        """Frames of an episode."""
        return int(self.metadata.lengths[episode])

    def timestamps(self, episode: int) -> np.ndarray:
        """float64 (T,), seconds since the episode's start, never decreasing."""
        times: np.ndarray = np.maximum.accumulate(self.dataset.timestamps[self._rows(episode)])
        return times

    def states(self, episode: int) -> np.ndarray:
        """float32 (T, D_state), raw units."""
        return self.dataset.states[self._rows(episode)]

    def actions(self, episode: int) -> np.ndarray:
        """float32 (T, D_action), raw units."""
        return self.dataset.actions[self._rows(episode)]

    def task_index(self, episode: int) -> int:
        """Number of the instruction at the episode's first frame."""
        return int(self.dataset.task_indices[self._starts[episode]])

    def task(self, episode: int) -> str:
        return self.tasks[self.task_index(episode)]

    def file_of(self, episode: int) -> str:
        """The episode's data file, relative to the root."""
        return self._files[episode]

    def files_with_progress(self, title: str) -> tqdm[str]:
        """`files`, with a progress bar where there are many."""
        return tqdm(self.files, desc=title, unit="file", disable=len(self.files) < _MANY_FILES, leave=False)

    @property
    def _starts(self) -> np.ndarray:
        return self.dataset.episode_starts

    def _rows(self, episode: int) -> slice:
        start = int(self._starts[episode])
        return slice(start, start + self.length(episode))


def _numbered(kind: str, count: int) -> list[str]:
    return [f"{kind} {number}" for number in range(count)]
