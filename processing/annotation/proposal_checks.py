"""Whether what a vision model answered can be the sub-tasks of an episode, and whether it fits the instruction."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from .subtasks import Subtasks, checked_text

MOST_PROPOSED = 20
"""Most sub-tasks of a proposal. Ours."""
_SNAP_S = 0.3  # a boundary of the motion so near is what the model meant
_SHORTEST_S = 0.2
_LATEST_START_S = 0.5
_MOST_WORDS = 15
# Words that say nothing about what an instruction is about.
_COMMON = frozenset({
    "a", "an", "and", "are", "at", "away", "be", "by", "down", "for", "from", "front", "hand", "in", "into", "is",
    "it", "its", "left", "arm", "of", "off", "on", "onto", "out", "over", "robot", "right", "side", "the",
    "their", "them", "then", "there", "this", "to", "toward", "towards", "under", "up", "with"
})  # fmt: skip


def parse_answer(answer: str, length: int, fps: float, boundaries: Sequence[int]) -> Subtasks:
    """Sub-tasks out of a model's answer, each at a frame.

    Args:
        answer: `{"subtasks": [{"start": seconds, "text": ...}]}`, perhaps with other text around it.
        length: Frames of the episode.
        fps: Frames per second.
        boundaries: Frames at which the motion changes; a start within 0.3 s of one becomes it.

    Returns:
        In order; sub-tasks with the same text one after the other are one.

    Raises:
        ValueError: It is no such answer, or has times outside the episode.
    """
    value = json_object(answer)
    entries = value.get("subtasks")
    if not isinstance(entries, list) or not 0 < len(entries) <= MOST_PROPOSED:
        raise ValueError(f"expected 1 to {MOST_PROPOSED} sub-tasks under 'subtasks', got {entries!r:.60}")
    found: dict[int, str] = {}
    seconds = length / fps
    for entry in entries:
        start = entry.get("start") if isinstance(entry, dict) else None
        if isinstance(start, bool) or not isinstance(start, int | float) or not 0 <= start < seconds:
            raise ValueError(f"expected starts from 0 to {seconds:.2f} s, got {entry!r:.80}")
        frame = min(length - 1, math.floor(start * fps + 0.5))
        if frame in found:
            raise ValueError(f"two sub-tasks begin at {frame / fps:.2f} s")
        found[frame] = checked_text(entry.get("text"))
    moved = _snapped(sorted(found), boundaries, _SNAP_S * fps)
    merged: list[tuple[int, str]] = []
    for frame, text in zip(moved, [found[frame] for frame in sorted(found)], strict=True):
        if not merged or merged[-1][1] != text:
            merged.append((frame, text))
    return tuple(merged)


def _snapped(frames: Sequence[int], boundaries: Sequence[int], reach: float) -> list[int]:
    """Frames in order, of which the nearest one to each boundary within reach becomes that boundary."""
    nearest = {boundary: min(frames, key=lambda frame: abs(frame - boundary)) for boundary in boundaries}
    moved = dict(zip(frames, frames, strict=True))
    for boundary, frame in sorted(nearest.items(), key=lambda entry: abs(entry[0] - entry[1])):
        if moved[frame] == frame and abs(boundary - frame) <= reach and boundary not in moved.values():
            moved[frame] = boundary
    # Two that changed places, which takes boundaries nearer to each other than they are proposed, stay where they were.
    result = [moved[frame] for frame in frames]
    return result if sorted(set(result)) == result else list(frames)


def json_object(answer: str) -> dict[str, Any]:
    """The JSON object in a text.

    Raises:
        ValueError: There is none.
    """
    start, stop = answer.find("{"), answer.rfind("}")
    try:
        value = json.loads(answer[start : stop + 1]) if 0 <= start < stop else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {answer.strip()[:80]!r}")
    return value


def fit_problems(subtasks: Subtasks, task: str, tasks: Sequence[str], length: int, fps: float) -> list[str]:
    """Why proposed sub-tasks may not fit their instruction, in words; empty if nothing speaks against them.

    Args:
        subtasks: Proposed.
        task: The episode's instruction.
        tasks: All instructions of the dataset: words that tell them apart must not be those of another one.
        length: Frames of the episode.
        fps: Frames per second.
    """
    problems = []
    said = set().union(*(_words(text) for _, text in subtasks))
    own = _words(task)
    if own and not own & said:
        problems.append(f"none of the instruction's words appears: {', '.join(sorted(own))}")
    foreign = (set().union(*map(_words, tasks)) - own) & said
    telling = {word for word in foreign if not all(word in _words(other) for other in tasks)}
    # A verb of another instruction may well be a part of this one; a word in the same place is a contradiction.
    for word in sorted(telling):
        if contradicted := sorted({mine for other in tasks for mine in _replaced(task, other, word)}):
            problems.append(f"speaks of {word!r}, the instruction of {contradicted[0]!r}")
    if len(subtasks) == 1 and subtasks[0][1].rstrip(".").lower() == task.rstrip(".").lower():
        problems.append("repeats the instruction and divides nothing")
    if subtasks and subtasks[0][0] > _LATEST_START_S * fps:
        problems.append(f"nothing before {subtasks[0][0] / fps:.2f} s")
    edges = np.array([*(frame for frame, _ in subtasks), length])
    for (frame, text), frames in zip(subtasks, np.diff(edges).tolist(), strict=True):
        if frames < _SHORTEST_S * fps:
            problems.append(f"{text!r:.60} at {frame / fps:.2f} s takes {frames / fps:.2f} s")
        if len(text.split()) > _MOST_WORDS:
            problems.append(f"{text!r:.60} has {len(text.split())} words, more than {_MOST_WORDS}")
    return problems


def _words(text: str) -> set[str]:
    return {word for word in re.findall(r"[^\W_]+", text.lower()) if word not in _COMMON and not word.isdigit()}


def _replaced(task: str, other: str, word: str) -> list[str]:
    """The word of `task` in whose place `other` has `word`, where the two differ in that word alone."""
    mine, theirs = task.lower().split(), other.lower().split()
    if len(mine) != len(theirs):
        return []
    different = [(a, b) for a, b in zip(mine, theirs, strict=True) if a != b]
    return [a for a, b in different if b.strip(".,") == word and len(different) == 1]
