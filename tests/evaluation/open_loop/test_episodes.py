"""Which episodes are compared, and what is refused."""

import json
import shutil

import pytest

from syvla.evaluation.open_loop.episodes import EpisodeRequest, open_episodes, parse_episodes, recorded_split
from syvla.processing import SyVLAProcessor


@pytest.fixture
def processor(arm_checkpoint):
    return SyVLAProcessor.from_pretrained(arm_checkpoint)


def record_run(folder, held_out):
    folder.mkdir(parents=True)
    (folder / "run_settings.json").write_text(json.dumps({"fixed": {"held_out": held_out}, "free": {}}))


def test_episodes_as_they_are_written():
    assert parse_episodes("3, 7-9") == [3, 7, 8, 9]
    for text in ("", "3-", "9-7", "a", "-1"):
        with pytest.raises(ValueError, match="numbers and ranges"):
            parse_episodes(text)


def test_named_episodes_and_all_others(arm_data, processor, tmp_path):
    opened = open_episodes(EpisodeRequest(str(arm_data), [1, 4]), processor, tmp_path)
    assert (opened.held_out.episodes, opened.training.episodes) == ([1, 4], [0, 2, 3])
    assert opened.seen_in_training == []
    assert "not recorded" in opened.origin
    assert open_episodes(EpisodeRequest(str(arm_data), range(5)), processor, tmp_path).training is None


def test_the_training_runs_own_held_out_episodes(arm_data, processor, tmp_path):
    record_run(tmp_path / "run/checkpoint-9", [["arm", [0]]])
    record_run(tmp_path / "run/checkpoint-10", [["chats", 12], ["arm", [2, 3]]])
    for place in (tmp_path / "run", tmp_path / "run/checkpoint-10"):
        opened = open_episodes(EpisodeRequest(str(arm_data)), processor, place)
        assert (opened.held_out.episodes, opened.origin) == ([2, 3], "held out by the training run")
    seen = open_episodes(EpisodeRequest(str(arm_data), [1, 3]), processor, tmp_path / "run").seen_in_training
    assert seen == [1], "1 was trained on"
    assert recorded_split(tmp_path / "run", "somewhere/else") is None
    run_file = tmp_path / "run" / "training_run.json"
    run_file.write_text(json.dumps({"held_out_data": [["arm", [4]]]}))
    assert recorded_split(tmp_path / "run", str(arm_data)) == [4], (
        "the folder's own word, not that of a checkpoint in it"
    )
    run_file.write_text(json.dumps({"held_out_data": []}))
    assert recorded_split(tmp_path / "run", str(arm_data)) is None, "the run that wrote these weights held nothing out"


def test_nothing_held_out(arm_data, processor, tmp_path):
    with pytest.raises(ValueError, match=r"nothing is known to be held out.*--episodes 3,7-9"):
        open_episodes(EpisodeRequest(str(arm_data)), processor, tmp_path)


@pytest.mark.parametrize(
    ("request_options", "message"),
    [
        ({"episodes": [9]}, "do not exist; the dataset has episodes 0 to 4"),
        ({"episodes": [1, 1]}, "listed twice"),
        ({"embodiment": "leg"}, "knows .'arm'.; got 'leg'"),
        (
            {"cameras": {"center": "observation.images.top"}},
            "which the dataset lacks; it has .'observation.images.head'.",
        ),
        ({"reader": {"chunk_size": 3}}, "'chunk_size' is not the reader's"),
        ({"reader": {"control_hz": 5}}, "rate: the checkpoint acts 10 times a second, the data 5 times"),
        ({"accept": ["units"]}, "accept: expected some of"),
    ],
)
def test_what_is_refused(arm_data, processor, tmp_path, request_options, message):
    with pytest.raises(ValueError, match=message):
        open_episodes(EpisodeRequest(str(arm_data), **{"episodes": [1], **request_options}), processor, tmp_path)


def test_a_checkpoints_own_camera_that_the_data_lacks(arm_data, processor, tmp_path):
    processor.embodiments["arm"]["cameras"] = {"center": "observation.images.side"}
    with pytest.raises(ValueError, match=r"trained with center = observation.images.side.*--camera center="):
        open_episodes(EpisodeRequest(str(arm_data), [1]), processor, tmp_path)


def test_another_robot(arm_data, processor, tmp_path):
    entry = processor.embodiments["arm"]
    entry["action_names"] = ["x", "gripper"]
    with pytest.raises(ValueError, match="names: action: the same dimensions in another order"):
        open_episodes(EpisodeRequest(str(arm_data), [1]), processor, tmp_path)
    assert open_episodes(
        EpisodeRequest(str(arm_data), [1], accept=["names"]), processor, tmp_path
    ).held_out.episodes == [1]
    entry["action_dim"] = 5
    with pytest.raises(ValueError, match="dimensions: action: the checkpoint has 5, the data 2") as caught:
        open_episodes(EpisodeRequest(str(arm_data), [1], accept=["names"]), processor, tmp_path)
    assert "--accept" not in str(caught.value), "dimensions cannot be overruled"


def test_another_rate_can_be_resampled(arm_data, processor, tmp_path):
    processor.embodiments["arm"]["control_hz"] = 20
    with pytest.raises(ValueError, match="control_hz"):
        open_episodes(EpisodeRequest(str(arm_data), [1]), processor, tmp_path)
    opened = open_episodes(EpisodeRequest(str(arm_data), [1], reader={"control_hz": 20}), processor, tmp_path)
    assert opened.held_out.control_hz == 20


def test_a_chunk_longer_than_every_episode(arm_data, processor, tmp_path):
    processor.chunk_size = 6
    assert open_episodes(EpisodeRequest(str(arm_data), [1, 2]), processor, tmp_path), "one of 7 frames is long enough"
    with pytest.raises(ValueError, match=r"6 steps are compared, but the longest of the episodes has 5.*--steps 5"):
        open_episodes(EpisodeRequest(str(arm_data), [1]), processor, tmp_path)
    assert open_episodes(EpisodeRequest(str(arm_data), [1], steps=5), processor, tmp_path)


def test_a_dataset_that_is_not_there(processor, tmp_path):
    shutil.rmtree(tmp_path / "none", ignore_errors=True)
    with pytest.raises(FileNotFoundError):
        open_episodes(EpisodeRequest(str(tmp_path / "none"), [1]), processor, tmp_path)
