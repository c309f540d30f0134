"""The imitation dataset in reinforcement learning: fit to the checkpoint, outcomes, held-out episodes."""

import numpy as np
import pytest

from syvla.modeling_syvla import SyVLAConfig
from syvla.processing import RobotDataset, RobotDatasetWriter, build_tiny_processor
from syvla.training.retrieval.demonstrations import episode_rewards, open_expert_datasets, split_episodes
from syvla.training.rl.expert_samples import ExpertSamples

CAMERAS = {"center": "observation.images.head", "left_wrist": "observation.images.left_wrist"}


@pytest.fixture
def spec(robot_dataset_path):
    return {"path": str(robot_dataset_path), "embodiment": "two_arms", "cameras": CAMERAS}


@pytest.fixture
def processor(robot_dataset_path):
    processor = build_tiny_processor(SyVLAConfig.tiny(embodiments={}))
    dataset = RobotDataset(robot_dataset_path, embodiment="two_arms", cameras=CAMERAS)
    processor.set_embodiment("two_arms", dataset.statistics())
    return processor


def labeled(folder, outcomes, key="next.success", dtype="bool"):
    """Episodes of three frames each, of which the last frame says the outcome."""
    features = {name: {"dtype": "float32", "shape": [2], "names": None} for name in ("observation.state", "action")}
    features["observation.images.head"] = {"dtype": "image", "shape": [8, 8, 3], "names": ["h", "w", "c"]}
    features[key] = {"dtype": dtype, "shape": [1], "names": None}
    with RobotDatasetWriter(folder, fps=10, features=features, use_videos=False) as writer:
        for outcome in outcomes:
            for step in range(3):
                vector = np.full(2, step, np.float32)
                frame = {"observation.state": vector, "action": vector, key: np.array([outcome and step == 2])}
                if dtype != "bool":
                    frame[key] = np.array([float(outcome) if step == 2 else 0.0], np.float32)
                writer.add_frame({**frame, "observation.images.head": np.zeros((8, 8, 3), np.uint8)}, "reach")
            writer.save_episode()
    return RobotDataset(folder, embodiment="arm", chunk_size=2)


def test_the_data_set_of_the_checkpoint_fits_and_so_does_a_part_of_it(processor, spec):
    assert len(open_expert_datasets([spec], processor)[0]) == 36
    assert open_expert_datasets([{**spec, "episodes": [0, 2]}], processor)[0].num_episodes == 2
    assert open_expert_datasets([{**spec, "license": "apache-2.0", "note": "ours"}], processor)
    spec.pop("embodiment")
    assert open_expert_datasets([spec], processor)[0].embodiment == "two_arms", "the only one the checkpoint knows"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"embodiment": "arm"},
            r"embodiment 'arm' is unknown to the checkpoint, which has \['two_arms'\]; name one of these",
        ),
        ({"path": "missing/place/x"}, "missing/place/x: "),
        ({"accept": ["rate"]}, "accept of robot_datasets has no effect on expert data.*leave it out"),
        ({"eval_split": 0.1}, "eval_split of robot_datasets has no effect on expert data"),
        ({"cameras": {"front": "observation.images.head"}}, r"cameras: \['front'\] are no views of the checkpoint"),
    ],
)
def test_what_does_not_fit_is_refused(processor, spec, change, message):
    with pytest.raises(ValueError, match=message):
        open_expert_datasets([{**spec, **change}], processor)


@pytest.mark.parametrize(("offset", "factor"), [(2.0, 1.0), (0.0, 3.0)])
def test_other_statistics_are_refused_unless_allowed(processor, spec, offset, factor):
    action = processor.embodiments["two_arms"]["statistics"]["action"]
    action["mean"] = [mean + offset * std for mean, std in zip(action["mean"], action["std"], strict=True)]
    action["std"] = [factor * std for std in action["std"]]
    with pytest.raises(
        ValueError, match=r"action: statistics differ from the checkpoint's \(by .*recompute_statistics"
    ):
        open_expert_datasets([spec], processor)
    assert open_expert_datasets([spec], processor, tolerance=None)


def test_a_checkpoint_that_knows_no_robot_is_refused(spec):
    bare = build_tiny_processor(SyVLAConfig.tiny(embodiments={}))
    with pytest.raises(
        ValueError, match=r"unknown to the checkpoint, which has none.*fine-tune the policy on this robot"
    ):
        open_expert_datasets([spec], bare)


def test_an_empty_set_of_expert_samples_is_refused(tmp_path):
    """One success is held out, so that none is left to learn from; failures are no expert samples."""
    with pytest.raises(ValueError, match=r"robot_datasets: 1 successful episode\(s\) in all.* needs at least 2"):
        ExpertSamples([labeled(tmp_path / "data", [True, False, False])])


def test_nothing_given_is_an_error(processor):
    with pytest.raises(ValueError, match="robot_datasets: none given"):
        open_expert_datasets([], processor)


@pytest.mark.parametrize(("key", "dtype"), [("next.success", "bool"), ("next.reward", "float32")])
def test_labels_of_failure_are_honoured(tmp_path, key, dtype):
    dataset = labeled(tmp_path / "data", [True, False, True], key, dtype)
    found = "auto" if key == "next.success" else key
    assert episode_rewards(dataset, found).tolist() == [1, 0, 1]
    assert episode_rewards(dataset, None).tolist() == [1, 1, 1]
    part = RobotDataset(dataset.root, embodiment="arm", episodes=[2, 1])
    assert episode_rewards(part, key).tolist() == [1, 0]


def test_without_labels_all_episodes_are_successes(robot_dataset_path):
    dataset = RobotDataset(robot_dataset_path, embodiment="two_arms", cameras=CAMERAS)
    assert episode_rewards(dataset).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="has no feature 'won'"):
        episode_rewards(dataset, "won")


def test_a_label_by_which_nothing_succeeds_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no episode of .* succeeded by 'next.success'"):
        episode_rewards(labeled(tmp_path / "data", [False, False]))


@pytest.mark.parametrize(("count", "share", "expected"), [(10, 0.2, 2), (2, 0.01, 1), (3, 0.99, 2)])
def test_held_out_episodes_are_whole_and_disjoint(count, share, expected):
    train, heldout = split_episodes(count, share, seed=3)
    assert len(heldout) == expected
    assert sorted(train + heldout) == list(range(count))
    assert split_episodes(count, share, seed=3) == (train, heldout)


@pytest.mark.parametrize(("count", "share"), [(1, 0.5), (5, 0.0), (5, 1.0)])
def test_a_split_that_cannot_be_is_refused(count, share):
    with pytest.raises(ValueError, match="heldout_share"):
        split_episodes(count, share, seed=0)
