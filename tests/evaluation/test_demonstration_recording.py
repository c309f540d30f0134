"""Recording: what lands in the dataset is what the expert saw and did, and an interrupted recording goes on."""

import json

import numpy as np
import pytest

from syvla.evaluation.demonstration_recording import main, record_demonstrations
from syvla.evaluation.environments import EVALUATION_SEED_OFFSET, make_environment, make_expert
from syvla.evaluation.environments.demonstration import demonstrate
from syvla.evaluation.environments.disturbance import Disturbance
from syvla.processing import RobotDataset, RobotDatasetWriter

SIZE = 8


def load(root, **options):
    return RobotDataset(root, embodiment="tabletop", chunk_size=4, **options)


def record(root, **options):
    settings = {"episodes": 2, "image_size": SIZE, "progress": False, **options}
    return record_demonstrations(root, **settings)


def contents(root):
    """All that the dataset holds, comparable."""
    dataset = load(root)
    items = [dataset[i] for i in range(len(dataset))]
    return [
        (
            item["text"],
            item["thought"],
            item["state"].tolist(),
            item["actions"].tolist(),
            item["images"]["center"].tobytes(),
        )
        for item in items
    ]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    root = tmp_path_factory.mktemp("recorded") / "dataset"
    return root, record(root, tasks=("lift", "place"))


def test_dataset_holds_what_the_expert_saw_and_did(recorded):
    root, _ = recorded
    dataset = load(root)
    env = make_environment("tabletop", "lift", image_size=SIZE)
    attempt = demonstrate(env, make_expert(env), seed=0)
    assert dataset.episode_lengths[0] == len(attempt.actions)
    assert dataset.fps == 10
    assert tuple(dataset.action_names) == env.action_names
    for step, thought in enumerate(attempt.thoughts):
        item = dataset[step]
        assert item["text"] == attempt.instruction
        assert item["thought"] == thought
        assert np.array_equal(item["state"], attempt.states[step])
        assert np.array_equal(item["actions"][0], attempt.actions[step])
        assert set(item["images"]) == set(env.view_cameras)  # the camera names say which view they are
        for view, camera in env.view_cameras.items():
            assert np.array_equal(item["images"][view], attempt.images[camera][step])


def test_summary_and_file_agree_with_the_dataset(recorded):
    root, summary = recorded
    dataset = load(root)
    written = json.loads((root / "recording.json").read_text())
    assert written["summary"] == summary
    assert summary["episodes"] == dataset.num_episodes == 4
    assert summary["frames"] == dataset.num_frames == sum(attempt["steps"] for attempt in written["attempts"])
    assert [(a["task"], a["seed"]) for a in written["attempts"]] == [
        ("lift", 0),
        ("place", 0),
        ("lift", 1),
        ("place", 1),
    ]


def test_a_finished_recording_is_left_alone_and_can_be_extended(recorded):
    root, summary = recorded
    before = contents(root)
    assert record(root, tasks=("lift", "place"))["frames"] == summary["frames"]
    assert contents(root) == before
    assert record(root, tasks=("lift", "place"), episodes=3)["episodes"] == 6
    assert contents(root)[: len(before)] == before


