"""The writer: the golden layout, exact statistics, resuming, bad frames."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from dataset_recordings import check_content, features, frame, record, record_episode

from syvla.processing import RobotDataset, RobotDatasetWriter
from syvla.processing.recording import parquet_files as recording_files
from syvla.processing.robot_data.lerobot_format import DEFAULT_FEATURES

pytestmark = pytest.mark.smoke

HERE = Path(__file__).parents[1]
GOLDEN = HERE.parent / "data/lerobot_v3_tiny"


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.mark.parametrize("use_videos", [False, True])
def test_what_was_recorded_is_read_back(tmp_path, use_videos):
    root = record(tmp_path / "set", (5, 7, 4), use_videos=use_videos, thoughts=True, robot_type="toy")
    dataset = check_content(root, 3)
    assert dataset.episode_lengths.tolist() == [5, 7, 4]
    assert dataset[3]["thought"] == "step 1 of episode 0"
    assert dataset.info.robot_type == "toy"
    if not use_videos:  # PNG loses nothing
        np.testing.assert_array_equal(dataset[6]["images"]["center"], frame(1, 1)["observation.images.head"])


# -- the golden dataset ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def like_golden(tmp_path_factory) -> Path:
    """The golden dataset's frames, recorded by this writer."""
    root = tmp_path_factory.mktemp("recorded") / "set"
    golden = RobotDataset(GOLDEN, embodiment="toy")
    table = pq.read_table(GOLDEN / "data/chunk-000/file-000.parquet")
    user = {
        key: {name: feature[name] for name in ("dtype", "shape", "names")}
        for key, feature in golden.features.items()
        if key not in DEFAULT_FEATURES and key != "language_persistent"
    }
    with RobotDatasetWriter(
        root, fps=10, features=user, robot_type="toy", use_videos=None, thoughts=True, video_codec="h264"
    ) as writer:
        for index in range(len(golden)):
            item = golden[index]
            if index and item["frame_index"] == 0:
                writer.save_episode()
            values = {
                key: table.column(key)[index].as_py() for key in user if user[key]["dtype"] not in ("image", "video")
            }
            values = {key: v if isinstance(v, str) else np.array(v, user[key]["dtype"]) for key, v in values.items()}
            values["observation.images.head"] = item["images"]["center"]
            values["observation.images.left_wrist"] = item["images"]["left_wrist"]
            writer.add_frame(values, task=item["text"], thought=item["thought"])
        writer.save_episode()
    return root


def test_info_has_the_golden_keys_and_values(like_golden):
    golden, own = read_json(GOLDEN / "meta/info.json"), read_json(like_golden / "meta/info.json")
    own_features, golden_features = own.pop("features"), golden.pop("features")
    assert own == golden
    assert own_features == golden_features


def test_data_files_have_the_golden_columns_types_and_footer(like_golden):
    path = "data/chunk-000/file-000.parquet"
    golden, own = pq.ParquetFile(GOLDEN / path), pq.ParquetFile(like_golden / path)
    golden_types = {field.name: field.type for field in golden.schema_arrow}
    assert {field.name: field.type for field in own.schema_arrow} == golden_types
    golden_footer, footer = (json.loads(f.schema_arrow.metadata[b"huggingface"]) for f in (golden, own))
    assert footer["info"] == golden_footer["info"]
    assert own.num_row_groups == golden.num_row_groups == 2  # one per episode
    assert [own.metadata.row_group(group).num_rows for group in range(2)] == [3, 4]
    assert {own.metadata.row_group(0).column(0).compression} == {"SNAPPY"}
    own_rows, golden_rows = own.read().to_pylist(), golden.read().to_pylist()
    for row, expected in zip(own_rows, golden_rows, strict=True):
        row["observation.images.head"].pop("bytes")  # another compression level
        expected["observation.images.head"].pop("bytes")
        task, golden_task = row.pop("task_index"), expected.pop("task_index")
        assert task == 1 - golden_task  # numbered in the order of recording
        assert row == expected


def test_episode_files_have_the_golden_columns_and_types(like_golden):
    path = "meta/episodes/chunk-000/file-000.parquet"
    golden, own = pq.read_table(GOLDEN / path), pq.read_table(like_golden / path)
    assert {field.name: field.type for field in own.schema} == {field.name: field.type for field in golden.schema}
    skipped = ("task_index/", "left_wrist/", "meta/")  # numbering of tasks, lossy video, file layout
    for row, expected in zip(own.to_pylist(), golden.to_pylist(), strict=True):
        for key, value in expected.items():
            if not any(part in key for part in skipped):
                assert_close(row[key], value, key)


