"""HallusionBench's three accuracies (Guan et al. 2024, section 4) out of verdicts on single answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .yes_no_rule import Verdict

METRICS = ("aAcc", "qAcc", "fAcc")
HEADLINES = (*METRICS, "mean")


def hallusion_accuracies(rows: Sequence[dict[str, Any]], verdicts: Sequence[Verdict]) -> dict[str, float]:
    """All accuracies in percent.

    aAcc counts answers; qAcc counts questions answered right for all their figures; fAcc counts figures all of whose
    questions are answered right; mean is the mean of the three, which leaderboards print. Where a question has no figure
    (category VS, figure 0), not knowing is right, and there is no figure to count.

    Args:
        rows: `category, subcategory, set_id, figure_id, question_id` of each answer.
        verdicts: Verdict on each answer.
    """
    answers: list[bool] = []
    questions: dict[tuple[str, ...], bool] = {}
    figures: dict[tuple[str, ...], bool] = {}
    for row, verdict in zip(rows, verdicts, strict=True):
        without_figure = row["category"] == "VS" and str(row["figure_id"]) == "0"
        right = verdict == "correct" or (without_figure and verdict == "unclear")
        answers.append(right)
        group = (row["category"], row["subcategory"], str(row["set_id"]))
        question = (*group, str(row["question_id"]))
        questions[question] = questions.get(question, True) and right
        if not without_figure:
            figure = (*group, str(row["figure_id"]))
            figures[figure] = figures.get(figure, True) and right
    result = {
        name: 100.0 * sum(values) / len(values) if values else 0.0
        for name, values in zip(METRICS, (answers, list(questions.values()), list(figures.values())), strict=True)
    }
    return {**result, "mean": sum(result.values()) / len(METRICS)}
