"""VLMEvalKit's scores of the five benchmarks, out of rows and answers."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Any

from .answer_reading import anls, read_option, read_yes_no
from .hallusion_accuracy import hallusion_accuracies
from .vlmevalkit_prompts import options_of

Row = dict[str, Any]
Reading = str | None

PERCEPTION = ("OCR", "artwork", "celebrity", "color", "count", "existence", "landmark", "position", "posters", "scene")
COGNITION = ("code_reasoning", "commonsense_reasoning", "numerical_calculation", "text_translation")


def reading(name: str, row: Row, answer: str) -> Reading:
    """What an answer to a row of benchmark `name` says: an option's letter, "Yes", "No", a text; None where unreadable."""
    if name in ("mme", "hallusionbench"):
        return read_yes_no(answer)
    if name in ("ai2d", "mmmu"):
        return read_option(answer, _choices(name, row))
    return answer if answer.strip() else None


def choices(name: str, row: Row) -> dict[str, str]:
    """What a judge may choose among for a row of benchmark `name`, text by name; none for a question without options."""
    if name in ("mme", "hallusionbench"):
        return {"Yes": "yes", "No": "no"}
    return _choices(name, row) if name in ("ai2d", "mmmu") else {}


def scores(name: str, rows: Sequence[Row], readings: Sequence[Reading]) -> dict[str, float]:
    """The parts of a benchmark's number in the paper's units, from readings that may be None.

    Args:
        name: Name of the benchmark.
        rows: Its rows, without their images.
        readings: Result of `reading` for each row.

    Raises:
        ValueError: If a question of MME lacks the second one of its pair.
    """
    return _SCORES[name](rows, readings)


def _choices(name: str, row: Row) -> dict[str, str]:
    """An open question of MMMU is read as a choice between its answer (A) and others (B)."""
    if name == "mmmu" and row["question_type"] != "multiple-choice":
        return {"A": str(row["answer"]), "B": "Other Answers"}
    return options_of(name, row)


def _truth(name: str, row: Row) -> str:
    if name == "ai2d":
        return "ABCDEFGHIJ"[int(row["answer"])]
    if name == "mmmu":  # an open question's answer is choice A, unless it is a capital letter itself
        answer = str(row["answer"])
        return answer if answer in tuple(string.ascii_uppercase) else "A"
    if name == "mme":
        return str(row["answer"])
    return "Yes" if str(row["gt_answer"]) == "1" else "No"


def _accuracy(name: str) -> Callable[[Sequence[Row], Sequence[Reading]], dict[str, float]]:
    def accuracy(rows: Sequence[Row], readings: Sequence[Reading]) -> dict[str, float]:
        right = sum(said == _truth(name, row) for row, said in zip(rows, readings, strict=True))
        return {"accuracy": 100.0 * right / max(len(rows), 1)}

    return accuracy


def _docvqa(rows: Sequence[Row], readings: Sequence[Reading]) -> dict[str, float]:
    values = [anls(said or "", row["answers"]) for row, said in zip(rows, readings, strict=True)]
    return {"anls": 100.0 * sum(values) / max(len(values), 1)}


def _mme(rows: Sequence[Row], readings: Sequence[Reading]) -> dict[str, float]:
    """Per category the share of right answers plus the share of pictures with both questions right, each times 100."""
    pictures: dict[str, dict[str, list[bool]]] = {}
    for row, said in zip(rows, readings, strict=True):
        right = said == _truth("mme", row)
        pictures.setdefault(row["category"], {}).setdefault(row["question_id"], []).append(right)
    totals = {}
    for category, answers in pictures.items():
        if any(len(pair) != 2 for pair in answers.values()):
            raise ValueError("MME: a question lacks the second one of its pair; is the dataset complete?")
        single = [right for pair in answers.values() for right in pair]
        totals[category] = 100.0 * (sum(single) / len(single) + sum(map(all, answers.values())) / len(answers))
    parts = {}
    for part, categories in (("perception", PERCEPTION), ("cognition", COGNITION)):
        if any(category in totals for category in categories):
            parts[part] = sum(totals.get(category, 0.0) for category in categories)
    return parts


def _hallusion(rows: Sequence[Row], readings: Sequence[Reading]) -> dict[str, float]:
    verdicts = [
        "unclear" if said is None else "correct" if said == _truth("hallusionbench", row) else "incorrect"
        for row, said in zip(rows, readings, strict=True)
    ]
    return hallusion_accuracies(rows, verdicts)  # type: ignore[arg-type]


_SCORES: dict[str, Callable[[Sequence[Row], Sequence[Reading]], dict[str, float]]] = {
    "docvqa": _docvqa,
    "ai2d": _accuracy("ai2d"),
    "mmmu": _accuracy("mmmu"),
    "mme": _mme,
    "hallusionbench": _hallusion,
}