def test_tasks_file_has_the_golden_layout(like_golden):
    golden, own = (pd.read_parquet(root / "meta/tasks.parquet") for root in (GOLDEN, like_golden))
    assert own.index.name == golden.index.name == "task"
    assert own.dtypes.to_dict() == golden.dtypes.to_dict()
    assert own["task_index"].to_dict() == {"put down the cube": 0, "pick up the cube": 1}
    # LeRobot's lookup of an instruction
    assert own.iloc[1].name == "pick up the cube"


def test_statistics_are_the_golden_ones(like_golden):
    golden, own = read_json(GOLDEN / "meta/stats.json"), read_json(like_golden / "meta/stats.json")
    assert set(own) == set(golden)
    for key in set(golden) - {"task_index", "observation.images.left_wrist", "observation.images.head"}:
        assert_close(own[key], golden[key], key)
    head, expected = own["observation.images.head"], golden["observation.images.head"]
    for name in ("min", "max", "mean", "std", "count"):  # quantiles of images are merged from the episodes'
        assert_close(head[name], expected[name], name)
    for name in ("q01", "q10", "q50", "q90", "q99"):
        np.testing.assert_allclose(np.shape(head[name]), (3, 1, 1))
        np.testing.assert_allclose(head[name], expected[name], atol=0.05)


def assert_close(value, expected, where: str) -> None:
    if isinstance(expected, dict):
        assert value.keys() == expected.keys(), where
        for key in expected:
            assert_close(value[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, str) or (isinstance(expected, list) and expected and isinstance(expected[0], str)):
        assert value == expected, where
    else:
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-12, err_msg=where)
        assert np.shape(value) == np.shape(expected), where


# -- growth and resumption ----------------------------------------------------------------------------------------------


def test_statistics_cover_all_frames_after_many_episodes_and_resumption(tmp_path):
    generator = np.random.default_rng(0)
    root, states, images = tmp_path / "set", [], []
    for _ in range(2):
        with RobotDatasetWriter(root, fps=10, features=features(), use_videos=False) as writer:
            for _ in range(8):
                for _ in range(int(generator.integers(3, 9))):
                    values = frame(0, 0)
                    values["observation.state"] = generator.normal(size=3).astype(np.float32)
                    values["observation.images.head"] = generator.integers(0, 256, (16, 16, 3)).astype(np.uint8)
                    states.append(values["observation.state"])
                    images.append(values["observation.images.head"])
                    writer.add_frame(values, task="t")
                writer.save_episode()
    stats = read_json(root / "meta/stats.json")
    exact = np.array(states, np.float64)
    assert stats["observation.state"]["count"] == [len(states)] == stats["observation.images.head"]["count"]
    np.testing.assert_allclose(stats["observation.state"]["q01"], np.quantile(exact, 0.01, axis=0))
    np.testing.assert_allclose(stats["observation.state"]["std"], exact.std(0))
    pixels = np.array(images).reshape(-1, 3) / 255
    np.testing.assert_allclose(np.ravel(stats["observation.images.head"]["mean"]), pixels.mean(0))
    np.testing.assert_allclose(np.ravel(stats["observation.images.head"]["std"]), pixels.std(0))
    np.testing.assert_allclose(
        np.ravel(stats["observation.images.head"]["q90"]), np.quantile(pixels, 0.9, axis=0), atol=0.01
    )


@pytest.mark.parametrize("use_videos", [False, True])
def test_reopening_goes_on_after_the_last_episode(tmp_path, use_videos):
    root = tmp_path / "set"
    for episode in range(4):
        with RobotDatasetWriter(root, fps=10, features=features(), use_videos=use_videos) as writer:
            assert (writer.num_episodes, writer.num_frames) == (episode, 4 * episode)
            record_episode(writer, episode, 4)
    check_content(root, 4)
    assert len(list(root.glob("data/*/*.parquet"))) == 1  # small files grow
    assert len(list(root.glob("meta/episodes/*/*.parquet"))) == 1


def test_full_files_are_followed_by_new_ones_and_chunks_by_new_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(recording_files.GrowingTable.__init__, "__kwdefaults__", {
        **recording_files.GrowingTable.__init__.__kwdefaults__, "max_bytes": 1,
    })  # fmt: skip
    monkeypatch.setattr("syvla.processing.robot_data.lerobot_format.CHUNKS_SIZE", 2)
    root = record(tmp_path / "set", (3, 3, 3, 3, 3), use_videos=True)
    names = sorted(path.relative_to(root).as_posix() for path in root.glob("data/*/*"))
    assert names == [f"data/chunk-{i // 2:03d}/file-{i % 2:03d}.parquet" for i in range(5)]
    assert len(list(root.glob("videos/observation.images.head/chunk-002/*.mp4"))) == 1
    assert len(list(root.glob("meta/episodes/*/*.parquet"))) == 5
    check_content(root, 5)


