"""VLMEvalKit's prompts word by word, and images where their own numbers stand."""

import pytest

from syvla.evaluation.vlm_benchmarks.vlmevalkit_prompts import placed_images, question_content

IMAGES = {f"image_{k}": f"picture {k}" for k in range(1, 8)}


def parts(name, row):
    return [part.get("text", part.get("image")) for part in question_content(name, row)]


def test_every_benchmark_is_asked_in_vlmevalkits_words():
    picture = {"image": "picture", "question": "Is it red?"}
    assert parts("docvqa", picture) == ["picture", "Is it red?\nAnswer the question using a single word or phrase."]
    assert parts("hallusionbench", picture) == ["picture", "Is it red?"]
    mme = {"image": "picture", "question": "Is it red? Please answer yes or no."}
    assert parts("mme", mme) == ["picture", "Is it red? Please answer yes or no."]
    ai2d = {"image": "picture", "question": "Which?", "options": ["left", "right"]}
    expected = (
        "Question: Which?\nOptions:\nA. left\nB. right\nPlease select the correct answer from the options above. \n"
    )
    assert parts("ai2d", ai2d) == ["picture", expected]
    mmmu = {"question": "How many in <image 1>?", "options": "['1', '2']", "question_type": "multiple-choice", **IMAGES}
    assert parts("mmmu", mmmu) == [
        "Question: How many in ",
        "picture 1",
        "?\nOptions:\nA. 1\nB. 2\nPlease select the correct answer from the options above. \n",
    ]
    assert parts("mmmu", {**mmmu, "question_type": "open", "options": "[]"})[-1] == "?\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Look at <image 1>. What is in <image 1> alone?", ["Look at ", 1, ". What is in ", 1, " alone?"]),
        ("A. <image 2>\nB. <image 1>", ["A. ", 2, "\nB. ", 1]),
        ("<image 3><image 7>", [3, 7]),
        ("no image", ["no image"]),
    ],
)
def test_images_stand_where_their_numbers_do(text, expected):
    placed = [part.get("text", part.get("image")) for part in placed_images(text, IMAGES)]
    assert placed == [f"picture {part}" if isinstance(part, int) else part for part in expected]


def test_lmms_eval_shows_the_same_as_before_where_it_was_right_and_right_where_it_was_not(lmms_eval, rows, data_root):
    from lmms_eval.tasks.mmmu.utils import mmmu_doc_to_messages

    from syvla.evaluation.vlm_benchmarks.mmmu_images import lmms_eval_messages, misplaced_by_lmms_eval

    specific = {
        "multiple_choice_prompt": "Answer with the option's letter from the given choices directly.",
        "open_ended_prompt": "Answer the question using a single word or phrase.",
        "prompt_type": "format",
        "format": "default",
    }

    def shown(messages):
        return [part.get("text", part.get("url") and part["url"].tobytes()) for part in messages[0]["content"]]

    for row in rows["mmmu"]:
        assert not misplaced_by_lmms_eval(row)
        assert shown(lmms_eval_messages(row, specific)) == shown(mmmu_doc_to_messages(row, specific))
    two = next(row for row in rows["mmmu"] if row["image_2"] is not None)
    first, second = (two[name].convert("RGB").tobytes() for name in ("image_1", "image_2"))
    twice = {**two, "question": "Look at <image 1>. What is in <image 1> alone?", "options": "['x', 'y']"}
    assert misplaced_by_lmms_eval(twice)
    assert shown(lmms_eval_messages(twice, specific))[:4] == ["Look at", first, ". What is in", first]
    assert "What is in" not in str([p for p in shown(mmmu_doc_to_messages(twice, specific)) if isinstance(p, str)])
    swapped = {**two, "question": "Which is red?", "options": "['<image 2>', '<image 1>']"}
    assert misplaced_by_lmms_eval(swapped)
    assert [p for p in shown(lmms_eval_messages(swapped, specific)) if isinstance(p, bytes)] == [second, first]
    assert [p for p in shown(mmmu_doc_to_messages(swapped, specific)) if isinstance(p, bytes)] == [first, second]
