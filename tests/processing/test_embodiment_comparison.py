"""A known robot's data is compared with what the checkpoint knows, and every disagreement names what can be done."""

import copy

import numpy as np
import pytest

from syvla.processing.embodiment_comparison import compare_embodiment

ROBOT = {
    "state_dim": 4, "action_dim": 4, "control_hz": 30.0, "normalization": {"state": "mean_std", "action": "mean_std"},
    **{f"{kind}_names": ["shoulder", "elbow", "wrist", "gripper"] for kind in ("state", "action")},
    **{f"{kind}_units": ["deg", "deg", "deg", ""] for kind in ("state", "action")},
    "statistics": {kind: {"mean": [10.0, 40.0, -20.0, 0.5], "std": [20.0, 25.0, 30.0, 0.4]} for kind in ("state", "action")},
}  # fmt: skip


def data(**changes) -> dict:
    return {**copy.deepcopy(ROBOT), **changes}


def kinds(**changes) -> list[str]:
    return [found.kind for found in compare_embodiment(ROBOT, data(**changes))]


def test_the_same_robot_agrees():
    assert kinds() == []
    assert compare_embodiment(ROBOT, {}) == [], "what the data does not say is not compared"
    assert compare_embodiment({"state_dim": 4}, data()) == [], "nor what the checkpoint does not say"


def test_another_task_of_the_same_robot_agrees():
    """Other places, smaller motion, one joint at rest."""
    task = {"mean": [40.0, 10.0, 15.0, 0.9], "std": [5.0, 12.0, 0.0, 0.3]}
    assert kinds(statistics={"state": task, "action": task}) == []


def test_radians_for_degrees():
    radians = {kind: {key: np.radians(values).tolist() for key, values in ROBOT["statistics"][kind].items()}
               for kind in ("state", "action")}  # fmt: skip
    found = compare_embodiment(ROBOT, data(statistics=radians))
    assert [disagreement.kind for disagreement in found] == ["statistics", "statistics"]
    assert "state: the data's spreads are 0.0175 of the checkpoint's in the median" in str(found[0])
    assert "convert the data to the checkpoint's units first; or give the data another" in str(found[0])
    said = compare_embodiment(ROBOT, data(state_units=["rad"] * 3 + [""]))
    assert [disagreement.kind for disagreement in said] == ["units"]
    assert said[0].choices == ("convert_units", "new_embodiment", "recompute_statistics")


def test_joints_in_another_order():
    names = ROBOT["state_names"][::-1]
    (found,) = compare_embodiment(ROBOT, data(state_names=names))
    assert found.kind == "names"
    assert "state: the same dimensions in another order" in found.message
    assert "reorder" in found.choices
    (found,) = compare_embodiment(ROBOT, data(action_names=["a", "b", "c", "d"]))
    assert "accept" in found.choices


def test_another_rate():
    (found,) = compare_embodiment(ROBOT, data(control_hz=15.0))
    assert str(found) == (
        "rate: the checkpoint acts 30 times a second, the data 15 times. Choose: resample the data to the checkpoint's rate "
        'by "control_hz": 30; or give the data another "embodiment", which gets names and statistics of its own; or keep the '
        'checkpoint\'s, although the data differs, by "accept": ["rate"]'
    )
    assert kinds(control_hz=29.97) == []


def test_another_normalization_and_other_deltas():
    assert kinds(normalization={"state": "mean_std", "action": "quantile"}) == ["normalization"]
    assert kinds(delta_actions=[0, 1, 2, -1]) == ["delta_actions"]
    assert kinds(delta_actions=None) == []


def test_a_dimension_far_away_is_named():
    away = copy.deepcopy(ROBOT["statistics"])
    away["state"]["mean"][2] = 300.0
    (found,) = compare_embodiment(ROBOT, data(statistics=away))
    assert (
        "state: the data lies far outside the checkpoint's range: wrist (-20 +- 30 in the checkpoint, 300 +- 30)"
        in str(found)
    )
    away = copy.deepcopy(ROBOT["statistics"])
    away["action"]["std"][3] = 100.0
    assert "gripper" in str(compare_embodiment(ROBOT, data(statistics=away))[0])


@pytest.mark.parametrize("kind", ["state", "action"])
def test_dimensions(kind):
    (found,) = compare_embodiment(ROBOT, data(**{f"{kind}_dim": 6}))
    assert str(found).startswith(f"dimensions: {kind}: the checkpoint has 4, the data 6. Choose: give the data another")
