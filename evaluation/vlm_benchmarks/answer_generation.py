"""A vision-language model answers many questions: batched by length, ahead of time, within memory, and resumable."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from .answer_log import Answer, AnswerLog, Key
from .batching import prefetch, token_budget_batches, windows
from .prompts import DamagedRow, Prompt, PromptRenderer, Question

logger = logging.getLogger(__name__)

MAX_BATCH_SIZE = 16
BATCH_TOKENS = 16384
"""Ours: about 0.6 GB of keys and values of a 3B model; too much for a small GPU is halved as it is noticed."""
WINDOW = 64  # questions sorted together; their decoded images are in memory at once

Pending = tuple[Question, Prompt]


class AnswerGenerator:
    """Asks a model.

    Args:
        model: SyVLA or Qwen2.5-VL with `generate`; the modes of its modules are restored after every call.
        renderer: Of the same checkpoint.
        checkpoint: Digest of the weights, for the log.
        log: Where answers are kept and known ones found; None: nowhere.
        max_batch_size: Most rows of a batch.
        batch_tokens: Most tokens of a batch, padding and tokens to generate counted.
        max_new_tokens: Cap on what the tasks allow an answer; None: no cap.
        progress: Whether to show a progress bar.

    Attributes:
        damaged: Why a row, named by task and number, could not be asked.
    """

    def __init__(
        self,
        model: Any,
        renderer: PromptRenderer,
        checkpoint: str = "",
        log: AnswerLog | None = None,
        max_batch_size: int = MAX_BATCH_SIZE,
        batch_tokens: int = BATCH_TOKENS,
        max_new_tokens: int | None = None,
        progress: bool = True,
    ) -> None:
        if max_batch_size < 1 or batch_tokens < 1:
            raise ValueError(
                f"max_batch_size, batch_tokens: expected at least 1, got {max_batch_size} and {batch_tokens}"
            )
        self.model, self.renderer, self.log, self.checkpoint = model, renderer, log, checkpoint
        if max_new_tokens is not None and max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
        self.max_batch_size, self.batch_tokens, self.max_new_tokens = max_batch_size, batch_tokens, max_new_tokens
        self.progress = progress
        self.damaged: dict[tuple[str, int], str] = {}
        # Of this thread: a fast tokenizer that two threads use at once raises "Already borrowed".
        self.tokenizer = copy.deepcopy(renderer.processor.tokenizer)

    def settings(self) -> dict[str, Any]:
        """What answers depend on besides the questions, for reports."""
        return {
            "checkpoint": self.checkpoint,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "pixel_limits": list(self.renderer.pixel_limits),
            "max_batch_size": self.max_batch_size,
            "max_new_tokens": self.max_new_tokens,
            "generation_config": self._generation_config(),
        }

    def _generation_config(self) -> dict[str, Any]:
        """The model's generation configuration, as far as it was set; tasks override parts of it."""
        config: dict[str, Any] = self.model.generation_config.to_diff_dict()
        return {
            name: value for name, value in config.items() if name not in ("transformers_version", "_from_model_config")
        }

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers in the order of the questions. A question that occurs twice, or that the log knows, is not asked again.

        A damaged row is logged, gets an empty answer with its `damage`, and does not end the run.
        """
        from tqdm import tqdm

        if self.max_new_tokens is not None:
            questions = [capped(question, self.max_new_tokens) for question in questions]
        keys: dict[int, Key] = {}  # by index of the question
        answers: dict[Key, Answer] = {}
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        bar = tqdm(total=len(questions), desc="answers", disable=not self.progress)
        window = max(WINDOW, 2 * self.max_batch_size)
        batches = prefetch(windows(enumerate(questions), window), lambda part: self._batches(part, keys, answers, bar))
        try:
            for batch, inputs in batches:
                for part in self._generated(batch, inputs):
                    if self.log is not None:
                        self.log.append(part)
                    answers.update((answer.key, answer) for answer in part)
                    bar.update(len(part))
        finally:
            batches.close()  # type: ignore[attr-defined]
            for module, training in modes:
                module.training = training
            bar.close()
        return [answers[keys[i]] for i in range(len(questions))]

    def _batches(
        self, window: list[tuple[int, Question]], keys: dict[int, Key], answers: dict[Key, Answer], bar: Any
    ) -> Iterator[tuple[list[Pending], dict[str, torch.Tensor]]]:
        """Runs in the prefetch thread: renders a window, and yields batches of what is still to be asked."""
        pending: dict[Key, Pending] = {}
        asked = set(keys.values())
        configuration = json.dumps(self._generation_config(), sort_keys=True, default=str)
        for index, question in window:
            try:
                prompt = self.renderer.render(question)
            except DamagedRow as error:
                keys[index] = self._damaged(question, str(error), answers)
                bar.update(1)
                continue
            digest = hashlib.sha256(f"{prompt.digest} {configuration}".encode()).hexdigest()[:20]
            prompt = replace(prompt, digest=digest)
            key = keys[index] = (question.task, question.doc_id, prompt.digest)
            if self.log is not None and key in self.log.known:
                answers[key] = self.log.known[key]
                bar.update(1)
            elif key not in asked and key not in pending:
                pending[key] = (question, prompt)
            else:
                bar.update(1)
        groups: dict[str, list[Pending]] = {}
        for item in pending.values():
            groups.setdefault(repr(sorted(item[0].generation.items())), []).append(item)
        for group in groups.values():
            lengths = [prompt.tokens + _max_new_tokens(question) for question, prompt in group]
            for indices in token_budget_batches(lengths, self.max_batch_size, self.batch_tokens):
                batch = [group[i] for i in indices]
                yield batch, self.renderer.inputs([prompt for _, prompt in batch])

    def _damaged(self, question: Question, damage: str, answers: dict[Key, Answer]) -> Key:
        logger.warning("%s, row %d cannot be asked: %s; it counts as wrong", question.task, question.doc_id, damage)
        self.damaged[question.task, question.doc_id] = damage
        answer = Answer(question.task, question.doc_id, "damaged", self.checkpoint, "", 0, damage=damage)
        answers[answer.key] = answer
        return answer.key

    def _generated(self, batch: list[Pending], inputs: dict[str, torch.Tensor] | None) -> Iterator[list[Answer]]:
        """Answers to a batch, in parts where it is too much for the memory."""
        rows = len(batch)
        try:
            if inputs is None:
                inputs = self.renderer.inputs([prompt for _, prompt in batch])
            yield self._generate(batch, inputs)
            return
        except torch.OutOfMemoryError as error:
            width = max(prompt.tokens + _max_new_tokens(question) for question, prompt in batch)
            if rows == 1:
                raise torch.OutOfMemoryError(
                    f"{batch[0][0].task}, row {batch[0][0].doc_id}: one question of {width} tokens does not fit into "
                    "memory; lower max_pixels"
                ) from error
        # Out of the handler, whose traceback keeps the tensors alive.
        self.batch_tokens = min(self.batch_tokens, rows // 2 * width)
        logger.warning(
            "out of memory with %d rows of %d tokens: going on with %d tokens", rows, width, self.batch_tokens
        )
        inputs = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        for half in (batch[: rows // 2], batch[rows // 2 :]):
            yield from self._generated(half, None)

    @torch.no_grad()
    def _generate(self, batch: list[Pending], inputs: dict[str, torch.Tensor]) -> list[Answer]:
        settings = generation_settings(batch[0][0].generation)
        placed = {name: value.to(self.model.device) for name, value in inputs.items()}
        output = self.model.generate(**placed, **settings, pad_token_id=self.tokenizer.pad_token_id, use_cache=True)
        generated = output[:, inputs["input_ids"].shape[1] :].tolist()
        ends = _end_tokens(self.model)
        answers = []
        for (question, prompt), ids in zip(batch, generated, strict=True):
            length = next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
            text = self.tokenizer.decode(ids[:length], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            answers.append(
                Answer(question.task, question.doc_id, prompt.digest, self.checkpoint, text, length, prompt.text)
            )
        return answers


def capped(question: Question, max_new_tokens: int) -> Question:
    """The question with at most `max_new_tokens` for its answer."""
    allowed = min(_max_new_tokens(question), max_new_tokens)
    return replace(question, generation={**question.generation, "max_new_tokens": allowed})


def generation_settings(wanted: dict[str, Any]) -> dict[str, Any]:
    """Settings of `generate` out of what a task asks for: greedy unless it asks for sampling.

    `until` is not used, as in lmms-eval's own Qwen wrapper: answers end at the end token.
    """
    temperature = wanted.get("temperature") or 0
    sampled = bool(wanted.get("do_sample", temperature > 0)) and temperature > 0
    penalty = wanted.get("repetition_penalty")  # where a task asks for none, the checkpoint's own holds
    return {
        "max_new_tokens": int(wanted.get("max_new_tokens", 128)),
        "num_beams": int(wanted.get("num_beams") or 1),
        "do_sample": sampled,
        "temperature": temperature if sampled else None,
        "top_p": wanted.get("top_p") if sampled else None,
        "top_k": wanted.get("top_k") if sampled else None,
        **({} if penalty is None else {"repetition_penalty": float(penalty)}),
    }


def _max_new_tokens(question: Question) -> int:
    limit: int = generation_settings(question.generation)["max_new_tokens"]
    return limit


def _end_tokens(model: Any) -> set[int]:
    end = model.generation_config.eos_token_id
    return set(end) if isinstance(end, (list, tuple)) else {end}
