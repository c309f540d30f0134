"""Cleaning: every filter finds its fault and nothing else, the reader applies the filter file, the dataset stays."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from syvla.processing import RobotDataset, RobotDatasetWriter
from syvla.processing.cleaning.command import clean_dataset, main
from syvla.processing.cleaning.filters import FILTERS, CleaningSettings, Finding
from syvla.processing.cleaning.report import full_chunks
from syvla.processing.robot_data.frame_filter import merge_ranges
from syvla.processing.robot_data.video import TooManyOpenFilesError

FPS, LENGTH = 10, 60
FEATURES = {
    "observation.state": {"dtype": "float32", "shape": [2], "names": ["joint", "gripper"]},
    "action": {"dtype": "float32", "shape": [2], "names": ["joint", "gripper"]},
    "observation.images.head": {"dtype": "image", "shape": [16, 16, 3], "names": ["height", "width", "channels"]},
}


def healthy(episode: int) -> dict[str, np.ndarray]:
    """A smooth motion with a gripper that closes at once, and pictures that follow the joint."""
    time = np.arange(LENGTH) / FPS
    joint = np.sin(time + episode)
    gripper = (time > 3).astype(float)
    columns = np.arange(16)[None, :, None]
    rows = np.arange(16)[:, None, None]
    pictures = np.stack([(100 + 60 * j + 4 * columns + 2 * rows) * np.ones((1, 1, 3)) for j in joint])
    return {
        "state": np.stack([joint, gripper], 1).astype(np.float32),
        "action": np.stack([np.roll(joint, -1), gripper], 1).astype(np.float32)[: LENGTH - 1],
        "pictures": pictures.clip(0, 255).astype(np.uint8),
    }


def write(root: Path, episodes: list[dict[str, np.ndarray]]) -> Path:
    with RobotDatasetWriter(root, fps=FPS, features=FEATURES, use_videos=False) as writer:
        for values in episodes:
            for state, action, picture in zip(values["state"], values["action"], values["pictures"], strict=False):
                frame = {"observation.state": state, "action": action, "observation.images.head": picture}
                writer.add_frame(frame, task="move")
            writer.save_episode()
    return root


def jump(values):
    values["action"][30, 0] += 3.0


def idle(values):
    values["state"][10:55] = values["state"][10]
    values["action"][10:55] = values["action"][10]


def frozen(values):
    values["pictures"][10:40] = values["pictures"][10]


def blank(values):
    values["pictures"][10:40] = 0


def short(values):
    for key in values:
        values[key] = values[key][:8]


FAULTS = {"action_jump": jump, "idle": idle, "frozen_camera": frozen, "blank_camera": blank, "too_short": short}


def damaged(fault: str) -> dict[str, np.ndarray]:
    values = healthy(1)
    FAULTS[fault](values)
    return values


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def change_column(root: Path, name: str, change) -> None:
    (path,) = (root / "data").rglob("*.parquet")
    table = pq.read_table(path)
    values = change(table.column(name).to_pylist())
    position = table.column_names.index(name)
    pq.write_table(table.set_column(position, table.field(name), pa.array(values, table.field(name).type)), path)


def test_healthy_episodes_stay(tmp_path):
    root = write(tmp_path / "data", [healthy(episode) for episode in range(4)])
    report = clean_dataset(root, tmp_path / "out", progress=False)
    assert not report.findings
    assert report.totals()["frames_kept"] == report.totals()["frames"] == 4 * (LENGTH - 1)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_by_its_filter_alone_and_the_filter_can_be_switched_off(tmp_path, fault):
    root = write(tmp_path / "data", [healthy(0), damaged(fault), healthy(2), healthy(3)])
    before = digests(root)
    report = clean_dataset(root, tmp_path / "out", progress=False)
    assert {(finding.filter, finding.episode) for finding in report.findings} == {(fault, 1)}
    assert digests(root) == before
    off = clean_dataset(root, tmp_path / "off", CleaningSettings(skip=(fault,)), progress=False)
    assert not off.findings


def test_ranges_are_those_of_the_fault(tmp_path):
    root = write(tmp_path / "data", [damaged("idle"), damaged("action_jump"), damaged("frozen_camera"), healthy(3)])
    frames = clean_dataset(root, tmp_path / "out", progress=False).filter.frames
    assert frames == {0: [(15, 54)], 1: [(30, 31)], 2: [(11, 40)]}  # half a second of rest stays


def test_non_finite_values_and_wrong_timestamps_remove_the_episode(tmp_path):
    root = write(tmp_path / "data", [healthy(episode) for episode in range(3)])

    def with_nan(rows):
        rows[LENGTH + 5][0] = float("nan")
        return rows

    change_column(root, "action", with_nan)
    change_column(root, "timestamp", lambda rows: [t + (0.2 if i == 130 else 0) for i, t in enumerate(rows)])
    report = clean_dataset(root, tmp_path / "out", progress=False)
    reasons = report.filter.episodes
    assert sorted(reasons) == [1, 2]
    assert reasons[1].startswith("non_finite: action: 1 frames, dimensions [0]")
    assert reasons[2].startswith("timestamps: frame 12 is stamped 1.4 s instead of 1.2 s")
    dataset = RobotDataset(root, embodiment="x", chunk_size=4, filter_file=tmp_path / "out" / "filter.json")
    assert dataset.episodes == [0]
    assert np.isfinite(dataset.actions).all()


def test_undecodable_pictures_remove_the_episode(tmp_path):
    root = write(tmp_path / "data", [healthy(0), healthy(1)])

    def damage(rows):
        rows[70] = {**rows[70], "bytes": rows[70]["bytes"][:40]}
        return rows

    change_column(root, "observation.images.head", damage)
    report = clean_dataset(root, tmp_path / "out", progress=False)
    assert [(f.filter, f.episode, f.stop) for f in report.findings] == [("undecodable", 1, None)]


def test_a_missing_video_file_removes_the_episodes_in_it(tmp_path):
    features = {**FEATURES, "observation.images.head": {**FEATURES["observation.images.head"], "dtype": "video"}}
    root = tmp_path / "data"
    with RobotDatasetWriter(root, fps=FPS, features=features, use_videos=True) as writer:
        for episode in range(2):
            values = healthy(episode)
            for state, action, picture in zip(values["state"], values["action"], values["pictures"], strict=False):
                frame = {"observation.state": state, "action": action, "observation.images.head": picture}
                writer.add_frame(frame, task="move")
            writer.save_episode()
    assert not clean_dataset(root, tmp_path / "before", progress=False).findings
    for path in (root / "videos").rglob("*.mp4"):
        path.write_bytes(path.read_bytes()[:200])
    found = clean_dataset(root, tmp_path / "after", progress=False).findings
    assert {finding.filter for finding in found} == {"undecodable"}


def test_what_says_nothing_about_a_recording_removes_nothing(tmp_path, monkeypatch):
    """A limit of the process and files that were not fetched are errors, not faults of episodes."""
    root = Path(shutil.copytree(Path(__file__).parents[2] / "data" / "lerobot_v21_tiny", tmp_path / "data"))
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    settings = CleaningSettings(skip=("too_short", "blank_camera"))
    video = next((root / "videos").rglob("*.mp4"))
    kept = video.read_bytes()
    video.write_text(pointer)
    with pytest.raises(ValueError, match="git lfs pull"):
        clean_dataset(root, tmp_path / "out", settings, progress=False)
    video.write_bytes(kept)
    data = root / "data/chunk-000/episode_000001.parquet"
    kept = data.read_bytes()
    data.write_text(pointer)
    with pytest.raises(ValueError, match="git lfs pull"):
        clean_dataset(root, tmp_path / "out", settings, progress=False)
    data.write_bytes(kept)

    def full(*_args, **_options):
        raise TooManyOpenFilesError("too many open files: this process may hold 64")

    monkeypatch.setattr(RobotDataset, "read_image", full)
    with pytest.raises(ValueError, match="this process may hold 64"):
        clean_dataset(root, tmp_path / "out", settings, progress=False)


def test_an_unreadable_parquet_file_removes_its_episodes_alone(tmp_path):
    root = Path(shutil.copytree(Path(__file__).parents[2] / "data" / "lerobot_v21_tiny", tmp_path / "data"))
    (root / "data/chunk-000/episode_000001.parquet").write_bytes(b"no parquet")
    settings = CleaningSettings(skip=("too_short", "blank_camera"))
    report = clean_dataset(root, tmp_path / "out", settings, progress=False)
    assert [(finding.filter, finding.episode) for finding in report.findings] == [("unreadable", 1)]
    assert len(RobotDataset(root, embodiment="x", chunk_size=2, filter_file=tmp_path / "out/filter.json")) == 3


def test_removed_frames_count_as_never_recorded(tmp_path):
    root = write(tmp_path / "data", [damaged("action_jump"), healthy(1)])
    clean_dataset(root, tmp_path / "out", progress=False)
    whole = RobotDataset(root, embodiment="x", chunk_size=4)
    dataset = RobotDataset(root, embodiment="x", chunk_size=4, filter_file=tmp_path / "out" / "filter.json")
    assert len(dataset) == len(whole) - 1
    assert [dataset[i]["frame_index"] for i in (28, 29, 30)] == [28, 29, 31]
    assert dataset[28]["action_is_pad"].tolist() == [False, False, True, True]
    np.testing.assert_array_equal(dataset[28]["actions"][2:], np.repeat(whole.actions[29:30], 2, axis=0))
    ended = whole[LENGTH - 3]  # two steps before the end of the episode
    assert ended["action_is_pad"].tolist() == dataset[28]["action_is_pad"].tolist(), "a cut is as an end"
    np.testing.assert_array_equal(ended["actions"][2:], np.repeat(ended["actions"][1:2], 2, axis=0))
    after = dataset[30]
    np.testing.assert_array_equal(after["actions"], whole[31]["actions"])
    np.testing.assert_array_equal(after["images"]["center"], whole[31]["images"]["center"])
    last = dataset[len(dataset) - 1]
    assert (last["episode_index"], last["action_is_pad"].tolist()) == (1, [False, True, True, True])
    assert dataset.episode_lengths.tolist() == [LENGTH - 2, LENGTH - 1]
    assert dataset.statistics()["action"]["count"] == [len(dataset)]


def test_a_filter_of_another_state_of_the_data_set_is_refused(tmp_path):
    root = write(tmp_path / "data", [damaged("action_jump"), healthy(1)])
    clean_dataset(root, tmp_path / "out", progress=False)
    other = write(tmp_path / "other", [healthy(0)])
    with pytest.raises(ValueError, match=r"episodes was 2, is 1.*syvla-clean"):
        RobotDataset(other, embodiment="x", filter_file=tmp_path / "out" / "filter.json")
    with pytest.raises(FileNotFoundError, match="syvla-clean"):
        RobotDataset(root, embodiment="x", filter_file=tmp_path / "nothing.json")
    (tmp_path / "broken.json").write_text('{"format": "something"}')
    with pytest.raises(ValueError, match="syvla-frame-filter"):
        RobotDataset(root, embodiment="x", filter_file=tmp_path / "broken.json")


@pytest.mark.slow
def test_workers_change_nothing(tmp_path):
    root = write(tmp_path / "data", [healthy(0), damaged("idle"), damaged("blank_camera"), healthy(3)])
    single = clean_dataset(root, tmp_path / "one", progress=False)
    several = clean_dataset(root, tmp_path / "two", workers=2, progress=False)
    assert single.to_dict() == several.to_dict()


def test_command_writes_report_filter_and_table(tmp_path, capsys):
    root = write(tmp_path / "data", [healthy(0), damaged("idle"), healthy(2), healthy(3)])
    (tmp_path / "settings.yaml").write_text("idle_seconds: 2.0\nskip: [blank_camera]\n")
    options = ["--config", str(tmp_path / "settings.yaml"), "--idle-keep-seconds", "1.0", "--quiet"]
    status = main([str(root), "--output", str(tmp_path / "out"), *options])
    printed = capsys.readouterr().out
    assert status == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["settings"]["idle_seconds"] == 2.0
    assert report["filters"]["blank_camera"]["skipped"] is True
    assert report["filters"]["idle"] == {
        "skipped": False,
        "episodes": 1,
        "episodes_removed": 0,
        "frames": 34,
        "seconds": 3.4,
        "full_chunks": 10,  # of 10 in the episode of 59 frames: 15 are left before the rest and 5 after it
    }
    totals = report["totals"]
    assert (report["chunk_size"], totals["full_chunks"], totals["full_chunks_kept"]) == (50, 40, 30)
    assert set(report["filters"]) == set(FILTERS)
    assert "| idle | 1 | 0 | 34 | 3.4 | 10 | episode 1: no motion for 4.4 s |" in printed
    assert "filter_file:" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--min-seconds", "-1"], "min_seconds: expected a number of at least 0"),
        (["--camera", "center=observation.images.nose"], "choose from ['observation.images.head']"),
        (["--camera", "center"], "expected VIEW=KEY"),
        (["--chunk-size", "0"], "chunk_size: expected at least 1"),
        (["--output", "{root}/cleaning"], "lies inside the dataset"),
    ],
)
def test_bad_input_is_refused(tmp_path, capsys, arguments, message):
    root = write(tmp_path / "data", [healthy(0)])
    given = [argument.format(root=root) for argument in arguments]
    assert main([str(root), "--output", str(tmp_path / "out"), "--quiet", *given]) == 1
    assert message in capsys.readouterr().err


def test_unknown_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown keys"):
        CleaningSettings.from_mapping({"idle": 3})
    with pytest.raises(ValueError, match="expected a list of names"):
        CleaningSettings.from_mapping({"skip": "idle"})
    with pytest.raises(ValueError, match="jump_noise: expected a mapping"):
        CleaningSettings.from_mapping({"jump_noise": 0.1})
    with pytest.raises(ValueError, match="jump_noise: joint: expected a number"):
        CleaningSettings(jump_noise={"joint": -1.0})
    with pytest.raises(ValueError, match="unknown filters"):
        CleaningSettings(skip=("everything",))


def test_a_noise_floor_names_a_dimension(tmp_path):
    root = write(tmp_path / "data", [damaged("action_jump"), healthy(1)])
    below = clean_dataset(root, tmp_path / "below", CleaningSettings(jump_noise={"joint": 2.5}), progress=False)
    above = clean_dataset(root, tmp_path / "above", CleaningSettings(jump_noise={"joint": 3.5}), progress=False)
    assert (len(below.findings), len(above.findings)) == (1, 0)  # the spike is 3 high
    with pytest.raises(ValueError, match="jump_noise: 'elbow' is no dimension"):
        clean_dataset(root, tmp_path / "out", CleaningSettings(jump_noise={"elbow": 1.0}), progress=False)


def test_full_chunks_are_counted_between_the_gaps():
    spike = Finding("action_jump", 0, 40, 41, "")
    assert full_chunks([], [100, 30], 20) == 81 + 11
    assert full_chunks([spike], [100, 30], 20) == (40 - 19) + (59 - 19) + 11
    assert full_chunks([spike, Finding("too_short", 1, 0, None, "")], [100, 30], 20) == 21 + 40


def test_ranges_are_merged():
    assert merge_ranges({3: [(5, 8), (1, 2), (2, 3), (7, 9)], 4: []}) == {3: [(1, 3), (5, 9)]}
