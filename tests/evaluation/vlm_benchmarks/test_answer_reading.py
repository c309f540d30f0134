"""Readings and scores against VLMEvalKit's own, recorded from it case by case, and against values worked out by hand."""

import json
from pathlib import Path

import pytest

from syvla.evaluation.vlm_benchmarks.answer_reading import anls, read_option, read_yes_no
from syvla.evaluation.vlm_benchmarks.vlmevalkit_scores import reading, scores

RECORDED = json.loads((Path(__file__).parent / "vlmevalkit_readings.json").read_text(encoding="utf-8"))
OPTIONS = {"A": "red", "B": "green", "C": "blue circle", "D": "a square"}


def test_the_record_holds_every_kind_of_reading():
    read = {said for _, _, said in RECORDED["choice"]}
    assert read == {"A", "B", "C", "D", "Z", None}
    assert {said for _, said in RECORDED["yes_no"]} == {"Yes", "No", None}
    assert len(RECORDED["choice"]) > 500
    assert len({value for *_, value in RECORDED["anls"]}) > 5


def test_options_are_read_as_vlmevalkit_reads_them():
    differing = [
        (options, answer, said)
        for options, answer, said in RECORDED["choice"]
        if read_option(answer, RECORDED["options"][options]) != said
    ]
    assert differing == []


def test_yes_and_no_are_read_as_vlmevalkit_reads_them():
    assert [(answer, said) for answer, said in RECORDED["yes_no"] if read_yes_no(answer) != said] == []


def test_anls_is_vlmevalkits():
    for answer, truths, value in RECORDED["anls"]:
        assert anls(answer, truths) == pytest.approx(value, abs=1e-12), (answer, truths)


@pytest.mark.parametrize("answer", ["{}", "Answer: {}", "{}) blue", "{}, because", "**{}**", "{})", "\\boxed{{{}}}"])
def test_phrasings_of_a_letter_that_lmms_eval_does_not_read(answer):
    for letter in OPTIONS:
        assert read_option(answer.format(letter), OPTIONS) == letter


def test_mme_is_scored_as_vlmevalkit_scores_it():
    recorded = RECORDED["mme"]
    rows = [dict(zip(("category", "question_id", "answer"), row, strict=False)) for row in recorded["rows"]]
    readings = [reading("mme", row, recorded["rows"][i][3]) for i, row in enumerate(rows)]
    parts = scores("mme", rows, readings)
    assert parts["perception"] == pytest.approx(recorded["perception"], abs=1e-9)
    assert parts["cognition"] == pytest.approx(recorded["cognition"], abs=1e-9)
    assert recorded["perception"] > 100


def test_hallusionbench_is_scored_as_vlmevalkit_scores_it():
    recorded = RECORDED["hallusion"]
    names = ("category", "subcategory", "set_id", "figure_id", "question_id")
    rows = [
        dict(zip(names, row, strict=False)) | {"gt_answer": "1" if row[5] == "Yes" else "0"} for row in recorded["rows"]
    ]
    readings = [reading("hallusionbench", row, recorded["rows"][i][6]) for i, row in enumerate(rows)]
    parts = scores("hallusionbench", rows, readings)
    for name in ("aAcc", "qAcc", "fAcc"):
        assert parts[name] == pytest.approx(recorded[name], abs=1e-9)
        assert 0 < recorded[name] < 100


def test_an_open_question_of_mmmu_is_right_where_its_answer_occurs():
    row = {"question_type": "open", "options": "[]", "answer": "24 cm"}
    readings = [reading("mmmu", row, answer) for answer in ("24 cm", "it is 24 CM", "24", "B", "", "x" * 200 + "24 cm")]
    assert readings == ["A", "A", None, "B", None, None]
    assert scores("mmmu", [row] * 6, readings) == {"accuracy": pytest.approx(100 * 2 / 6)}


def test_an_unreadable_answer_is_wrong_and_never_drawn():
    row = {"question_type": "multiple-choice", "options": "['red', 'blue']", "answer": "A"}
    assert scores("mmmu", [row] * 50, [reading("mmmu", row, "")] * 50) == {"accuracy": 0.0}


def test_a_picture_of_mme_with_one_question_is_an_error():
    row = {"category": "OCR", "question_id": "1.png", "answer": "Yes"}
    with pytest.raises(ValueError, match="MME: a question lacks the second one of its pair"):
        scores("mme", [row], ["Yes"])
