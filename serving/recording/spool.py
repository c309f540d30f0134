"""The frames of an episode that is still running, on disk but without a name: a crash leaves nothing behind."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .format import ACTION, IMAGE_PREFIX, PREFIX, STATE, EpisodeFacts, ServedDecision, chain_row


@dataclass
class _Row:
    images: dict[str, tuple[int, tuple[int, ...]]]  # camera -> offset in the file, shape
    state: np.ndarray
    chunk_step: int  # rows since the decision in force
    decision: int  # its number
    control_step: int


@dataclass
class _Chunk:
    decision: ServedDecision  # without its images
    executed: int = 0
    known: bool = False


class RolloutSpool:
    """Collects one episode.

    Args:
        folder: Where the nameless file lives; on the disk of the data set, so that a full disk shows at once.
        facts: Written with the episode.
        assumed_steps: Actions taken to be executed of a chunk whose client never says; None: the whole chunk.
    """

    def __init__(self, folder: Path, facts: EpisodeFacts, assumed_steps: int | None) -> None:
        self.facts = facts
        self._file = tempfile.TemporaryFile(dir=folder, prefix=".rollout-")  # noqa: SIM115  closed by `close`
        self._assumed = assumed_steps
        self._rows: list[_Row] = []
        self._chunks: list[_Chunk] = []

    @property
    def first_decision(self) -> tuple[ServedDecision, dict[str, np.ndarray]]:
        """The first decision and its images."""
        return self._chunks[0].decision, self._images(self._rows[0])

    def __len__(self) -> int:
        return len(self._rows)

    def add_decision(self, decision: ServedDecision) -> None:
        """Adds a decision; what came before it is now known to be over."""
        self._close_chunk(decision.executed_before)
        light = ServedDecision(**{**vars(decision), "images": {}})
        self._chunks.append(_Chunk(light))
        self.facts.instruction = self.facts.instruction or decision.instruction
        if decision.policy_version not in self.facts.policy_versions:
            self.facts.policy_versions.append(decision.policy_version)
        step = self._rows[-1].control_step - self._rows[-1].chunk_step + self._chunks[-2].executed if self._rows else 0
        self._add(decision.images, decision.state, 0, step)

    def add_observation(self, images: Mapping[str, np.ndarray], state: np.ndarray) -> None:
        """Adds the observation one control step after the last row; the chunk in force must have a step left."""
        last = self._rows[-1]
        self._add(images, state, last.chunk_step + 1, last.control_step + 1)

    def finish(self, executed: int | None) -> None:
        """Ends the episode; `executed` is what ran of the last chunk, None if nobody said."""
        self._close_chunk(executed)
        self.facts.decisions = len(self._chunks)

    def rows(self) -> Iterator[tuple[dict[str, Any], str, str | None]]:
        """(frame, instruction, thought) of every row, as `RobotDatasetWriter.add_frame` takes them."""
        for row in self._rows:
            chunk = self._chunks[row.decision]
            decision = chunk.decision
            asked = row.chunk_step == 0
            predicted = decision.actions if decision.predicted is None else decision.predicted
            values = {
                "chunk": predicted if asked else np.zeros_like(predicted),
                "is_decision": np.array([asked]),
                "decision_index": row.decision,
                "control_step": row.control_step,
                "executed_steps": chunk.executed,
                "executed_known": np.array([chunk.known]),
                "seed": decision.seed if asked else -1,
                "frozen_steps": decision.frozen_steps if asked else 0,
                "query_age": np.float32(decision.query_age if asked else 0.0),
                "chunk_id": f"{self.facts.episode_id}:{row.decision}" if asked else "",
                "policy_version": decision.policy_version if asked else "",
                "thought": (decision.thought or "") if asked else "",
            }
            if self._chunks[0].decision.chain is not None:  # the data set has these columns
                values |= chain_row(decision.chain if asked else None, predicted)
            frame: dict[str, Any] = {PREFIX + name: value for name, value in values.items()}
            frame |= {IMAGE_PREFIX + camera: image for camera, image in self._images(row).items()}
            frame |= {STATE: row.state, ACTION: decision.actions[row.chunk_step]}
            yield frame, decision.instruction, decision.thought or None

    def close(self) -> None:
        self._file.close()

    def _close_chunk(self, said: int | None) -> None:
        """Settles how much of the chunk in force ran: by the client's word, by the rows it sent, or by assumption."""
        if not self._chunks:
            return
        chunk, steps = self._chunks[-1], len(self._chunks[-1].decision.actions)
        observed = self._rows[-1].chunk_step
        if said is not None:
            chunk.executed, chunk.known = said, True
        elif observed:
            chunk.executed, chunk.known = observed + 1, True
        else:
            chunk.executed = min(self._assumed or steps, steps)

    def _add(self, images: Mapping[str, np.ndarray], state: np.ndarray, chunk_step: int, control_step: int) -> None:
        spans = {}
        offset = self._file.seek(0, 2)
        for camera, image in images.items():
            data = np.ascontiguousarray(image, np.uint8)
            self._file.write(data.data)
            spans[camera] = (offset, data.shape)
            offset += data.nbytes
        self._rows.append(_Row(spans, np.asarray(state), chunk_step, len(self._chunks) - 1, control_step))

    def _images(self, row: _Row) -> dict[str, np.ndarray]:
        images = {}
        for camera, (offset, shape) in row.images.items():
            self._file.seek(offset)
            images[camera] = np.frombuffer(self._file.read(int(np.prod(shape))), np.uint8).reshape(shape)
        return images
