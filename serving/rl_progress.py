"""How far the Workers of a run are, read from the newest checkpoint that they have put in place. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

STATE_FILE = "rollout_state.json"
"""In every checkpoint of the trainer; see `training.rl_state.RLState`."""


@dataclass(frozen=True)
class RunProgress:
    """Progress of the Workers.

    Attributes:
        updates: Finished updates.
        consumed: Rollouts that updates have taken.
        dropped: Rollouts that were too old.
    """

    updates: int = 0
    consumed: frozenset[str] = frozenset()
    dropped: frozenset[str] = frozenset()


def read_progress(run: Path, before: RunProgress | None = None) -> RunProgress:
    """Progress of a run's folder; `before` where nothing newer can be read, since checkpoints come and go.

    Args:
        run: The trainer's `output_dir`.
        before: What was known.
    """
    best = before or RunProgress()
    for path in [*run.glob(f"checkpoint-*/{STATE_FILE}"), run / STATE_FILE]:
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            found = RunProgress(state["updates"], frozenset(state["consumed"]), frozenset(state["dropped"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if (found.updates, len(found.dropped)) >= (best.updates, len(best.dropped)):
            best = found
    return best
