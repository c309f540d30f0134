"""Whose frames count as an expert's, and whose word decides about success."""

import numpy as np
import pytest

from syvla.processing import RobotDataset, RobotDatasetWriter
from syvla.training.retrieval.demonstrations import episode_rewards, human_frames
from syvla.training.rl.expert_samples import ExpertSamples


@pytest.fixture
def dataset(tmp_path):
    """`dataset(*episodes)`: of each the flags, per frame, whether a person acted; None leaves the column out."""

    def make(*episodes, column=True):
        features = {
            "observation.images.head": {"dtype": "image", "shape": [8, 8, 3], "names": ["height", "width", "channels"]},
            "observation.state": {"dtype": "float32", "shape": [2], "names": None},
            "action": {"dtype": "float32", "shape": [2], "names": None},
        }
        if column:
            features["intervention"] = {"dtype": "bool", "shape": [1], "names": None}
        root = tmp_path / "set"
        with RobotDatasetWriter(root, fps=10, features=features, use_videos=False) as writer:
            for flags in episodes:
                for step, flag in enumerate(flags):
                    frame = {
                        "observation.images.head": np.full((8, 8, 3), step, np.uint8),
                        "observation.state": np.full(2, step, np.float32),
                        "action": np.full(2, step, np.float32),
                    }
                    if column:
                        frame["intervention"] = np.array([bool(flag)])
                    writer.add_frame(frame, "reach")
                writer.save_episode()
        return RobotDataset(root, embodiment="arm", chunk_size=4)

    return make


def test_the_policys_own_frames_before_a_takeover_are_no_experts(dataset):
    flags = [0, 0, 1, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0, 1]
    made = dataset(*flags)
    samples = ExpertSamples([made], heldout_share=0.2, outcome_key=None)
    human = np.concatenate(flags).astype(bool)
    np.testing.assert_array_equal(human_frames(made), human)
    np.testing.assert_array_equal(samples.usable | samples.heldout, human)
    assert not (samples.usable & samples.heldout).any()
    assert samples.heldout.any()
    drawn = samples.random(50, 4, None, np.random.default_rng(0)).rows
    assert human[drawn].all()


def test_a_dataset_without_takeovers_is_demonstrations_altogether(dataset):
    made = dataset([0, 0], [0, 0], [0, 0], column=False)
    assert human_frames(made) is None
    samples = ExpertSamples([made], outcome_key=None)
    assert (samples.usable | samples.heldout).all()


def test_a_dataset_of_a_policy_alone_is_refused(dataset):
    made = dataset([0, 0], [0, 0], [0, 0])
    with pytest.raises(ValueError, match=r"intervention: no frame of .* is a person's.*leave the dataset out"):
        ExpertSamples([made], outcome_key=None)


def test_a_recording_brings_the_labels_of_people(record_rollouts, tmp_path):
    """So that failures can be among what a value model is warmed up on."""
    record_rollouts(tmp_path / "labeled", "v", [1, 0, 0])
    assert episode_rewards(RobotDataset(tmp_path / "labeled", embodiment="two_arms")).tolist() == [1.0, 0.0, 0.0]
    record_rollouts(tmp_path / "open", "v", [1, None])
    with pytest.raises(ValueError, match="1 of 2 recorded rollouts have no label; label them, or leave them out"):
        episode_rewards(RobotDataset(tmp_path / "open", embodiment="two_arms"))


def test_a_chunk_of_a_person_ends_where_the_policy_goes_on(dataset):
    """Frames: two of the policy, three of a person, three of the policy, two of a person to the end. Chunks of 4 actions."""
    flags = [0, 0, 1, 1, 1, 0, 0, 0, 1, 1]
    samples = ExpertSamples([dataset(flags, flags)], outcome_key=None)
    own = {2: 3, 3: 2, 4: 1, 8: 2, 9: 1}
    for row, steps in own.items():
        item = samples.item(row)
        assert (~item["action_is_pad"]).sum() == steps
        assert item.get("ends_episode", True) == (row >= 8), (
            "what follows a person's last action is not the episode's end"
        )
        np.testing.assert_array_equal(item["actions"][:steps, 0], np.arange(row, row + steps))


def test_an_older_recording_of_a_policy_is_refused(record_rollouts, tmp_path, monkeypatch):
    monkeypatch.setattr("syvla.serving.recording.recorder._known_episodes", lambda root: (set(), False))
    record_rollouts(tmp_path / "set", "v", [1, 1])
    made = RobotDataset(tmp_path / "set", embodiment="two_arms")
    assert "intervention" not in made.features
    with pytest.raises(
        ValueError, match=r"is a recording of syvla-serve in which no person acted; a policy's own frames"
    ):
        ExpertSamples([made])
