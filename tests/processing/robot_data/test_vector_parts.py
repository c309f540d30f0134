"""States and actions from several features and slices; expected values come from the recording's own rule."""

import json

import numpy as np
import pytest
from dataset_recordings import record

from syvla.processing import RobotDataset, RobotDatasetWriter
from syvla.processing.robot_data.vector_parts import part_names, vector_parts

JOINTS = {"dtype": "float32", "shape": [3], "names": ["shoulder", "elbow", "wrist"]}
GRIP = {"dtype": "float32", "shape": [1], "names": ["width"]}
FEATURES = {
    "observation.state": {"dtype": "float32", "shape": [6], "names": None},
    "action": {"dtype": "float32", "shape": [4], "names": ["shoulder", "elbow", "wrist", "width"]},
    "observation.left": JOINTS,
    "observation.right": JOINTS,
    "observation.grip": GRIP,
    "observation.images.front": {"dtype": "image", "shape": [8, 8, 3], "names": ["height", "width", "channels"]},
}
GR00T = {
    "state": {"right_arm": {"start": 3, "end": 6}, "grip": {"start": 0, "end": 1, "original_key": "observation.grip"}},
    "action": {"gripper": {"start": 3, "end": 4, "absolute": True}, "arm": {"start": 0, "end": 3}},
    "video": {"front": {"original_key": "observation.images.front"}},
    "annotation": {"human.task_description": {"original_key": "task_index"}},
}


def values(step: int) -> dict[str, np.ndarray]:
    """Feature number and dimension are in the hundreds and the tens, the step in the ones."""
    return {
        "observation.state": 100 + 10 * np.arange(6) + step,
        "action": 200 + 10 * np.arange(4) + step,
        "observation.left": 300 + 10 * np.arange(3) + step,
        "observation.right": 400 + 10 * np.arange(3) + step,
        "observation.grip": 500 + np.array([step]),
    }


@pytest.fixture
def root(tmp_path):
    with RobotDatasetWriter(tmp_path / "set", fps=10, features=FEATURES, use_videos=False) as writer:
        for step in range(5):
            frame = {key: value.astype(np.float32) for key, value in values(step).items()}
            writer.add_frame({**frame, "observation.images.front": np.zeros((8, 8, 3), np.uint8)}, task="go")
        writer.save_episode()
    return tmp_path / "set"


def opened(root, **options) -> RobotDataset:
    return RobotDataset(root, embodiment="x", chunk_size=2, **options)


def test_features_and_slices_are_put_together(root):
    data = opened(
        root,
        state_key=["observation.right", {"key": "observation.left", "start": 1}, "observation.grip"],
        action_key=[{"key": "action", "start": 3}, {"key": "action", "end": 1}],
    )
    item = data[2]
    assert item["state"].tolist() == [402, 412, 422, 312, 322, 502]
    assert item["actions"].tolist() == [[232, 202], [233, 203]]
    assert data.state_names == [
        *(f"observation.right.{name}" for name in ("shoulder", "elbow", "wrist")),
        "observation.left.elbow",
        "observation.left.wrist",
        "observation.grip.width",
    ]
    assert data.action_names == ["width", "shoulder"]
    assert data.state_key == "observation.right + observation.left + observation.grip"
    assert (data.state_dim, data.action_dim) == (6, 2)
    assert data.statistics()["state"]["max"] == [404, 414, 424, 314, 324, 504]


def test_state_and_action_may_share_a_feature(root):
    data = opened(root, state_key="action", action_key=["action"])
    assert data[1]["state"].tolist() == data[1]["actions"][0].tolist() == [201, 211, 221, 231]


def test_the_parts_of_modality_json_are_taken(root):
    assert opened(root)[1]["state"].tolist() == [101, 111, 121, 131, 141, 151]
    (root / "meta" / "modality.json").write_text(json.dumps(GR00T))
    data = opened(root)
    assert data[1]["state"].tolist() == [131, 141, 151, 501]
    assert data[1]["actions"][0].tolist() == [231, 201, 211, 221]
    assert data.state_names == ["right_arm.0", "right_arm.1", "right_arm.2", "width"]
    assert data.action_names == ["width", "shoulder", "elbow", "wrist"]
    assert opened(root, state_key=["grip"], action_key=["arm"])[1]["actions"][0].tolist() == [201, 211, 221]
    assert opened(root, state_key=["observation.state"])[1]["state"].tolist() == [101, 111, 121, 131, 141, 151]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"state_key": ["observation.nose"]},
            r"state_key\[0\]: 'observation.nose' is no vector feature.*'observation.left'",
        ),
        ({"state_key": ["observation.images.front"]}, "is no vector feature"),
        ({"state_key": []}, "state_key: the list is empty"),
        (
            {"action_key": [{"key": "action", "end": 9}]},
            r"action_key\[0\]: expected dimensions within 0 to 4 .* got 0 to 9",
        ),
        ({"action_key": [{"key": "action", "start": 2, "end": 2}]}, "got 2 to 2"),
        ({"action_key": [{"key": "action", "start": "1"}]}, "got '1' to 4"),
        ({"action_key": [{"name": "action"}]}, r"action_key\[0\]: expected a name or"),
        ({"action_key": [3]}, r"action_key\[0\]: expected a name or"),
    ],
)
def test_parts_that_do_not_exist_are_refused(root, options, message):
    with pytest.raises(ValueError, match=message):
        opened(root, **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "modality.json: expected an object of objects"),
        ("{", "modality.json: .*restore the file"),
        ('{"state": {"arm": {"start": 0, "end": 99}}}', r"modality.json: state.arm: expected dimensions within 0 to 6"),
        ('{"state": {"arm": 3}}', r"state.arm: expected an object with start and end"),
        ('{"state": {"arm": {"original_key": "nose"}}}', r"state.arm: 'nose' is no vector feature"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
    ],
)
def test_a_modality_file_that_does_not_fit_is_refused(root, content, message):
    (root / "meta" / "modality.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        opened(root)


def test_the_whole_of_a_feature_is_what_it_was(tmp_path):
    data = opened(record(tmp_path / "set"))
    assert data[1]["state"].tolist() == [0, 1, 1]
    assert (data.state_names, data.action_names) == (["a", "b", "c"], ["x", "y"])


def test_a_part_without_names_has_none():
    parts = vector_parts("state", ["observation.left", "observation.state"], FEATURES, {})
    assert part_names(parts, FEATURES) is None
