"""Versions of the format and modalities beside images and vectors, in files that LeRobot wrote or that follow its layout."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from syvla.processing import RobotDataset
from syvla.processing.robot_data.source import locate_dataset

DATA = Path(__file__).parents[2] / "data"
CAMERAS = {"center": "observation.images.head", "left_wrist": "observation.images.left_wrist"}


def open_set(root: Path, **options) -> RobotDataset:
    return RobotDataset(root, embodiment="toy", chunk_size=3, **options)


@pytest.fixture
def v20(tmp_path) -> Path:
    """The golden v2.1 dataset as v2.0 has it: statistics of the whole dataset in one file in place of one line per episode."""
    root = Path(shutil.copytree(DATA / "lerobot_v21_tiny", tmp_path / "set"))
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v2.0"}))
    (root / "meta/episodes_stats.jsonl").unlink()
    statistics = {"observation.state": {"mean": [9.0, 9.0], "std": [9.0, 9.0], "min": [9.0, 9.0], "max": [9.0, 9.0]}}
    (root / "meta/stats.json").write_text(json.dumps(statistics))
    return root


def test_version_2_0_is_read_like_2_1_with_statistics_of_the_data(v20):
    old, new = open_set(v20, cameras=CAMERAS), open_set(DATA / "lerobot_v21_tiny", cameras=CAMERAS)
    assert len(old) == len(new) == 7
    for index in range(7):
        first, second = old[index], new[index]
        for key in ("state", "actions", "action_is_pad"):
            np.testing.assert_array_equal(first[key], second[key])
        assert (first["text"], first["timestamp"]) == (second["text"], second["timestamp"])
        for view in CAMERAS:
            np.testing.assert_array_equal(first["images"][view], second["images"][view])
    # The states of the golden dataset by hand: episode + step / 10, and -step, over 3 + 4 frames.
    expected = [(0 + 0.1 + 0.2 + 1 + 1.1 + 1.2 + 1.3) / 7, -(0 + 1 + 2 + 0 + 1 + 2 + 3) / 7]
    np.testing.assert_allclose(old.statistics()["state"]["mean"], expected, rtol=1e-6)


def test_version_3_1_is_read_as_3_0(tmp_path):
    root = Path(shutil.copytree(DATA / "lerobot_v3_tiny", tmp_path / "set"))
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v3.1", "a_new_key": {"x": [1]}}))
    np.testing.assert_array_equal(open_set(root)[4]["state"], open_set(DATA / "lerobot_v3_tiny")[4]["state"])


def test_what_lerobot_writes_beside_images_and_vectors_is_skipped_with_one_line(caplog):
    """Written by LeRobot 0.6.1: depth video, a 2-D sensor, sub-tasks among other styles, events."""
    with caplog.at_level(logging.INFO, logger="syvla"):
        dataset = open_set(DATA / "lerobot_v061_modalities")
    lines = [record.getMessage() for record in caplog.records if "not read" in record.getMessage()]
    assert len(lines) == 1
    names = lines[0].split("not read: ")[1].split(", ")
    assert names == [
        "observation.images.front_depth (depth map)",
        "observation.tactile (float32)",
        "language_events (language)",
    ]
    assert dataset.cameras == {"center": "observation.images.front"}
    for index in range(11):
        item = dataset[index]
        episode, step = (0, index) if index < 5 else (1, index - 5)
        np.testing.assert_array_equal(item["state"], np.array([episode, step], np.float32))
        assert item["thought"] == f"{'reach' if step < 3 else 'grasp'} {episode}"
        assert item["text"] == f"task {episode}"
        assert np.abs(item["images"]["center"].astype(int) - (20 * step + 10 * episode)).max() <= 3


def test_every_feature_in_use_leaves_no_line(caplog, tmp_path):
    from dataset_recordings import record

    with caplog.at_level(logging.INFO, logger="syvla"):
        open_set(record(tmp_path / "set"))
    assert not [record for record in caplog.records if "not read" in record.getMessage()]


def test_hub_dataset_of_an_older_format_is_found_by_its_tag(monkeypatch):
    from huggingface_hub.errors import RevisionNotFoundError

    class NoSuchTag(RevisionNotFoundError):
        def __init__(self) -> None:
            Exception.__init__(self, "404")

    asked = []

    def snapshot_download(repo_id, revision, **options):
        asked.append(revision)
        if revision != "v2.1":
            raise NoSuchTag
        return str(DATA / "lerobot_v21_tiny")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert locate_dataset("somebody/cubes") == DATA / "lerobot_v21_tiny"
    assert asked == ["v3.0", "v3.1", "v2.1", "v2.1"]
    asked.clear()
    with pytest.raises(ValueError, match=r"no revision 'v2\.0'"):
        locate_dataset("somebody/cubes", revision="v2.0")  # one that is asked for is not replaced
    assert asked == ["v2.0"]
