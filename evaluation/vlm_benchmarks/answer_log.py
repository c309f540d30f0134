"""Answers as JSON lines: appended as they are generated, read back by `--resume`."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from syvla.durable_files import append_json_lines, read_json_lines

logger = logging.getLogger(__name__)

Key = tuple[str, int, str]


@dataclass(frozen=True)
class Answer:
    """What a checkpoint said.

    Attributes:
        task: Task of lmms-eval.
        doc_id: Row of the task's split.
        prompt: Digest of everything that an answer depends on besides the weights: text, images, pixel limits, the task's
            generation settings, and the model's generation configuration.
        checkpoint: Digest of the model's weights.
        text: The answer.
        tokens: Generated tokens, the end token counted.
        prompt_text: The rendered chat, for readers.
        damage: Why the question could not be asked; its answer is empty then, and is not kept.
    """

    task: str
    doc_id: int
    prompt: str
    checkpoint: str
    text: str
    tokens: int
    prompt_text: str = ""
    damage: str = ""

    @property
    def key(self) -> Key:
        return self.task, self.doc_id, self.prompt


class AnswerLog:
    """The answers in one folder, of any number of processes: each appends to a file of its own and reads all.

    Args:
        folder: Folder of `answers-rank*.jsonl`; made when missing.
        checkpoint: Digest of the weights; answers of others are passed over.
        rank: This process.
    """

    def __init__(self, folder: str | Path, checkpoint: str, rank: int = 0) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = checkpoint
        self.path = self.folder / f"answers-rank{rank}.jsonl"
        self.known: dict[Key, Answer] = {}
        for path in self.files(folder):
            self._read(path)

    @staticmethod
    def files(folder: str | Path) -> list[Path]:
        """The answer files in a folder."""
        return sorted(Path(folder).glob("answers-rank*.jsonl"))

    def append(self, answers: Iterable[Answer]) -> None:
        """Writes answers; on return they are on disk."""
        answers = list(answers)
        append_json_lines(self.path, map(asdict, answers))
        self.known.update((answer.key, answer) for answer in answers)

    def _read(self, path: Path) -> None:
        entries, torn = read_json_lines(path)
        for entry in entries:
            try:
                answer = Answer(**entry)
            except TypeError:
                torn += 1
                continue
            if answer.checkpoint == self.checkpoint:
                self.known[answer.key] = answer
        if torn:
            logger.warning("%s: %d torn lines are passed over; their questions are asked again", path, torn)
