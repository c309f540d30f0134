"""RLDS folders: what tensorflow-datasets wrote against our reader, value by value, and damaged or hostile ones."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from syvla.processing import RobotDataset
from syvla.processing.conversion.mapping import load_preset, presets
from syvla.processing.conversion.pipeline import convert
from syvla.processing.conversion.proposal import propose
from syvla.processing.conversion.rlds import RldsSource
from syvla.processing.conversion.source import SourceError

GOLDEN = Path(__file__).parents[2] / "data" / "rlds_tiny"
SHARD = "bridge-train.tfrecord-00000-of-00001"


@pytest.fixture
def copied(tmp_path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "bridge/0.1.0"))


def expected_image(episode: int, step: int) -> np.ndarray:
    picture = np.zeros((16, 24, 3), np.uint8)
    picture[..., 0] = 20 * step
    picture[..., 1] = 100 * episode
    picture[:8, :, 2] = 250
    return picture


def test_every_value_that_tensorflow_datasets_wrote_is_read():
    source = RldsSource(GOLDEN)
    references = source.episodes()
    assert [reference.problem for reference in references] == [None, None]
    seen = set()
    for reference in references:
        with source.open(reference) as episode:
            number = int(episode.texts["observation/natural_language_instruction"][-1])
            length = (4, 6)[number]
            seen.add(number)
            steps = np.arange(length)
            state = np.arange(7, dtype=np.float32) / 10 + steps[:, None] + 10 * number
            np.testing.assert_array_equal(episode.vectors["observation/state"], state.astype(np.float32))
            code = episode.vectors["action/code"]
            assert code[:, 0].tolist() == [-(2**40) * step for step in range(length)]  # ten bytes each
            np.testing.assert_array_equal(episode.vectors["action/open_gripper"][:, 0], steps % 3 == 0)
            np.testing.assert_array_equal(episode.vectors["is_last"][:, 0], steps == length - 1)
            double = episode.vectors["observation/double"]
            np.testing.assert_allclose(double, np.stack([steps / 3, -np.ones(length)], 1), rtol=1e-6)
            assert episode.vectors["observation/matrix"].tolist() == [[0, 1, 2, 3, 4, 5]] * length
            frames = list(episode.cameras["observation/image"].read())
            assert len(frames) == episode.cameras["observation/image"].count == length
            for step, frame in enumerate(frames):
                np.testing.assert_array_equal(frame, expected_image(number, step))
            assert episode.skipped == ("observation/packed (Tensor packed as zlib)",)
    assert seen == {0, 1}


def test_bridge_convention_makes_reached_differences_of_the_states(tmp_path):
    source = RldsSource(GOLDEN)
    assert source.preset() == "oxe_bridge"
    report = convert(source, tmp_path / "out", replace(load_preset("oxe_bridge"), storage="image"), progress=False)
    assert (len(report.converted), report.dropped) == (2, [])
    dataset = RobotDataset(tmp_path / "out", embodiment="widowx", chunk_size=1)
    assert dataset.fps == 5
    assert sorted(dataset.episode_lengths.tolist()) == [2, 4]  # without the first and the last step
    for index in range(len(dataset)):
        item = dataset[index]
        number, step = int(item["text"][-1]), item["frame_index"] + 1
        np.testing.assert_allclose(item["state"], np.arange(7) / 10 + step + 10 * number, rtol=1e-6)
        # The states grow by 1 from step to step.
        np.testing.assert_allclose(item["actions"][0], [1] * 6 + [float(step % 3 == 0)], rtol=1e-5)
        np.testing.assert_array_equal(item["images"]["center"], expected_image(number, step))
    assert report.units()["action"] == ["m"] * 3 + ["rad"] * 3 + ["share"]


def test_a_dataset_without_preset_gets_a_mapping(copied):
    info = json.loads((copied / "dataset_info.json").read_text())
    (copied / "dataset_info.json").write_text(json.dumps(info | {"name": "my_own"}))
    source = RldsSource(copied.parents[1])  # found two folders below
    assert source.preset() is None
    found = propose(source)
    assert {spec.source for spec in found.action} == {
        f"action/{name}" for name in ("world_vector", "rotation_delta", "open_gripper", "code")
    }
    assert found.task_source == "observation/natural_language_instruction"
    assert set(found.cameras) == {"observation.images.image", "observation.images.image_1"}


@pytest.mark.parametrize(
    "name", ["bridge", "fractal20220817_data", "droid", "bc_z", "taco_play", "jaco_play", "berkeley_autolab_ur5"]
)
def test_conventions_of_open_x_come_as_data(name):
    assert f"oxe_{name}" in presets()
    found = load_preset(f"oxe_{name}")
    assert found.fps == {"fractal20220817_data": 3, "bridge": 5, "berkeley_autolab_ur5": 5, "bc_z": 10,
                         "jaco_play": 10, "taco_play": 15, "droid": 15}[name]  # fmt: skip
    grippers = [spec for spec in found.action if "gripper" in spec.names[0]]
    assert [spec.names for spec in grippers] == [("gripper_open",)]  # one convention for all: 1 is open


# -- bad input ------------------------------------------------------------------------------------------------------------


def reasons(root: Path, out: Path) -> tuple[int, list[str]]:
    mapping = replace(load_preset("oxe_bridge"), storage="image")
    report = convert(RldsSource(root), out, mapping, progress=False)
    return len(report.converted), [f"{entry['source']}: {entry['reason']}" for entry in report.dropped]


def test_a_truncated_file_loses_what_is_cut_off_and_says_so(copied, tmp_path):
    data = (copied / SHARD).read_bytes()
    (copied / SHARD).write_bytes(data[:-50])
    kept, dropped = reasons(copied, tmp_path / "out")
    assert kept == 1
    assert len(dropped) == 1
    assert "record 1 is cut off" in dropped[0]
    assert "1 episodes are lost" in dropped[0]


def test_damaged_bytes_are_found_by_their_checksum(copied, tmp_path):
    data = bytearray((copied / SHARD).read_bytes())
    data[200] ^= 1
    (copied / SHARD).write_bytes(data)
    kept, dropped = reasons(copied, tmp_path / "out")
    assert kept == 1
    assert f"{SHARD}#0: the record's checksum differs" in dropped[0]


def test_lengths_beyond_the_file_are_refused_before_allocation(copied):
    from syvla.processing.conversion.tfrecord import masked_checksum

    length = (2**60).to_bytes(8, "little")
    header = length + masked_checksum(length).to_bytes(4, "little")
    (copied / SHARD).write_bytes(header + b"x" * 100)
    (reference,) = RldsSource(copied).episodes()
    assert "record 0 is cut off: 1152921504606846980 bytes announced" in reference.problem


def test_missing_files_and_missing_episodes_are_named(copied):
    shutil.copy(copied / SHARD, copied / "bridge-train.tfrecord-00001-of-00003")
    (copied / SHARD).rename(copied / "bridge-train.tfrecord-00000-of-00003")
    info = json.loads((copied / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["2", "5", "2"]
    (copied / "dataset_info.json").write_text(json.dumps(info))
    problems = [reference.problem for reference in RldsSource(copied).episodes() if reference.problem]
    assert "holds 2 of 5 episodes" in problems[0]
    assert "file is missing" in problems[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "features.json").unlink(), r"found none"),
        (lambda root: (root / "features.json").write_text("{}"), "no RLDS dataset"),
        (lambda root: (root / "features.json").write_text("["), "no valid JSON"),
        (lambda root: (root / SHARD).unlink(), "no files NAME-SPLIT"),
        (lambda root: (root / "dataset_info.json").write_text('{"fileFormat": "array_record"}'), "expected 'tfrecord'"),
    ],
)
def test_folders_that_are_none_are_refused(copied, tmp_path, change, message):
    change(copied)
    with pytest.raises(SourceError, match=message):
        convert(RldsSource(copied), tmp_path / "out", load_preset("oxe_bridge"), progress=False)
