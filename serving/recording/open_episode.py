"""What a recorder keeps of an episode that is open: what checks the next request, and the frames, on disk but without a name.

A crash leaves nothing of the frames behind.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .decision import Decision
from .episode_facts import EpisodeFacts
from .format import ACTION, IMAGE_PREFIX, INTERVENTION, PREFIX, STATE, chain_row, chunk_id


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


# ---------------------------------------------------------------------- frames


@dataclass(frozen=True)
class _Row:
    """One observation. Its images lie in the file."""

    spans: dict[str, tuple[int, tuple[int, ...]]]  # camera -> offset in the file, shape
    state: np.ndarray
    chunk_step: int  # control steps since the decision in force
    decision: int  # its number
    asked: bool = False  # the decision was made here
    correction: np.ndarray | None = None  # the command of a person who acted here


class RolloutSpool:
    """Collects one episode.

    Args:
        folder: Where the nameless file lives; on the disk of the dataset, so that a full disk shows at once.
        facts: Of the episode that begins.
        assumed_steps: Actions taken to be executed of a chunk whose client never says; None: the whole chunk.
    """

    def __init__(self, folder: Path, facts: EpisodeFacts, assumed_steps: int | None) -> None:
        self.facts = facts
        self._file = tempfile.TemporaryFile(dir=folder, prefix=".rollout-")  # noqa: SIM115  closed by `close`
        self._assumed = assumed_steps
        self._rows: list[_Row] = []
        self._decisions: list[Decision] = []  # without their images
        self._corrected = 0  # rows of a person since the last decision

    @property
    def first_decision(self) -> Decision:
        """The first decision with its images."""
        return replace(self._decisions[0], images=self._images(self._rows[0]))

    def __len__(self) -> int:
        return len(self._rows)

    def add_decision(self, decision: Decision, executed_before: int | None) -> None:
        """Adds a decision; `executed_before` is what ran of the chunk before, None if nobody said."""
        self._settle_executed(executed_before)
        step = 0
        if self._decisions:
            before = self._decisions[-1]
            assert before.executed is not None
            step = before.control_step + before.executed + self._corrected
        self._corrected = 0
        self._decisions.append(replace(decision, images={}, control_step=step))
        self._add(decision.images, decision.state, 0, asked=True)

    def add_observation(
        self,
        images: Mapping[str, np.ndarray],
        state: np.ndarray,
        correction: np.ndarray | None = None,
        executed: int = 0,
    ) -> None:
        """Adds the observation one control step after the last row; the chunk in force must have a step left.

        Args:
            images, state: The observation.
            correction: The command of a person who acted at it.
            executed: Actions of the chunk in force that ran before that person took over.
        """
        if correction is None:
            self._add(images, state, self._rows[-1].chunk_step + 1)
            return
        if not self._corrected:
            self._settle_executed(executed)
        self._add(images, state, executed + self._corrected, correction=np.array(correction, np.float32))
        self._corrected += 1

    def finish(self, facts: EpisodeFacts, executed: int | None) -> None:
        """Ends the episode.

        Args:
            facts: What the recorder knows of it by now.
            executed: What ran of the last chunk, None if nobody said.
        """
        self._settle_executed(executed)
        self.facts = replace(
            facts,
            instruction=self._decisions[0].instruction,
            decisions=len(self._decisions),
            corrections=sum(row.correction is not None for row in self._rows),
            policy_versions=tuple(dict.fromkeys(decision.policy_version for decision in self._decisions)),
        )

    def rows(self) -> Iterator[tuple[dict[str, Any], str, str | None]]:
        """(frame, instruction, thought) of every row, as `RobotDatasetWriter.add_frame` takes them."""
        for row in self._rows:
            decision = self._decisions[row.decision]
            asked = row.asked
            values = {
                "chunk": decision.chunk if asked else np.zeros_like(decision.chunk),
                "is_decision": np.array([asked]),
                "decision_index": row.decision,
                "control_step": decision.control_step + row.chunk_step,
                "executed_steps": decision.executed,
                "executed_known": np.array([decision.executed_known]),
                "seed": decision.seed if asked else -1,
                "frozen_steps": decision.frozen_steps if asked else 0,
                "query_age": np.float32(decision.query_age if asked else 0.0),
                "chunk_id": chunk_id(self.facts.episode_id, row.decision) if asked else "",
                "policy_version": decision.policy_version if asked else "",
                "thought": (decision.thought or "") if asked else "",
            }
            if self._decisions[0].chain is not None:  # the dataset has these columns
                values |= chain_row(decision.chain if asked else None, decision.chunk)
            frame: dict[str, Any] = {PREFIX + name: value for name, value in values.items()}
            frame |= {IMAGE_PREFIX + camera: image for camera, image in self._images(row).items()}
            acted = row.correction is not None
            command = row.correction if acted else decision.commands[row.chunk_step]
            frame |= {STATE: row.state, ACTION: command, INTERVENTION: np.array([acted])}
            yield frame, decision.instruction, decision.thought or None

    def close(self) -> None:
        """Lets go of the file. What was still in memory of it is not needed: it is read before, or the episode is lost."""
        with suppress(OSError):
            self._file.close()

    def _settle_executed(self, said: int | None) -> None:
        """Settles how much of the chunk in force ran: by the client's word, by the rows it sent, or by assumption."""
        if not self._decisions or self._corrected:  # settled when the person took over
            return
        steps, observed = len(self._decisions[-1].chunk), self._rows[-1].chunk_step
        executed, known = min(self._assumed or steps, steps), False
        if said is not None:
            executed, known = said, True
        elif observed:
            executed, known = observed + 1, True
        self._decisions[-1] = replace(self._decisions[-1], executed=executed, executed_known=known)

    def _add(
        self,
        images: Mapping[str, np.ndarray],
        state: np.ndarray,
        chunk_step: int,
        *,
        asked: bool = False,
        correction: np.ndarray | None = None,
    ) -> None:
        spans = {}
        offset = self._file.seek(0, 2)
        for camera, image in images.items():
            data = np.ascontiguousarray(image, np.uint8)
            self._file.write(data.data)
            spans[camera] = (offset, data.shape)
            offset += data.nbytes
        self._rows.append(_Row(spans, np.asarray(state), chunk_step, len(self._decisions) - 1, asked, correction))

    def _images(self, row: _Row) -> dict[str, np.ndarray]:
        images = {}
        for camera, (offset, shape) in row.spans.items():
            self._file.seek(offset)
            images[camera] = np.frombuffer(self._file.read(int(np.prod(shape))), np.uint8).reshape(shape)
        return images
