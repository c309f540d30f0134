"""Sub-tasks out of JSON and out of stored rows."""

import numpy as np
import pytest

from syvla.processing.annotation.subtasks import checked_subtasks, subtask_rows, subtasks_of_rows

TIMES = np.float32(np.arange(5) / 10).astype(np.float64)


def row(time, text, style="subtask"):
    return {"role": "assistant", "content": text, "style": style, "timestamp": time, "camera": None, "tool_calls": None}


def test_subtasks_come_in_order_and_without_spaces():
    assert checked_subtasks([[3, " lift it "], [0, "reach"]], 5) == ((0, "reach"), (3, "lift it"))
    assert checked_subtasks([], 5) == ()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "expected a list"),
        ([["0", "a"]], "pairs"),
        ([[True, "a"]], "pairs"),
        ([[5, "a"]], "frame 5 does not exist; the episode has frames 0 to 4"),
        ([[-1, "a"]], "frame -1 does not exist"),
        ([[1, "a"], [1, "b"]], "frame 1 has two"),
        ([[1, " "]], "1 to 300 printable characters"),
        ([[1, "a\nb"]], "without line breaks"),
        ([[1, "a" * 301]], "1 to 300"),
        ([[1, 7]], "1 to 300"),
        ([[0, "a"]] * 501, "at most 500"),
    ],
)
def test_what_is_no_list_of_subtasks_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        checked_subtasks(value, 5)


def test_stored_rows_begin_at_the_first_frame_at_which_the_reader_has_them():
    rows = [row(0.25, "between"), row(np.float32(0.1), "exact"), row(0.0, "a plan", "plan")]
    assert subtasks_of_rows(rows, TIMES) == (((1, "exact"), (3, "between")), [])


def test_rows_that_hold_for_no_frame_are_named():
    subtasks, notes = subtasks_of_rows([row(0.31, "first"), row(0.35, "second"), row(0.9, "late")], TIMES)
    assert subtasks == ((4, "second"),)
    assert notes == ["'first' holds for no frame: another one begins before the next",
                     "'late' begins at 0.90 s, after the last frame"]  # fmt: skip


def test_rows_carry_the_frames_own_times():
    (written,) = subtask_rows([(3, "lift")], TIMES)
    assert written == row(float(np.float32(0.3)), "lift")
    assert subtasks_of_rows([written], TIMES) == (((3, "lift"),), [])
