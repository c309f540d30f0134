"""How much a run of reinforcement learning wants, left by the trainer for the server. No torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from syvla.durable_files import write_json

RUN_FILE = "rl_run.json"
"""In the run's folder: see [`RunSize`]."""

STATE_FILE = "rollout_state.json"
"""In every checkpoint of the trainer; see `syvla.training.rl.run_state.RLState`."""


GUIDANCE_FOLDER = "guidance"
"""In the run's folder: a JSON file per rollout that an update has taken, see `syvla.training.rl.guidance`."""


def guidance_name(episode_id: str) -> str:
    """Name of a rollout's file there, without its ending."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in episode_id)


@dataclass(frozen=True)
class RunSize:
    """How much of it a run wants.

    Attributes:
        rollouts_per_update: Rollouts of a policy that an update takes (paper: at most 20).
        max_updates: Updates of the run (paper: at most 10 RL episodes).
        max_staleness: By how many versions the policy of a rollout may be behind.
        instructions: Tasks that rollouts may have, since the trainer has demonstrations of them; None: any.
    """

    rollouts_per_update: int = 20
    max_updates: int = 10
    max_staleness: int = 0
    instructions: tuple[str, ...] | None = None

    def save(self, run: Path) -> None:
        """Leaves it for the server."""
        write_json(run / RUN_FILE, asdict(self))

    @property
    def valid(self) -> bool:
        """Whether every field holds what it should."""
        counts = (self.rollouts_per_update, self.max_updates, self.max_staleness + 1)
        texts = self.instructions if self.instructions is not None else ()
        return all(type(n) is int and n > 0 for n in counts) and all(isinstance(text, str) for text in texts)


def read_size(run: Path, before: RunSize | None) -> RunSize | None:
    """What the trainer left in the run's folder; `before` where there is nothing to be read."""
    try:
        facts = json.loads((run / RUN_FILE).read_text(encoding="utf-8"))
        if facts.get("instructions") is not None:
            facts["instructions"] = tuple(facts["instructions"])
        found = RunSize(**facts)
        return found if found.valid else before
    except (OSError, ValueError, TypeError, AttributeError):
        return before
