"""Which episodes are held out: the same at every start, none that is trained on, and a clear word where it cannot be."""

import json
from types import SimpleNamespace

import pytest

from syvla.processing.robot_data.held_out_episodes import split_episodes


def metadata(total=20, splits=None, root="data"):
    from pathlib import Path

    return SimpleNamespace(root=Path(root), info=SimpleNamespace(total_episodes=total, raw={"splits": splits}))


@pytest.mark.parametrize(("share", "count"), [(0.1, 2), (0.01, 1), (0.5, 10), (1.0, 20), (0.99, 20)])
def test_a_share_is_divided_into_two_parts_without_common_episodes(share, count):
    split = split_episodes(metadata(), share)
    assert len(split.held_out) == count
    assert sorted(split.train + split.held_out) == list(range(20))


def test_a_share_is_the_same_at_every_start_and_spread_over_the_recording():
    """Golden: numbers whose SHA-256 comes first, from `printf %s N | sha256sum | sort`."""
    assert split_episodes(metadata(10), 0.3).held_out == [4, 8, 9]
    later = split_episodes(metadata(100), 0.3).held_out
    assert set(later) & {4, 8, 9}
    assert max(later) > 80


def test_a_share_is_of_the_chosen_episodes():
    split = split_episodes(metadata(), 0.25, [4, 5, 6, 7])
    assert len(split.held_out) == 1
    assert sorted(split.train + split.held_out) == [4, 5, 6, 7]


def test_named_episodes_and_splits():
    splits = {"train": "0:14", "val": "14:17", "test": "17:20"}
    assert split_episodes(metadata(), [3, 7]).held_out == [3, 7]
    assert split_episodes(metadata(), [19], [0, 1]).train == [0, 1]
    split = split_episodes(metadata(20, splits), "val")
    assert (split.held_out, split.train) == ([14, 15, 16], list(range(14)))  # nor the test set is trained on
    everything = split_episodes(metadata(20, {"train": "0:20", "val": "14:17"}), "val")
    assert not set(everything.train) & set(everything.held_out)


@pytest.mark.parametrize(
    ("eval_split", "splits", "message"),
    [
        (0.0, None, "expected a share above 0 and up to 1"),
        (1.5, None, "expected a share above 0 and up to 1"),
        (3, None, r"write \[3\] for the episode"),
        (True, None, "may be a share or an episode"),
        ([], None, "expected a share such as 0.1"),
        ([1, 1], None, "listed twice"),
        ([3, 20], None, r"episodes \[20\] do not exist; the dataset has episodes 0 to 19"),
        ([-1], None, r"episodes \[-1\] do not exist"),
        ([True], None, "expected a share such as 0.1"),
        ("test", {"train": "0:20"}, "'test' is no split of this dataset; .*names no others"),
        ("tset", {"train": "0:10", "test": "10:20"}, r"'tset' is no split .*names \['test'\]"),
        ("train", {"train": "0:10", "test": "10:20"}, "'train' is what is trained on"),
        ("test", {"test": "20:20"}, "has no episodes"),
        ("test", {"test": "10:21"}, "expected 'first:last' within 0:20"),
        ("test", {"test": "10:5"}, "expected 'first:last' within 0:20"),
        ("test", {"test": [1, 2]}, "expected 'first:last' within 0:20"),
        ("test", {"test": "0:" + "9" * 5000}, "expected 'first:last' within 0:20"),
        ("test", ["test"], "splits: expected an object, got list"),
    ],
)
def test_what_cannot_be_held_out_is_said(eval_split, splits, message):
    with pytest.raises(ValueError, match=message):
        split_episodes(metadata(20, splits), eval_split)


def test_splits_survive_the_reader(tmp_path, robot_dataset):
    """`splits` are read from `info.json` as it lies on the disk."""
    from syvla.processing.robot_data.metadata import read_metadata

    info = json.loads((robot_dataset / "meta/info.json").read_text())
    info["splits"] = {"train": "0:1", "test": "1:2"}
    (robot_dataset / "meta/info.json").write_text(json.dumps(info))
    assert split_episodes(read_metadata(robot_dataset), "test").held_out == [1]


@pytest.fixture
def robot_dataset(tmp_path):
    import numpy as np

    from syvla.processing import RobotDatasetWriter

    features = {key: {"dtype": "float32", "shape": [2], "names": ["a", "b"]} for key in ("observation.state", "action")}
    root = tmp_path / "robot"
    with RobotDatasetWriter(root, fps=10, features=features, use_videos=False) as writer:
        for _ in range(2):
            for step in range(3):
                writer.add_frame({key: np.full(2, step, np.float32) for key in features}, "lift")
            writer.save_episode()
    return root
