"""How far the Workers of a run are, read from the newest checkpoint that they have put in place. No torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from syvla.durable_files import write_json

RUN_FILE = "rl_run.json"
"""In the run's folder: how many rollouts and updates the trainer wants."""

STATE_FILE = "rollout_state.json"
"""In every checkpoint of the trainer; see `syvla.training.rl.run_state.RLState`."""


@dataclass(frozen=True)
class RunProgress:
    """Progress of the Workers.

    Attributes:
        updates: Finished updates.
        consumed: Rollouts that updates have taken.
        dropped: Rollouts that were too old.
        version: Number of the newest policy, which may not be published yet; None: not known.
    """

    updates: int = 0
    consumed: frozenset[str] = frozenset()
    dropped: frozenset[str] = frozenset()
    version: int | None = None


@dataclass(frozen=True)
class RunSize:
    """How much of it a run wants.

    Attributes:
        rollouts_per_update: Rollouts of a policy that an update takes (paper: at most 20).
        max_updates: Updates of the run (paper: at most 10 RL episodes).
    """

    rollouts_per_update: int = 20
    max_updates: int = 10

    def save(self, run: Path) -> None:
        """Leaves it for the server."""
        write_json(run / RUN_FILE, asdict(self))


def read_size(run: Path, before: RunSize) -> RunSize:
    """What the trainer left in the run's folder; `before` where there is nothing to be read."""
    try:
        found = RunSize(**json.loads((run / RUN_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return before
    return found if all(type(value) is int and value > 0 for value in vars(found).values()) else before


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
            used, old = frozenset(state["consumed"]), frozenset(state["dropped"])
            found = RunProgress(state["updates"], used, old, len(state["versions"]) - 1)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if (found.updates, len(found.dropped)) >= (best.updates, len(best.dropped)):
            best = found
    return best
