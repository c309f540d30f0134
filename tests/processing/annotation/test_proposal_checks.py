"""What a model answered, and whether it fits the instruction."""

import json

import pytest

from syvla.processing.annotation.proposal_checks import fit_problems, parse_answer

TASKS = ["lift the red cube", "lift the blue cube", "open the drawer"]


def answer(*subtasks):
    return json.dumps({"subtasks": [{"start": start, "text": text} for start, text in subtasks]})


def test_an_answer_becomes_frames_and_snaps_to_the_motion():
    text = "Here:\n```json\n" + answer((0.0, "reach"), (1.42, " grasp "), (2.5, "grasp"), (2.9, "lift")) + "\n```"
    assert parse_answer(text, 40, 10, [0, 16, 31]) == ((0, "reach"), (16, "grasp"), (31, "lift"))
    assert parse_answer(answer((0.04, "reach"), (1.16, "lift")), 40, 10, []) == ((0, "reach"), (12, "lift"))
    near = answer((0.0, "reach"), (0.2, "close"), (1.5, "lift"), (1.8, "hold"))
    assert [frame for frame, _ in parse_answer(near, 40, 10, [0, 16])] == [0, 2, 16, 18], "each boundary takes one"
    assert parse_answer(answer((3.99, "end")), 40, 10, []) == ((39, "end"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("I see a robot.", "expected a JSON object, got 'I see a robot.'"),
        ('{"steps": []}', "1 to 20 sub-tasks"),
        (answer(), "1 to 20 sub-tasks"),
        (answer(*[(i / 10, str(i)) for i in range(21)]), "1 to 20 sub-tasks"),
        (answer((4.0, "a")), "expected starts from 0 to 4.00 s"),
        (answer((-0.1, "a")), "expected starts"),
        (answer(("0", "a")), "expected starts"),
        (answer((True, "a")), "expected starts"),
        (answer((float("nan"), "a")), "expected starts"),
        (answer((1.0, "a"), (1.01, "b")), "two sub-tasks begin at 1.00 s"),
        (answer((0, "a\nb")), "without line breaks"),
        (answer((0, "<b>" * 200)), "1 to 300"),
        ("{" * 5000 + "}" * 5000, "expected a JSON object"),
        ('{"subtasks": [3]}', "expected starts"),
    ],
)
def test_what_cannot_be_used_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_answer(text, 40, 10, [])


def problems(*subtasks, task="lift the red cube"):
    return fit_problems(subtasks, task, TASKS, 40, 10)


def test_subtasks_that_fit_have_no_problem():
    assert (
        problems((0, "reach the red cube with the left arm"), (10, "grasp the red cube"), (20, "lift the cube")) == []
    )
    assert problems((0, "reach the drawer"), (20, "pull the drawer open"), task="open the drawer") == []


@pytest.mark.parametrize(
    ("subtasks", "problem"),
    [
        (((0, "reach"), (10, "grasp it")), "none of the instruction's words appears: cube, lift, red"),
        (((0, "reach the blue cube"), (10, "lift it")), "speaks of 'blue', the instruction of 'red'"),
        (((0, "Lift the red cube."),), "repeats the instruction and divides nothing"),
        (((6, "reach the cube"), (20, "lift")), "nothing before 0.60 s"),
        (((0, "reach the cube"), (39, "lift")), "'lift' at 3.90 s takes 0.10 s"),
        (((0, "reach the cube " + "very " * 13 + "slowly"), (20, "lift")), "has 17 words, more than 15"),
    ],
)
def test_what_speaks_against_a_proposal_is_said(subtasks, problem):
    (found,) = problems(*subtasks)
    assert problem in found