def test_an_interrupted_recording_goes_on_to_the_same_dataset(tmp_path, monkeypatch):
    record(tmp_path / "whole", episodes=4)
    save = RobotDatasetWriter.save_episode

    def dies_at_the_third(writer):
        if writer.num_episodes == 2:
            raise KeyboardInterrupt
        return save(writer)

    monkeypatch.setattr(RobotDatasetWriter, "save_episode", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "cut", episodes=4)
    monkeypatch.undo()
    assert load(tmp_path / "cut").num_episodes == 2
    assert record(tmp_path / "cut", episodes=4)["episodes"] == 4
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_workers_change_nothing_but_the_time(tmp_path):
    record(tmp_path / "one", episodes=3)
    record(tmp_path / "two", episodes=3, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_failures_are_counted_and_left_out(tmp_path):
    """With 17 steps per episode the slower half of the demonstrations runs out of time."""
    summary = record(tmp_path / "data", episodes=4, env_options={"max_steps": 15})
    attempts = json.loads((tmp_path / "data" / "recording.json").read_text())["attempts"]
    assert summary["failures"] == sum(not attempt["success"] for attempt in attempts) > 0
    assert summary["episodes"] == load(tmp_path / "data").num_episodes == 4
    assert [attempt["seed"] for attempt in attempts] == list(range(len(attempts)))
    assert max(attempt["steps"] for attempt in attempts if attempt["success"]) <= 15


def test_an_expert_that_never_succeeds_is_given_up(tmp_path):
    with pytest.raises(RuntimeError, match="task 'lift': the expert failed in 11 of 11 episodes"):
        record(tmp_path, episodes=1, env_options={"max_steps": 3})


def test_videos_hold_the_same_pictures_up_to_compression(tmp_path):
    record(tmp_path / "images", episodes=1, image_size=64)
    record(tmp_path / "videos", episodes=1, image_size=64, use_videos=True)
    images, videos = load(tmp_path / "images"), load(tmp_path / "videos")
    assert list((tmp_path / "videos").rglob("*.mp4"))
    assert not list((tmp_path / "images").rglob("*.mp4"))
    for step in (0, 7):
        difference = images[step]["images"]["center"].astype(int) - videos[step]["images"]["center"]
        assert np.abs(difference).mean() < 6


def test_disturbed_execution_keeps_clean_labels_and_grippers():
    rng = np.random.default_rng(0)
    motion, gripper = np.array([0.3, 0.3, 0.05]), np.array([False, False, True])
    low, high = np.array([-2.0, -2.0, 0.0]), np.array([2.0, 2.0, 0.1])
    common = {"max_step_motion": motion, "low": low, "high": high, "gripper": gripper, "rng": rng}
    action = np.array([0.5, 1.99, 0.02], dtype=np.float32)
    still = Disturbance(action_noise=0.0, recovery=False, **common)
    assert np.array_equal(still(action), action)
    noisy = Disturbance(action_noise=0.1, recovery=False, **common)
    executed = np.stack([noisy(action) for _ in range(500)])
    assert executed[:, 0].std() == pytest.approx(0.03, rel=0.15)
    assert executed[:, 1].max() == 2.0
    assert np.array_equal(executed[:, 2], np.full(500, action[2]))
    pushed = Disturbance(action_noise=0.0, recovery=True, **common)
    moved = np.array([not np.array_equal(pushed(action), action) for _ in range(500)])
    assert 0.05 < moved.mean() < 0.4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": EVALUATION_SEED_OFFSET - 5}, "belong to closed-loop evaluation"),
        ({"seed": -1}, "seed: expected 0 to"),
        ({"episodes": 0}, "episodes: expected at least 1"),
        ({"workers": 0}, "workers: expected at least 1"),
        ({"tasks": ("lift", "lift")}, "tasks: expected one or more different names"),
        ({"tasks": ("fly",)}, "task: expected one of"),
        ({"action_noise": 9.0}, "action_noise: expected 0 to 2"),
        ({"env_options": {"wind": 3}}, r"unknown arguments \['wind'\]; known are"),
        ({"env_options": {"control_hz": 8.5}}, "control_hz: expected a whole number"),
    ],
)
def test_bad_settings_are_named_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        record(tmp_path / "data", **options)
    assert not (tmp_path / "data").exists()


def test_other_settings_do_not_mix_into_a_recording(tmp_path):
    record(tmp_path, episodes=1)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="seed: recorded with 0, now 5"):
        record(tmp_path, episodes=2, seed=5)
    (tmp_path / "recording.json").unlink()
    with pytest.raises(ValueError, match=r"holds 1 episodes of which 0 are in recording\.json"):
        record(tmp_path, episodes=2)
    assert contents(tmp_path) == before


def test_command_line_records_and_reports(tmp_path, capsys):
    arguments = ["--output", str(tmp_path / "data"), "--episodes", "1", "--task", "bar_lift", "--image-size", str(SIZE)]
    assert main([*arguments, "--env-option", "max_steps=60"]) == 0
    printed = capsys.readouterr().out
    assert "bar_lift: 1 episodes" in printed
    assert str(tmp_path / "data" / "recording.json") in printed
    assert load(tmp_path / "data")[0]["text"].endswith("bar with both arms")


def test_command_line_fails_with_a_reason(tmp_path, capsys):
    assert main(["--output", str(tmp_path / "data"), "--task", "fly"]) == 1
    assert (
        "task: expected one of ['lift', 'place', 'bar_lift', 'calculating', 'bagging', 'place_named'], got 'fly'"
        in capsys.readouterr().err
    )
    with pytest.raises(SystemExit) as usage:
        main(["--output", str(tmp_path), "--env-option", "distractors"])
    assert usage.value.code != 0


def test_help_names_every_default(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for default in ("tabletop", "lift", "120", "images", "0.0"):
        assert f"default: {default})" in text
