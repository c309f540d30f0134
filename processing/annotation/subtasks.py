"""Sub-tasks of an episode: what the robot does from which frame on. Training reads them as thoughts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

Subtask = tuple[int, str]
"""First frame and text; it holds until the next sub-task, or to the end of the episode."""

Subtasks = tuple[Subtask, ...]
"""In the order of their frames, no two at one frame."""

MOST_CHARACTERS = 300
"""Longest text of a sub-task. Ours: the longest of the demo's has 52 characters."""
MOST_SUBTASKS = 500
"""Most sub-tasks of one episode. Ours: they are stored with each of its frames."""
_TOLERANCE = 1e-4  # seconds, as the reader's


def checked_text(value: Any) -> str:
    """The text of a sub-task without spaces around it.

    Raises:
        ValueError: It is empty, too long, or has line breaks or other control characters.
    """
    text = value.strip() if isinstance(value, str) else ""
    if not 0 < len(text) <= MOST_CHARACTERS or not text.isprintable():
        raise ValueError(
            f"text: expected 1 to {MOST_CHARACTERS} printable characters without line breaks, got {value!r:.60}"
        )
    return text


def checked_subtasks(value: Any, length: int) -> Subtasks:
    """Sub-tasks out of JSON, `[[frame, text], ...]`, in order.

    Args:
        value: As it came.
        length: Frames of the episode.

    Raises:
        ValueError: It is no such list, a frame does not exist or has two sub-tasks, or a text is refused.
    """
    if not isinstance(value, list | tuple) or len(value) > MOST_SUBTASKS:
        raise ValueError(f"subtasks: expected a list of at most {MOST_SUBTASKS} pairs [frame, text], got {value!r:.60}")
    found = []
    for entry in value:
        if not isinstance(entry, list | tuple) or len(entry) != 2 or type(entry[0]) is not int:
            raise ValueError(f"subtasks: expected pairs [frame, text], got {entry!r:.60}")
        if not 0 <= entry[0] < length:
            raise ValueError(f"subtasks: frame {entry[0]} does not exist; the episode has frames 0 to {length - 1}")
        found.append((entry[0], checked_text(entry[1])))
    found.sort()
    frames = [frame for frame, _ in found]
    if twice := [frame for frame, following in pairwise(frames) if frame == following]:
        raise ValueError(f"subtasks: frame {twice[0]} has two; give each frame one at most")
    return tuple(found)


def subtasks_of_rows(rows: Iterable[Mapping[str, Any]], timestamps: np.ndarray) -> tuple[Subtasks, list[str]]:
    """What rows of `language_persistent` say.

    Args:
        rows: Of one episode; those of other styles are left out.
        timestamps: float64 (T,), seconds of the episode's frames.

    Returns:
        The sub-tasks, each at the first frame at which the reader has it; and what cannot be shown, in words.
    """
    found: dict[int, str] = {}
    notes = []
    own = [row for row in rows if row.get("style") == "subtask" and row.get("content")]
    for row in sorted(own, key=lambda row: float(row["timestamp"])):
        frame = int(np.searchsorted(timestamps + _TOLERANCE, float(row["timestamp"]), side="left"))
        if frame >= len(timestamps):
            notes.append(f"{row['content']!r:.80} begins at {float(row['timestamp']):.2f} s, after the last frame")
            continue
        if frame in found:
            notes.append(f"{found[frame]!r:.80} holds for no frame: another one begins before the next")
        found[frame] = row["content"]
    return tuple(found.items()), notes


def subtask_rows(subtasks: Sequence[Subtask], timestamps: np.ndarray) -> list[dict[str, Any]]:
    """Rows of `language_persistent` for sub-tasks, stamped with their frames' own times."""
    return [
        {
            "role": "assistant",
            "content": text,
            "style": "subtask",
            "timestamp": float(np.float32(timestamps[frame])),
            "camera": None,
            "tool_calls": None,
        }
        for frame, text in subtasks
    ]


def to_json(subtasks: Sequence[Subtask]) -> list[list[Any]]:
    return [[frame, text] for frame, text in subtasks]
