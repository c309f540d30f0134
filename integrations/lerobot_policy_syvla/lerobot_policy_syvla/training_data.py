"""What LeRobot does not pass on about the training data: thoughts, and exact statistics.

LeRobot 0.6 drops a dataset's language columns when it collates frames, and its quantiles are averages of the episodes'
quantiles. Both are read from the dataset's files instead, with SyVLA's reader.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor

logger = logging.getLogger(__name__)


class TrainingData:
    """Numbers and thoughts of a LeRobot dataset, of the episodes whose files are on this disk.

    Args:
        root: Folder of the dataset.
        thought_source: "auto" for the sub-tasks of `language_persistent` where the dataset has them, a text column, or
            None for no thoughts.

    Raises:
        ValueError: The text column does not exist; the message lists those that do.
    """

    def __init__(self, root: str | Path, thought_source: str | None) -> None:
        from syvla.processing.robot_data.frame_table import FrameTable, load_frames
        from syvla.processing.robot_data.metadata import read_metadata

        metadata = read_metadata(Path(root))
        episodes = range(metadata.info.total_episodes)
        local = [episode for episode in episodes if (metadata.root / metadata.data_path(episode)).is_file()]
        column = _thought_column(metadata.info.features, thought_source, root)
        self._frames: FrameTable | None = None
        if local:
            self._has_state = (
                OBS_STATE in metadata.info.features
            )  # not where LeRobot's rename_map makes it of another feature
            state_key = OBS_STATE if self._has_state else ACTION
            self._frames = load_frames(metadata, local, state_key, ACTION, column)
            self._code = np.full(int(self._frames.index.max()) + 1, -1, np.int32)
            self._code[self._frames.index] = self._frames.thought
        elif column:
            logger.warning("%s: its files are not on this disk (streaming), so thoughts are not trained", root)

    @property
    def has_thoughts(self) -> bool:
        return self._frames is not None and bool(self._frames.thoughts)

    def thoughts(self, index: Tensor) -> list[str | None]:
        """Thoughts of the frames with these global indices, None where there is none."""
        assert self._frames is not None
        codes = self._code[index.cpu().numpy().ravel()]
        return [self._frames.thoughts[code] if code >= 0 else None for code in codes]

    def statistics(self) -> dict[str, dict[str, list[float]]] | None:
        """Exact statistics of "state" and "action" over all frames; None where the files do not give them."""
        from syvla.processing.robot_data.statistics import RunningStatistics

        if self._frames is None or not self._has_state:
            return None
        result = {}
        for kind, values in (("state", self._frames.state), ("action", self._frames.action)):
            running = RunningStatistics(values.shape[1])
            running.update(values)
            result[kind] = running.result()
        return result


def _thought_column(features: dict[str, Any], source: str | None, root: str | Path) -> str | None:
    from syvla.processing.robot_data.lerobot_format import LANGUAGE_PERSISTENT

    column = LANGUAGE_PERSISTENT if source == "auto" else source
    if column is None or column in features:
        return column
    if source == "auto":
        return None
    texts = [key for key, feature in features.items() if feature["dtype"] in ("string", "language")]
    raise ValueError(f"thought_source: {source!r} is no text column of {root}; choose from {texts}")


# The dataset being trained on in this process. LeRobot gives it to the policy, but makes the preprocessor of a continued
# checkpoint from files alone, so there is no other way from one to the other.
_current: TrainingData | None = None


def train_on(data: TrainingData | None) -> None:
    """Makes a dataset the one whose thoughts `training_thoughts` looks up."""
    global _current
    _current = data


def training_thoughts(index: Tensor | None) -> list[str | None] | None:
    """Thoughts of training frames; None when no dataset with thoughts is being trained on."""
    if _current is None or index is None or not _current.has_thoughts:
        return None
    return _current.thoughts(index)
