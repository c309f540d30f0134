"""The benchmark of the cleaning filters: no false alarm on clean teleoperation, and injected faults are found."""

import json
from pathlib import Path

import pytest

from benchmarks import cleaning
from benchmarks.teleoperation import ROBOTS

RESULT = Path(cleaning.__file__).parent / "results" / "cleaning.json"


@pytest.mark.parametrize("name", ["one arm, gripper", "arm by pose"])
def test_clean_teleoperation_keeps_its_chunks_and_faults_are_found(name):
    result = cleaning.measure(name, episodes=6, seed=3)
    assert result["false_alarms"]["action_jump"]["frames"] <= 0.002 * result["frames"]
    assert result["full_chunks_kept"] >= 0.95 * result["full_chunks"]
    assert result["recall"]["zeros for one frame"] > 0.5
    for fault in ("NaN", "no motion for 4 s", "frozen picture for 3 s", "black pictures, a fifth"):
        assert result["recall"][fault] == 1.0


def test_the_published_result_holds_what_the_command_writes():
    published = json.loads(RESULT.read_text())
    assert set(published["robots"]) == set(ROBOTS)
    for robot in published["robots"].values():
        assert robot["full_chunks_kept"] >= 0.99 * robot["full_chunks"]
