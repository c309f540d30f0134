"""What a recorder keeps of an episode that is open, to check what comes next. The frames are in its `spool`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .decision import Decision
from .episode_facts import EpisodeFacts
from .format import chunk_id


@dataclass
class OpenEpisode:
    """An episode between its first decision and its end.

    Attributes:
        facts: As far as they are known.
        decisions: So far.
        last_request: Idempotency key of the last request.
        chunk_steps, width: Shape of the chunk in force.
        observed: Observations since its decision at which the policy acted.
        ran: Actions of it before a person took over; None where the policy acts.
        corrected: Control steps of the person since.
    """

    facts: EpisodeFacts
    decisions: int = 0
    last_request: str | None = None
    chunk_steps: int = 0
    width: int = 0
    observed: int = 0
    ran: int | None = None
    corrected: int = 0

    @property
    def names(self) -> dict[str, str]:
        """What a reply says about the decision in force."""
        episode = self.facts.episode_id
        return {"episode_id": episode, "chunk_id": chunk_id(episode, self.decisions - 1)}

    def decided(self, decision: Decision, request_id: str | None) -> None:
        """Takes note of a decision."""
        self.decisions += 1
        self.last_request = request_id
        self.chunk_steps, self.width = decision.chunk.shape
        self.observed, self.ran, self.corrected = 0, None, 0

    def took_over(self, correction: np.ndarray, executed: int | None) -> int:
        """Takes note of a person's command; returns how many actions of the chunk in force ran before the person took over.

        Raises:
            ValueError: The command does not fit, or it is not clear what ran before it.
        """
        if correction.shape != (self.width,):
            raise ValueError(
                f"action: expected shape ({self.width},) as the policy's actions have, got {correction.shape}"
            )
        if self.ran is None and executed is None and not self.observed:
            raise ValueError(
                "executed_steps: expected with the first correction after a chunk, 0 if nothing of the chunk ran; got none, "
                "and no observation in between tells it"
            )
        self.check_executed(executed)
        if self.ran is None:
            self.ran = self.observed + 1 if executed is None else executed
        self.corrected += 1
        return self.ran

    def went_on(self) -> None:
        """Takes note of an observation at which the policy acted. Raises ValueError if the chunk has no step left for it."""
        if self.corrected:
            raise ValueError(
                "observe_only: a person acts; send the person's command as action with intervention: true, or ask for actions"
            )
        if self.observed + 1 >= self.chunk_steps:
            raise ValueError(f"observe_only: all {self.chunk_steps} actions of the chunk ran; ask for new ones")
        self.observed += 1

    def check_executed(self, executed: int | None) -> None:
        if self.ran is not None and executed not in (None, self.ran):
            raise ValueError(
                f"executed_steps: expected {self.ran}, as many as ran before the person took over, got {executed}"
            )
        if executed is not None and self.decisions and not self.observed <= executed <= self.chunk_steps:
            raise ValueError(
                f"executed_steps: expected {self.observed} to {self.chunk_steps}, the actions of the previous chunk that"
                f" ran, got {executed}"
            )
