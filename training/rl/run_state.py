"""What a run of reinforcement learning remembers besides weights and optimizers: one JSON file in every checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from syvla.durable_files import write_json
from syvla.serving.rl.progress import STATE_FILE

_FORMER = ("dropped_stale", "dropped")
"""In files written before the ledger, which knows it."""


@dataclass
class RLState:
    """State between and within updates.

    Attributes:
        versions: Hash of every policy that was published, by version number.
        lineage: Numbers of those that led to the present policy; a rollback leaves the others.
        rollbacks: How many of the ledger's rollbacks these weights have followed.
        published: Whether the newest of them has reached the publisher.
        updates: Finished updates.
        consumed: Rollouts that an update has taken.
        baseline_cfm: Flow-matching loss of the first policy on held-out expert samples.
        history: What each update came to.
        settings: Settings that a resumed run has to share.
        retrieval: Fingerprints of the vectors that are searched; empty without retrieval.
    """

    versions: list[str] = field(default_factory=list)
    lineage: list[int] = field(default_factory=list)
    rollbacks: int = 0
    published: bool = False
    updates: int = 0
    consumed: list[str] = field(default_factory=list)
    baseline_cfm: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    retrieval: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.versions and not self.lineage:  # written before there were rollbacks
            self.lineage = list(range(len(self.versions)))

    def add_version(self, policy_version: str) -> None:
        """Notes that the next policy is this one; it has yet to be published."""
        self.lineage.append(len(self.versions))
        self.versions.append(policy_version)
        self.published = False

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
        return self.lineage[-1] if self.lineage else -1

    @property
    def parent(self) -> int | None:
        """Number of the policy that the present one was trained from."""
        return self.lineage[-2] if len(self.lineage) > 1 else None

    @property
    def left(self) -> set[int]:
        """Numbers of the policies that rollbacks have left."""
        return set(range(len(self.versions))) - set(self.lineage)

    @property
    def line(self) -> list[str]:
        """Hashes of the policies that led to the present one, which comes last."""
        return [self.versions[number] for number in self.lineage]

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
            facts = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{name: value for name, value in facts.items() if name not in _FORMER})
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: cannot be read ({error}); resume_from_checkpoint needs a checkpoint of syvla-ppo"
            ) from error


def staleness(line: list[str], acted: tuple[str, ...]) -> int | None:
    """By how many versions a rollout's oldest policy is behind the newest; None if it is not in the line of policies.

    A hash that was published more than once counts as the latest: the same weights cannot be stale.
    """
    newest = {policy: number for number, policy in enumerate(line)}
    if not acted or any(policy not in newest for policy in acted):
        return None
    return len(line) - 1 - min(newest[policy] for policy in acted)
