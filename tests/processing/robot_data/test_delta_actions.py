"""Delta actions: the processor undoes what it did, statistics are those of the differences, and dimensions match by name."""

import numpy as np
import pytest
from dataset_recordings import frame, record

from syvla.modeling_syvla import SyVLAConfig
from syvla.processing import RobotDataset, build_tiny_processor
from syvla.processing.robot_data.delta_actions import delta_references

NAMES = ["shoulder", "elbow", "gripper"]


def processor_with(references, statistics=None):
    spread = {"mean": [0.2, -0.1], "std": [2.0, 0.5]}
    processor = build_tiny_processor(SyVLAConfig.tiny(embodiments={"arm": {"state_dim": 3, "action_dim": 2}}))
    state = {"mean": [0.0] * 3, "std": [1.0] * 3}
    processor.embodiments = {}
    processor.set_embodiment("arm", statistics or {"state": state, "action": spread}, delta_actions=references)
    return processor


def test_dimensions_match_by_name_else_by_number():
    assert delta_references(True, 3, 2, ["elbow", "gripper", "shoulder"], ["shoulder", "elbow"]) == [2, 0]
    assert delta_references(["elbow"], 3, 3, NAMES, NAMES) == [-1, 1, -1]
    assert delta_references([0, 1], 3, 3) == [0, 1, -1]
    assert delta_references(False, 3, 3, NAMES, NAMES) == [-1, -1, -1]


def test_a_mapping_says_which_state_dimension_an_action_dimension_is_relative_to():
    named = {"shoulder_target": "shoulder", "elbow_target": "elbow"}
    actions = ["elbow_target", "grip", "shoulder_target"]
    assert delta_references(named, 3, 3, NAMES, actions) == [1, -1, 0]
    assert delta_references({0: 4, 2: 1}, 5, 3) == [4, -1, 1]
    assert delta_references({"0": "4", "2": 1}, 5, 3) == [4, -1, 1]  # keys of JSON objects are texts
    assert delta_references({}, 5, 3) == [-1, -1, -1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((True, 2, 3, ["a", "b"], ["a", "b", "c"]), "'c' has no state dimension of that name"),
        ((True, 2, 3), "cannot be matched by number"),
        ((["nose"], 3, 3, NAMES, NAMES), "'nose' is no dimension"),
        (([3], 3, 3), "numbers from 0 to 2"),
        (({0: 5}, 5, 3), "numbers from 0 to 4 of the state's dimensions, got 5"),
        (({"nose": 0}, 3, 3, NAMES, NAMES), "'nose' is no dimension of the action"),
        (({0: "nose"}, 3, 3, NAMES, NAMES), "'nose' is no dimension of the state"),
        (({0: 1, "0": 2}, 3, 3), "dimension 0 of the action is given twice"),
    ],
)
def test_dimensions_without_a_counterpart_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        delta_references(*arguments)


def test_decoding_undoes_the_difference_to_the_state():
    processor = processor_with([2, -1])
    state = np.array([5.0, 6.0, 7.0], np.float32)
    actions = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    picture = np.zeros((32, 32, 3), np.uint8)
    batch = processor(images={"center": picture}, text="go", state=state, actions=actions, embodiment="arm")
    expected = (actions - [7.0, 0.0] - [0.2, -0.1]) / [2.0, 0.5]
    np.testing.assert_allclose(batch["actions"][0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        processor.decode_actions(batch["actions"][0], "arm", state), actions, rtol=1e-4, atol=1e-5
    )
    both = processor.decode_actions(np.stack([batch["actions"][0]] * 2), "arm", np.stack([state, state + 1]))
    np.testing.assert_allclose(both[1] - both[0], np.broadcast_to([1.0, 0.0], (8, 2)), rtol=1e-4, atol=1e-5)


def test_decoding_without_the_state_is_refused():
    with pytest.raises(ValueError, match="relative to it; pass the observed state"):
        processor_with([0, 1]).decode_actions(np.zeros((8, 2)), "arm")


def test_references_travel_with_the_processor(tmp_path):
    processor_with([2, -1]).save_pretrained(tmp_path)
    loaded = type(processor_with([2, -1])).from_pretrained(tmp_path)
    assert loaded.embodiments["arm"]["delta_actions"] == [2, -1]


@pytest.mark.parametrize("references", [[0], [0, 3], [0, -2]])
def test_references_that_do_not_fit_are_refused(references):
    with pytest.raises(ValueError, match="delta_actions: expected 2 state dimensions"):
        processor_with(references)


def test_statistics_are_those_of_the_differences_over_all_chunks(tmp_path):
    lengths = (5, 7)
    root = record(tmp_path / "data", lengths)
    dataset = RobotDataset(root, embodiment="arm", chunk_size=3)
    values = []
    for episode, length in enumerate(lengths):
        for start in range(length):
            state = frame(episode, start)["observation.state"]
            for step in range(start, min(start + 3, length)):
                values.append(frame(episode, step)["action"] - [state[1], 0])
    found = dataset.statistics([1, -1])["action"]
    np.testing.assert_allclose(found["mean"], np.mean(values, axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["std"], np.std(values, axis=0), rtol=1e-5)
    assert found["count"] == [len(values)]
