"""One benchmark under the protocol `vlmevalkit`: asks the rows, reads the answers, and scores them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .benchmark_report import BenchmarkResult, result_of
from .benchmarks import Benchmark
from .image_rows import decoded_row, read_rows, rgb
from .judge_server import JudgeServer
from .prompts import Question
from .protocols import VLMEVALKIT
from .vlmevalkit_prompts import question_content
from .vlmevalkit_scores import choices, reading, scores

if TYPE_CHECKING:
    from .answer_generation import AnswerGenerator


def run_vlmevalkit(
    benchmark: Benchmark,
    generator: AnswerGenerator,
    data_root: str | Path | None,
    limit: int | None,
    headline: str,
    judge: JudgeServer | None,
) -> BenchmarkResult | None:
    """Result of a benchmark, on the first process; None on the others. Processes share the rows.

    Args:
        benchmark: Which.
        generator: Answers the questions.
        data_root: Folder with the datasets; None: the Hub, or its cache.
        limit: First rows to ask; None: all.
        headline: HallusionBench's number.
        judge: Reads what the rules cannot; None: that is wrong.
    """
    started = time.monotonic()
    data = read_rows(benchmark, data_root)
    count = len(data) if limit is None else min(limit, len(data))
    rank, processes = _place()
    settings = {"max_new_tokens": VLMEVALKIT.max_new_tokens, "repetition_penalty": VLMEVALKIT.repetition_penalty}
    questions = [
        Question(benchmark.task, i, partial(_chat, benchmark.name, data, i), settings)
        for i in range(rank, count, processes)
    ]
    texts = {answer.doc_id: answer.text for answer in generator.answer(questions)}
    gathered = gather((texts, generator.damaged))
    if rank != 0:
        return None
    answers = {i: text for part, _ in gathered for i, text in part.items()}
    damaged = {i: why for _, part in gathered for (task, i), why in part.items() if task == benchmark.task}
    images = [name for name in data.column_names if name == "image" or name.startswith("image_")]
    rows = list(data.select(range(count)).remove_columns(images))
    readings = [reading(benchmark.name, rows[i], answers[i]) for i in range(count)]
    unreadable = sum(said is None for said in readings)
    if judge is not None:
        readings = _judged(benchmark.name, rows, [answers[i] for i in range(count)], readings, judge)
    parts = scores(benchmark.name, rows, readings)
    return result_of(benchmark, parts, count, unreadable / max(count, 1), time.monotonic() - started, headline, damaged)


def gather(mine: Any) -> list[Any]:
    """What every process has, on all of them."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [mine]
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, mine)
    return everyone


def _place() -> tuple[int, int]:
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _chat(name: str, data: Any, index: int) -> list[dict[str, Any]]:
    row = decoded_row(data, index)
    content = [
        {"type": "image", "image": rgb(part["image"])} if part["type"] == "image" else part
        for part in question_content(name, row)
    ]
    return [{"role": "user", "content": content}]


def _judged(
    name: str,
    rows: Sequence[dict[str, Any]],
    answers: Sequence[str],
    readings: Sequence[str | None],
    judge: JudgeServer,
) -> list[str | None]:
    """The readings, with the judge's choice where the rules had none and there is something to choose among."""
    asked = [i for i, said in enumerate(readings) if said is None and choices(name, rows[i]) and answers[i].strip()]
    chosen = judge.choices([(rows[i]["question"], choices(name, rows[i]), answers[i]) for i in asked])
    result = list(readings)
    for i, choice in zip(asked, chosen, strict=True):
        result[i] = choice
    return result
