"""What a recording has done so far, kept beside the dataset so that it can go on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from syvla.durable_files import write_json

from .environments.demonstration import Demonstration


class RecordingLog:
    """The attempts made so far, in a JSON file.

    Args:
        path: The file.
        settings: What the recording was asked for.

    Raises:
        ValueError: If the file comes from a recording with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path = path
        self._settings = json.loads(json.dumps(settings))
        self.attempts: list[dict[str, Any]] = []
        if path.exists():
            content = json.loads(path.read_text())
            before = content["settings"]
            changed = [
                f"{key}: recorded with {before.get(key)!r}, now {value!r}"
                for key, value in self._settings.items()
                if before.get(key) != value
            ]
            if changed:
                raise ValueError(f"{path}: {'; '.join(changed)}; use the same settings or another folder")
            self.attempts = content["attempts"]

    def match(self, saved_episodes: int) -> None:
        """Drops what was noted but never saved, so that attempts and dataset agree.

        Raises:
            ValueError: If the dataset holds episodes that the file does not know.
        """
        # An attempt is noted before its episode is saved; after a crash in between it has to be made again.
        self.attempts = [a for a in self.attempts if not _kept(a) or a["episode_index"] < saved_episodes]
        known = sum(map(_kept, self.attempts))
        if known != saved_episodes:
            raise ValueError(
                f"{self._path.parent}: holds {saved_episodes} episodes of which {known} are in {self._path.name}; "
                "it was not recorded by this command alone, use another folder"
            )

    def of(self, task: str) -> list[dict[str, Any]]:
        """The attempts at one task, in the order of their seeds."""
        return [attempt for attempt in self.attempts if attempt["task"] == task]

    def add(self, attempt: Demonstration, kept: bool) -> None:
        """Notes an attempt; one that is kept is about to become the next episode."""
        index = sum(map(_kept, self.attempts)) if kept else None
        entry = {"task": attempt.task, "seed": attempt.seed, "success": attempt.success, "episode_index": index}
        self.attempts.append({**entry, "steps": len(attempt.actions)})
        self._write({})

    def finish(self, root: Path, seconds: float, environment: dict[str, Any]) -> dict[str, Any]:
        """Writes the summary, with facts about the environment, and returns it."""
        per_task = {task: summarize(self.of(task)) for task in self._settings["tasks"]}
        summary = {"output": str(root), **summarize(self.attempts), "seconds": round(seconds, 2), "tasks": per_task}
        summary["environment"] = environment
        self._write(summary)
        return summary

    def _write(self, summary: dict[str, Any]) -> None:
        write_json(self._path, {"summary": summary, "settings": self._settings, "attempts": self.attempts})


def summarize(attempts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of a list of attempts: episodes kept and their frames, failures, the expert's success rate and steps."""
    kept = [attempt["steps"] for attempt in attempts if _kept(attempt)]
    successes = sum(attempt["success"] for attempt in attempts)
    return {
        "episodes": len(kept),
        "frames": sum(kept),
        "failures": len(attempts) - successes,
        "success_rate": round(successes / max(1, len(attempts)), 4),
        "mean_steps": round(float(np.mean(kept)), 2) if kept else 0.0,
    }


def _kept(attempt: dict[str, Any]) -> bool:
    return attempt["episode_index"] is not None
