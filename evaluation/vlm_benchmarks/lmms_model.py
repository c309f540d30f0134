"""SyVLA as a model of lmms-eval (chat type): `syvla-eval-vlm` passes it in, and `lmms-eval --model syvla` finds it."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages

from .answer_generation import BATCH_TOKENS, MAX_BATCH_SIZE, AnswerGenerator
from .answer_log import AnswerLog
from .image_rows import decoded_row
from .model_loading import load_generator
from .prompts import DamagedRow, Question


class SyVLAForLmms(lmms):
    """Answers lmms-eval's `generate_until` requests with a SyVLA or plain Qwen2.5-VL checkpoint.

    Args:
        pretrained: Checkpoint folder or Hub id.
        generator: A ready `AnswerGenerator` instead of a checkpoint.
        batch_size, max_batch_size: Most rows of a batch, the second if both are given. lmms-eval's own default is 1.
        batch_tokens: Most tokens of a batch, padding counted.
        min_pixels, max_pixels: Limits that images are scaled into; by default the checkpoint's.
        device: Torch device; by default this process's GPU where there is one.
        dtype: Parameter dtype; "auto": the checkpoint's.
        answers: Folder in which answers are kept and found again; by default none.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        generator: AnswerGenerator | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        answers: str | Path | None = None,
    ) -> None:
        super().__init__()
        if generator is None:
            if pretrained is None:
                raise ValueError("pretrained: missing; pass --model_args pretrained=CHECKPOINT")
            rows = max_batch_size or batch_size or MAX_BATCH_SIZE
            generator = load_generator(
                str(pretrained),
                device=device,
                dtype=dtype,
                min_pixels=min_pixels,
                max_pixels=max_pixels,
                max_batch_size=MAX_BATCH_SIZE if rows == "auto" else int(rows),
                batch_tokens=int(batch_tokens),
                fingerprint=answers is not None,
            )
            if answers is not None:
                generator.log = AnswerLog(answers, generator.checkpoint, process_rank())
        self.generator = generator

    @property
    def device(self) -> torch.device:
        """Where lmms-eval puts what the processes exchange."""
        device: torch.device = self.generator.model.device
        return device

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers to requests of one or several tasks, in their order."""
        questions = []
        for request in requests:
            _, to_messages, generation, doc_id, task, split = request.args
            load = partial(_load_chat, to_messages, self.task_dict[task][split], doc_id)
            generation = {key: value for key, value in generation.items() if key != "until"}
            questions.append(Question(task, doc_id, load, generation))
        answers = self.generator.answer(questions)
        return [GenerationResult(answer.text, TokenCounts(output_tokens=answer.tokens)) for answer in answers]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("SyVLA answers in text; tasks that compare likelihoods are not supported")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("SyVLA's wrapper asks one question per row; multi-round tasks are not supported")

    def clean(self) -> None:
        """Keeps the model: lmms-eval's own would delete it after the first task."""


def _load_chat(to_messages: Any, rows: Any, doc_id: int) -> list[dict[str, Any]]:
    row = decoded_row(rows, doc_id)
    try:
        chat = ChatMessages(messages=to_messages(row))
    except AttributeError as error:  # tasks call `convert` on what they find
        missing = [name for name, value in row.items() if name.startswith("image") and value is None]
        if not missing:
            raise
        raise DamagedRow(f"its image is missing ({', '.join(missing)})") from error
    _, videos, audios = chat.extract_media()
    if videos or audios:
        raise ValueError("SyVLA reads images and text; this task holds videos or audio")
    messages: list[dict[str, Any]] = chat.to_hf_messages()
    return messages


def process_rank() -> int:
    """Rank of this process, as torchrun and accelerate tell it."""
    return int(os.environ.get("RANK", "0"))
