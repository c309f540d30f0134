"""Sub-tasks copied to where the other episode's motion corresponds."""

import numpy as np
import pytest
from dataset_recordings import record

from syvla.processing.annotation.alignment import matching_frames, transferred
from syvla.processing.annotation.annotator import Annotator
from syvla.processing.annotation.copying import copy_subtasks, parse_episodes
from syvla.processing.annotation.episode_data import EpisodeData
from syvla.processing.annotation.episode_view import MotionScales


def test_episodes_are_named_by_numbers_and_ranges():
    assert parse_episodes("3, 7-9 3", 10) == [3, 7, 8, 9]
    for wrong in ("10", "9-7", "a", "-1", "1-99999999999"):
        with pytest.raises(ValueError, match="expected numbers from 0 to 9"):
            parse_episodes(wrong, 10)


def test_a_slower_copy_of_a_motion_matches_at_the_same_poses():
    source = np.linspace(0, 1, 50)[:, None]
    target = np.linspace(0, 1, 99)[:, None]  # half as fast: pose k of the source is frame 2k
    assert np.abs(np.array(matching_frames(source, target, [0, 10, 25, 49])) - [0, 20, 50, 98]).max() <= 1


def test_a_pause_in_the_target_moves_what_follows():
    """The arm waits for 20 frames before frame 15, so what begins there begins 20 frames later."""
    states = np.stack([np.linspace(0, 1, 40), np.where(np.arange(40) < 25, 1.0, 0.0)], axis=1).astype(np.float32)
    paused = np.concatenate([states[:15], np.repeat(states[14:15], 20, axis=0), states[15:]])
    names, ranges = ["joint", "gripper"], np.array([1.0, 1.0])
    moved = transferred(((0, "reach"), (25, "close")), states, paused, names, ranges, 10.0)
    assert moved[0] == (0, "reach")
    assert moved[1][1] == "close"
    assert abs(moved[1][0] - 45) <= 1


@pytest.fixture
def annotator(tmp_path):
    opened = Annotator(EpisodeData(record(tmp_path / "four", (8, 8, 16, 8))))  # instructions: task 0, 1, 0, 1
    yield opened
    opened.close()


def copy(annotator, source, targets, *, replace=False, as_proposals=False):
    scales = MotionScales(annotator.data)
    return copy_subtasks(annotator, scales, source, targets, replace=replace, as_proposals=as_proposals)


def test_a_copy_is_one_step_and_spares_what_is_there(annotator):
    annotator.change("mark", {0: [[0, "a"], [4, "b"]], 3: [[1, "c"]]})
    assert copy(annotator, 0, "0-3") == [1, 2]
    assert annotator.subtasks(1) == ((0, "a"), (4, "b"))
    assert [text for _, text in annotator.subtasks(2)] == ["a", "b"]
    assert annotator.subtasks(3) == ((1, "c"),)
    annotator.undo()
    assert (annotator.subtasks(1), annotator.subtasks(2)) == ((), ())
    assert copy(annotator, 0, "3", replace=True) == [3]
    assert annotator.subtasks(3) == ((0, "a"), (4, "b"))


def test_copies_to_the_same_instruction_may_wait_as_proposals(annotator):
    annotator.change("mark", {0: [[0, "a"]]})
    assert copy(annotator, 0, "task", as_proposals=True) == [2]
    assert annotator.subtasks(2) == ()
    assert annotator.proposals.get(2).source == "copied from episode 0"


def test_what_cannot_be_copied_is_named(annotator):
    with pytest.raises(ValueError, match="episode 0 has no sub-tasks to copy"):
        copy(annotator, 0, "1")
    annotator.change("mark", {0: [[0, "a"]], 1: [[0, "a"]]})
    with pytest.raises(ValueError, match="no episode is left"):
        copy(annotator, 0, "0, 1")
