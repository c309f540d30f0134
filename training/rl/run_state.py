"""What a run of reinforcement learning remembers besides weights and optimizers: one JSON file in every checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from syvla.durable_files import write_json
from syvla.serving.rl.progress import STATE_FILE


@dataclass
class RLState:
    """State between and within updates.

    Attributes:
        versions: Hash of every policy that was published, by version number.
        published: Whether the newest of them has reached the publisher.
        updates: Finished updates.
        consumed: Rollouts that an update has taken.
        baseline_cfm: Flow-matching loss of the first policy on held-out expert samples.
        dropped_stale: Rollouts that were too old, in all.
        dropped: Their names.
        history: What each update came to.
        settings: Settings that a resumed run has to share.
        retrieval: Fingerprints of the vectors that are searched; empty without retrieval.
    """

    versions: list[str] = field(default_factory=list)
    published: bool = False
    updates: int = 0
    consumed: list[str] = field(default_factory=list)
    baseline_cfm: float | None = None
    dropped_stale: int = 0
    dropped: list[str] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    retrieval: dict[str, str] = field(default_factory=dict)

    def require_settings(self, settings: dict[str, Any]) -> None:
        """Raises ValueError unless the run goes on with the settings that its present update was prepared with."""
        changed = {key: (old, settings.get(key)) for key, old in self.settings.items() if settings.get(key) != old}
        if changed:
            found = ", ".join(f"{key} was {old!r}, is {new!r}" for key, (old, new) in changed.items())
            raise ValueError(
                f"resume_from_checkpoint: the checkpoint stands in the middle of an update, and settings changed: {found}; "
                "set them back, or resume from the checkpoint after an update"
            )

    def require_retrieval(self, fingerprints: dict[str, str]) -> None:
        """Raises ValueError if a resumed run would search other vectors."""
        if self.retrieval and fingerprints and self.retrieval != fingerprints:
            raise ValueError(
                f"resume_from_checkpoint: the run searched vectors of {self.retrieval}, now they are of {fingerprints}; pass "
                "the same demonstrations and encoder"
            )

    @property
    def version(self) -> int:
        """Number of the policy that acts now."""
        return len(self.versions) - 1

    def save(self, folder: str | Path) -> None:
        write_json(Path(folder) / STATE_FILE, asdict(self))

    @classmethod
    def load(cls, folder: str | Path) -> RLState:
        """State of a checkpoint.

        Raises:
            ValueError: If it has none.
        """
        path = Path(folder) / STATE_FILE
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: cannot be read ({error}); resume_from_checkpoint needs a checkpoint of syvla-ppo"
            ) from error


def staleness(versions: list[str], acted: tuple[str, ...]) -> int | None:
    """By how many versions a rollout's oldest policy is behind the newest; None if this run never published it.

    A hash that was published more than once counts as the latest: the same weights cannot be stale.
    """
    newest = {policy: number for number, policy in enumerate(versions)}
    if not acted or any(policy not in newest for policy in acted):
        return None
    return len(versions) - 1 - min(newest[policy] for policy in acted)
