"""Thoughts of the training data.

LeRobot 0.6 does not hand a data set's language columns to the policy: its collate function drops them. So the thoughts
are read from the data set's files, with SyVLA's reader, and found by a frame's global `index`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor


class ThoughtTable:
    """Thought of every frame of a LeRobot data set.

    Args:
        root: Folder of the data set.
        source: "auto" for the sub-tasks of `language_persistent` where the data set has them, or a text column.
        state_key, action_key: Any two vector features.
    """

    def __init__(self, root: str | Path, source: str, state_key: str, action_key: str) -> None:
        from processing.dataset_metadata import read_metadata
        from processing.frame_table import load_frames
        from processing.lerobot_format import LANGUAGE_PERSISTENT

        metadata = read_metadata(Path(root))
        features = metadata.info.features
        column: str | None = LANGUAGE_PERSISTENT if source == "auto" else source
        if column not in features:
            if source != "auto":
                texts = [key for key, feature in features.items() if feature["dtype"] in ("string", "language")]
                raise ValueError(f"thought_source: {source!r} is no text column of {root}; choose from {texts}")
            column = None
        frames = load_frames(metadata, range(metadata.info.total_episodes), state_key, action_key, column)
        self.texts = frames.thoughts
        self._code = np.full(int(frames.index.max()) + 1, -1, np.int32)
        self._code[frames.index] = frames.thought

    def at(self, index: Tensor | Sequence[int]) -> list[str | None]:
        """Thoughts of the frames with these global indices, None where there is none."""
        codes = self._code[np.asarray(index, dtype=np.int64).ravel()]
        return [self.texts[code] if code >= 0 else None for code in codes]


# The data set being trained on in this process. LeRobot gives it to the policy, but makes the preprocessor of a continued
# checkpoint from a file alone, so there is no other way from one to the other.
_training: ThoughtTable | None = None


def train_thoughts_of(dataset_meta: Any, source: str | None) -> ThoughtTable | None:
    """Makes the thoughts of a data set (`LeRobotDatasetMetadata`) those that are trained from now on; None: no thoughts."""
    global _training
    _training = None
    if source is not None:
        _training = ThoughtTable(dataset_meta.root, source, "observation.state", "action")
    return _training


def training_thoughts(index: Tensor | None) -> list[str | None] | None:
    """Thoughts of training frames; None when no data set with thoughts is being trained on."""
    if _training is None or index is None or not _training.texts:
        return None
    return _training.at(index)