def test_discarded_episodes_leave_no_trace(tmp_path):
    with RobotDatasetWriter(tmp_path / "set", fps=10, features=features(), use_videos=True) as writer:
        record_episode(writer, 0, 3)
        writer.add_frame(frame(9, 9), task="wrong")
        writer.discard_episode()
        record_episode(writer, 1, 3)
        writer.add_frame(frame(9, 9), task="unsaved")
    check_content(tmp_path / "set", 2)
    assert len(list((tmp_path / "set").glob("videos/*/*/*.mp4"))) == 4
    assert not (tmp_path / "set/.recording").exists()
    writer.finalize()
    with pytest.raises(RuntimeError, match="finalized"):
        writer.add_frame(frame(0, 0), task="late")


# -- bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation.state": np.zeros(4, np.float32)}, r"observation\.state: expected shape \(3,\) float32"),
        ({"observation.state": np.array([0, np.nan, 0], np.float32)}, r"observation\.state: expected finite"),
        ({"observation.state": np.zeros(3, complex)}, "complex"),
        ({"observation.images.head": np.zeros((3, 16, 16), np.uint8)}, "move channels last"),
        (
            {"observation.images.head": np.zeros((16, 16, 3), np.float32)},
            r"observation\.images\.head: expected \(H, W, 3\)",
        ),
        ({"velocity": np.zeros(3)}, r"unknown \['velocity'\]"),
    ],
)
def test_bad_frames_are_refused_and_recording_goes_on(tmp_path, change, message):
    with RobotDatasetWriter(tmp_path / "set", fps=10, features=features(), use_videos=True) as writer:
        writer.add_frame(frame(0, 0), task="task 0")
        with pytest.raises(ValueError, match=message):
            writer.add_frame({**frame(0, 1), **change}, task="task 0")
        with pytest.raises(ValueError, match=r"missing \['action'\]"):
            writer.add_frame({key: v for key, v in frame(0, 1).items() if key != "action"}, task="task 0")
        with pytest.raises(ValueError, match="task"):
            writer.add_frame(frame(0, 1), task="  ")
        writer.add_frame(frame(0, 1), task="task 0")
        writer.save_episode()
        with pytest.raises(ValueError, match="no frames"):
            writer.save_episode()
    check_content(tmp_path / "set", 1)


def test_columns_are_fixed_by_the_first_episode(tmp_path):
    with RobotDatasetWriter(tmp_path / "set", fps=10, features=features(), use_videos=False) as writer:
        record_episode(writer, 0, 3, thoughts=False)
        with pytest.raises(ValueError, match="thoughts=True"):
            writer.add_frame(frame(1, 0), task="t", thought="late")
    with pytest.raises(ValueError, match="no thoughts"):
        RobotDatasetWriter(tmp_path / "set", fps=10, features=features(), use_videos=False, thoughts=True)


def test_reopening_with_other_settings_is_refused(tmp_path):
    root = record(tmp_path / "set")
    other = features()
    other["action"]["shape"] = [5]
    for options, message in (
        ({"fps": 20, "features": features()}, "fps"),
        ({"fps": 10, "features": other}, "features"),
        ({"fps": 10, "features": features(), "use_videos": True}, "features"),
    ):
        with pytest.raises(ValueError, match=message):
            RobotDatasetWriter(root, **{"use_videos": False, **options})
    check_content(root, 3)
    root = record(tmp_path / "videos", use_videos=True, video_codec="h264")
    with pytest.raises(ValueError, match="its videos are h264; leave it out"):
        RobotDatasetWriter(root, fps=10, features=features(), video_codec="libsvtav1")


def test_foreign_folders_and_formats_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        RobotDatasetWriter(tmp_path, fps=10, features=features())
    with pytest.raises(ValueError, match="but not extended"):
        RobotDatasetWriter(HERE.parent / "data/lerobot_v21_tiny", fps=10, features=features())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timestamp": {"dtype": "float32", "shape": [1]}}, "added by the writer"),
        ({"a/b": {"dtype": "float32", "shape": [1]}}, "rename it"),
        ({"depth": {"dtype": "image", "shape": [4, 4, 1]}}, "must be RGB"),
        ({"x": {"dtype": "float32", "shape": [0]}}, "positive integers"),
    ],
)
def test_bad_features_are_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        RobotDatasetWriter(tmp_path / "set", fps=10, features={**features(), **change})


@pytest.mark.parametrize("fps", [0, -1, 12.5, float("nan"), float("inf"), True, "10", 20_000])
def test_a_bad_frame_rate_is_named(tmp_path, fps):
    with pytest.raises(ValueError, match="fps: expected an integer from 1 to 10000, got"):
        RobotDatasetWriter(tmp_path / "set", fps=fps, features=features())


def test_two_writers_cannot_share_a_folder(tmp_path):
    with (
        RobotDatasetWriter(tmp_path / "set", fps=10, features=features()),
        pytest.raises(RuntimeError, match="another process is recording"),
    ):
        RobotDatasetWriter(tmp_path / "set", fps=10, features=features())
