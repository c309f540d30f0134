"""What the pages show of one episode, as JSON."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from .annotator import Annotator
from .boundaries import gripper_dimensions, motion_boundaries, speeds, usual_values
from .episode_data import EpisodeData
from .subtasks import to_json

POINTS = 400
"""Most points of a curve; more than a window has pixels for. Ours."""


class MotionScales:
    """Ranges of the state's dimensions over the whole dataset, computed when first asked for."""

    def __init__(self, data: EpisodeData) -> None:
        self._data, self._mutex = data, threading.Lock()
        self._found: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self) -> tuple[np.ndarray, np.ndarray]:
        """(ranges, lows), float64 (D_state,) each."""
        with self._mutex:
            if self._found is None:
                low, high = usual_values(self._data.dataset.states)
                self._found = high - low, low
            return self._found


def dataset_view(annotator: Annotator, *, asks: bool) -> dict[str, Any]:
    """What the page needs to know once."""
    data = annotator.data
    sizes = {key: data.info.features[key]["shape"] for key in data.cameras}
    return {
        "name": data.name,
        "fps": data.fps,
        "episodes": data.num_episodes,
        "frames": int(data.metadata.lengths.sum()),
        "version": data.info.codebase_version,
        "robot": data.info.robot_type,
        "cameras": [{"key": key, "shape": list(sizes[key])} for key in data.cameras],
        "tasks": data.tasks,
        "read_only": annotator.read_only,
        "asks": asks,
        "state_names": data.state_names,
        "action_names": data.action_names,
    }


def episode_view(annotator: Annotator, scales: MotionScales, episode: int) -> dict[str, Any]:
    """One episode: its sub-tasks, a proposal, where sub-tasks may begin, and curves of its motion."""
    data = annotator.data
    ranges, lows = scales()
    states = data.states(episode)
    grippers = gripper_dimensions(data.state_names)
    proposal = annotator.proposals.get(episode)
    return {
        "episode": episode,
        "length": data.length(episode),
        "task": data.task(episode),
        "task_index": data.task_index(episode),
        "revision": annotator.revision(episode),
        "subtasks": to_json(annotator.subtasks(episode)),
        "notes": annotator.notes(episode),
        "others": [
            {"frame": _frame(data, episode, row["timestamp"]), "style": row["style"], "text": str(row["content"])[:300]}
            for row in annotator.other_rows(episode)
        ],
        "proposal": None
        if proposal is None
        else {
            "source": proposal.source,
            "subtasks": to_json(proposal.subtasks),
            "problems": list(proposal.problems),
        },
        "boundaries": [
            {"frame": boundary.frame, "reason": boundary.reason}
            for boundary in motion_boundaries(states, data.state_names, ranges, lows, data.fps)
        ],
        "speed": curve(speeds(states, ranges, data.fps, grippers)),
        "grippers": [{"name": data.state_names[d], "curve": curve(states[:, d])} for d in grippers],
        "texts": annotator.texts(data.task_index(episode))[:200],
    }


def curve(values: np.ndarray) -> dict[str, list[Any]]:
    """A curve (T,) in at most about `POINTS` points, its peaks kept: `x` frames, `y` values, None where not finite."""
    if len(values) <= POINTS:
        frames = np.arange(len(values))
    else:
        edges = np.linspace(0, len(values), POINTS // 2 + 1).astype(np.int64)
        filled = np.nan_to_num(values, nan=0.0)
        parts = [range(a, b) for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
        low = [part.start + int(filled[part.start : part.stop].argmin()) for part in parts]
        high = [part.start + int(filled[part.start : part.stop].argmax()) for part in parts]
        frames = np.unique([0, *low, *high, len(values) - 1])
    shown = values[frames].tolist()
    return {"x": frames.tolist(), "y": [float(f"{v:.5g}") if np.isfinite(v) else None for v in shown]}


def _frame(data: EpisodeData, episode: int, timestamp: float) -> int:
    times = data.timestamps(episode)
    return min(int(np.searchsorted(times + 1e-4, timestamp, side="left")), len(times) - 1)
