"""The rule judge reads words, and the three accuracies of HallusionBench follow from its verdicts."""

import random

import pytest

from syvla.evaluation.vlm_benchmarks.hallusion_accuracy import hallusion_accuracies
from syvla.evaluation.vlm_benchmarks.synthetic_rows import hallusion_rows
from syvla.evaluation.vlm_benchmarks.yes_no_rule import rule_verdict, yes_or_no


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes", "yes"),
        ("yes.", "yes"),
        ("**Yes**, it is", "yes"),
        ("NO!", "no"),
        ("No, the eyes differ.", "no"),
        ("Answer: no", "no"),
        ("The answer is yes", "yes"),
        ("yes_no", None),
        ("Yes and no", None),
        ("Nobody knows", None),
        ("I cannot tell from the eyes", None),
        ("It is not", None),
        ("", None),
    ],
)
def test_words_decide(answer, said):
    assert yes_or_no(answer) == said


@pytest.mark.parametrize("truth", ["1", 1])
def test_truth_may_be_text_or_number(truth):
    assert rule_verdict("Yes", truth) == "correct"
    assert rule_verdict("No", truth) == "incorrect"
    assert rule_verdict("Perhaps", truth) == "unclear"


def test_constant_answers_get_half_of_the_answers_and_no_group():
    rows = hallusion_rows(random.Random(0), 40)
    for answer in ("Yes", "No"):
        scores = hallusion_accuracies(rows, [rule_verdict(answer, row["gt_answer"]) for row in rows])
        assert scores == {"aAcc": 50.0, "qAcc": 0.0, "fAcc": 0.0, "mean": pytest.approx(50 / 3)}
    assert set(hallusion_accuracies(rows, ["correct"] * 40).values()) == {100.0}


def test_one_wrong_answer_costs_its_question_and_its_figure():
    rows = hallusion_rows(random.Random(0), 16)  # 8 questions, 8 figures
    verdicts = ["correct"] * 15 + ["incorrect"]
    scores = hallusion_accuracies(rows, verdicts)
    assert scores["aAcc"] == 100 * 15 / 16
    assert scores["qAcc"] == scores["fAcc"] == 100 * 7 / 8


def test_not_knowing_is_right_only_where_there_is_no_figure():
    row = {"category": "VS", "subcategory": "map", "set_id": "0", "figure_id": "0", "question_id": "0"}
    with_figure = {**row, "figure_id": "1"}
    scores = hallusion_accuracies([row, with_figure], ["unclear", "unclear"])
    assert scores["aAcc"] == 50.0
    assert scores["fAcc"] == 0.0
    assert hallusion_accuracies([row], ["unclear"])["aAcc"] == 100.0
