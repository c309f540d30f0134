"""The reader: every field of the golden datasets, chunks, workers, caches, Hub ids and clear errors."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from dataset_recordings import frame, record

from syvla.processing import RobotDataset
from syvla.processing.robot_data.lerobot_format import DatasetError

pytestmark = pytest.mark.smoke

DATA = Path(__file__).parents[2] / "data"
V3, V21 = DATA / "lerobot_v3_tiny", DATA / "lerobot_v21_tiny"
CAMERAS = {"center": "observation.images.head", "left_wrist": "observation.images.left_wrist"}


@pytest.fixture
def golden(tmp_path) -> Path:
    """A copy of the golden v3.0 dataset to damage."""
    return Path(shutil.copytree(V3, tmp_path / "golden"))


def change_info(root: Path, **values) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_feature(root: Path, key: str, **values) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][key] |= values
    change_info(root, features=info["features"])


def open_golden(root: Path, **options) -> RobotDataset:
    return RobotDataset(root, **{"embodiment": "toy", "cameras": CAMERAS, "chunk_size": 3, **options})


@pytest.mark.parametrize("root", [V3, V21])
def test_golden_data_set_is_read_exactly(root):
    dataset = open_golden(root)
    assert (len(dataset), dataset.num_frames, dataset.num_episodes, dataset.fps) == (7, 7, 2, 10)
    assert dataset.episode_lengths.tolist() == [3, 4]
    assert dataset.tasks == ["pick up the cube", "put down the cube"]
    assert (dataset.state_dim, dataset.state_names) == (2, ["joint", "gripper"])
    assert (dataset.action_dim, dataset.action_names) == (3, ["x", "y", "gripper"])
    for index in range(7):
        episode, step = (0, index) if index < 3 else (1, index - 3)
        last = [2, 3][episode]
        item = dataset[index]
        assert item["text"] == ["put down the cube", "pick up the cube"][episode]
        assert item["embodiment"] == "toy"
        assert (item["index"], item["episode_index"], item["frame_index"]) == (index, episode, step)
        assert item["timestamp"] == pytest.approx(step / 10)
        np.testing.assert_allclose(item["state"], [episode + step / 10, -step], rtol=1e-6)
        steps = [min(step + k, last) for k in range(3)]
        expected = [[episode + k / 10 + 0.05, k, float(k > 0)] for k in steps]
        np.testing.assert_allclose(item["actions"], expected, rtol=1e-6)
        assert item["action_is_pad"].tolist() == [step + k > last for k in range(3)]
        assert item["state"].dtype == item["actions"].dtype == np.float32
        center, wrist = item["images"]["center"], item["images"]["left_wrist"]
        assert center.shape == (6, 8, 3)
        assert center.dtype == wrist.dtype == np.uint8
        assert center[0, 0].tolist() == [255] * 3
        assert center[3, 4].tolist() == [10 * episode + step, 100, 200]
        assert wrist.shape == (32, 48, 3)
        assert np.abs(wrist.astype(int) - (30 + 100 * episode + 20 * step)).max() <= 4  # h264


def test_golden_thoughts_hold_from_their_time_on():
    thoughts = [open_golden(V3)[index]["thought"] for index in range(7)]
    assert thoughts == ["reach the cube"] * 2 + ["grasp the cube"] + [None] + ["release the cube"] * 3
    assert [open_golden(V3, thought_source=None)[index]["thought"] for index in range(7)] == [None] * 7
    assert open_golden(V3, thought_source="note")[5]["thought"] == "episode 1"
    assert open_golden(V21)[0]["thought"] is None


@pytest.mark.parametrize("root", [V3, V21])
def test_statistics_are_those_of_the_selected_episodes(root):
    dataset = open_golden(root, episodes=[1])
    statistics = dataset.statistics()
    np.testing.assert_allclose(statistics["state"]["mean"], [1.15, -1.5], rtol=1e-6)
    np.testing.assert_allclose(
        statistics["state"]["std"], np.std([[1, 0], [1.1, -1], [1.2, -2], [1.3, -3]], axis=0), 1e-6
    )
    assert statistics["action"]["count"] == [4]
    assert statistics["action"]["q50"][1] == 1.5


def test_chosen_episodes_come_in_the_chosen_order(tmp_path):
    root = record(tmp_path / "set", (5, 7, 4))
    dataset = RobotDataset(root, embodiment="x", episodes=[2, 0], chunk_size=6)
    assert [(item["episode_index"], item["frame_index"]) for item in (dataset[0], dataset[4], dataset[-1])] == [
        (2, 0),
        (0, 0),
        (0, 4),
    ]
    assert dataset[4]["index"] == 0
    assert dataset[0]["images"]["center"][0, 0, 0] == frame(2, 0)["observation.images.head"][0, 0, 0]
    assert dataset[3]["actions"][:, 1].tolist() == [-2.0] * 6  # never from the next episode
    with pytest.raises(IndexError):
        dataset[9]


@pytest.mark.parametrize("use_videos", [False, True])
def test_caches_and_memory_maps_change_nothing(tmp_path, use_videos):
    root = record(tmp_path / "set", use_videos=use_videos, thoughts=True)
    plain = RobotDataset(root, embodiment="x", chunk_size=4)
    cached = RobotDataset(root, embodiment="x", chunk_size=4, cache_images=True)
    mapped = RobotDataset(root, embodiment="x", chunk_size=4, memory_limit=0, cache_dir=tmp_path / "cache")
    again = RobotDataset(root, embodiment="x", chunk_size=4, memory_limit=0, cache_dir=tmp_path / "cache")
    for index in np.random.default_rng(0).permutation(len(plain)):
        for other in (cached, mapped, again):
            assert_equal(plain[index], other[index])
    assert len(list(tmp_path.glob("cache/*.arrow"))) == (0 if use_videos else 1)
    cached[0]["images"]["center"][:] = 0  # an item may be changed in place
    assert_equal(cached[0], plain[0])


@pytest.mark.parametrize(
    ("start", "storage"),
    [
        ("fork", "video"),
        ("fork", "image"),
        ("fork", "mapped"),
        pytest.param("spawn", "video", marks=pytest.mark.slow),
        pytest.param("spawn", "mapped", marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:.*fork")
def test_data_loader_workers_read_the_same(tmp_path, start, storage):
    root = record(tmp_path / "set", use_videos=storage == "video", thoughts=True)
    options = {"memory_limit": 0, "cache_dir": tmp_path / "cache"} if storage == "mapped" else {}
    dataset = RobotDataset(root, embodiment="x", chunk_size=4, **options)
    expected = [dataset[index] for index in range(len(dataset))]  # opens the parent's files first
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=4, num_workers=2, collate_fn=list, multiprocessing_context=start
    )
    items = [item for batch in loader for item in batch]
    for item, other in zip(items, expected, strict=True):
        assert_equal(item, other)


def test_pickling_leaves_open_files_behind(tmp_path):
    dataset = RobotDataset(record(tmp_path / "set", use_videos=True), embodiment="x")
    item = dataset[3]
    assert_equal(pickle.loads(pickle.dumps(dataset))[3], item)


def test_channels_first_shapes_and_dictionaries_of_names_are_understood(golden):
    change_feature(golden, "observation.images.head", shape=[3, 6, 8], names=["channels", "height", "width"])
    change_feature(golden, "observation.state", names={"motors": ["joint", "gripper"]})
    dataset = open_golden(golden)
    assert dataset[0]["images"]["center"].shape == (6, 8, 3)
    assert dataset.state_names == ["joint", "gripper"]


def test_rows_beyond_the_finished_episodes_are_ignored(golden):
    """A recording that was killed may hold more rows than info.json counts."""
    change_info(golden, total_episodes=1, total_frames=3, splits={"train": "0:1"})
    assert len(open_golden(golden)) == 3


def test_cameras_are_inferred_from_their_names():
    assert RobotDataset(V3, embodiment="toy").cameras == CAMERAS


# -- Hub ------------------------------------------------------------------------------------------------------------------


def test_hub_repository_is_downloaded_at_the_format_tag(monkeypatch):
    calls = []

    def snapshot_download(repo_id, **options):
        calls.append((repo_id, options))
        return str(V3)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    dataset = RobotDataset(
        "somebody/cubes", embodiment="toy", cameras={"center": "observation.images.head"}, episodes=[1]
    )
    assert len(dataset) == 4
    assert {repo for repo, _ in calls} == {"somebody/cubes"}
    assert all(options["repo_type"] == "dataset" and options["revision"] == "v3.0" for _, options in calls)
    assert calls[0][1]["allow_patterns"] == ["meta/*"]
    assert calls[1][1]["allow_patterns"] == [
        "data/chunk-000/file-000.parquet",
        "meta/*",
    ]  # no video of an unused camera


def test_missing_tag_and_missing_folder_say_what_to_do(monkeypatch, tmp_path):
    from huggingface_hub.errors import RevisionNotFoundError

    class NoSuchTag(RevisionNotFoundError):
        def __init__(self) -> None:
            Exception.__init__(self, "404")

    def snapshot_download(repo_id, **options):
        raise NoSuchTag

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(ValueError, match=r"no revision 'v3\.0' or 'v3\.1' or 'v2\.1' or 'v2\.0'.*revision='main'"):
        RobotDataset("somebody/cubes", embodiment="toy")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        RobotDataset(tmp_path / "nothing", embodiment="toy")


# -- bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1.6", "v4.0", None])
def test_other_versions_are_refused_with_the_fix(golden, version):
    change_info(golden, codebase_version=version)
    with pytest.raises(DatasetError, match=r"expected 'v3.x', 'v2.1' or 'v2.0'; convert"):
        open_golden(golden)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fps": 0}, "fps is 0"),
        ({"total_frames": -1}, "total_frames is -1"),
        ({"total_episodes": 10**18}, "total_episodes"),
        ({"chunks_size": 0}, "chunks_size is 0"),
        ({"features": {}}, "features"),
        ({"features": {"x": {"dtype": "video", "shape": [2, 2, 3], "info": ["depth"]}}}, "expected an object or null"),
        ({"data_path": "../../{chunk_index}/x.parquet"}, "stay inside the dataset"),
        ({"data_path": "/etc/{chunk_index:03d}"}, "stay inside the dataset"),
        ({"data_path": "C:/{chunk_index:03d}"}, "stay inside the dataset"),
        ({"data_path": "data/{chunk_index.__class__}"}, "not allowed"),
        ({"data_path": "data/{chunk_index:9999999999d}"}, "not allowed"),
        ({"video_path": "videos/{video_key!r}"}, "not allowed"),
        ({"video_path": "a/{}"}, "not allowed"),
        ({"total_episodes": 3}, "holds 2 episode rows"),
        ({"total_frames": 8}, "7 frames in sum"),
    ],
)
def test_hostile_or_wrong_info_is_refused(golden, values, message):
    change_info(golden, **values)
    with pytest.raises(DatasetError, match=message):
        open_golden(golden)


@pytest.mark.parametrize("key", ["..", "a/../../b", "a\\b", ""])
def test_feature_names_cannot_leave_the_root(golden, key):
    features = json.loads((golden / "meta/info.json").read_text())["features"]
    features[key] = features.pop("observation.images.left_wrist")
    change_info(golden, features=features)
    with pytest.raises(DatasetError, match="rename it"):
        open_golden(golden, cameras=None)


@pytest.mark.parametrize("shape", [[0], [-1], [2.5], "2", [2**40], [1] * 6])
def test_sizes_out_of_range_are_refused(golden, shape):
    change_feature(golden, "observation.state", shape=shape)
    with pytest.raises(DatasetError, match=r"observation\.state"):
        open_golden(golden)


def test_columns_of_another_size_than_declared_are_named(golden):
    change_feature(golden, "observation.state", shape=[5], names=None)
    change_feature(golden, "action", shape=[1], names=None)
    with pytest.raises(DatasetError, match=r"observation\.state: rows have 2 values, meta/info.json says 5"):
        open_golden(golden)


def test_every_missing_file_is_listed(tmp_path):
    root = Path(shutil.copytree(V21, tmp_path / "set"))
    for path in root.glob("data/*/*.parquet"):
        path.unlink()
    with pytest.raises(DatasetError) as caught:
        open_golden(root)
    assert len(caught.value.problems) == 2
    assert all("data file is missing" in problem for problem in caught.value.problems)


def test_damaged_files_are_named(golden):
    for path in ("data/chunk-000/file-000.parquet", "meta/tasks.parquet"):
        copy = (golden / path).read_bytes()
        (golden / path).write_bytes(copy[:100])
        with pytest.raises(DatasetError, match=path):
            open_golden(golden)
        (golden / path).write_bytes(copy)
    (golden / "meta/info.json").write_text("{")
    with pytest.raises(DatasetError, match="not valid JSON"):
        open_golden(golden)


def test_lengths_that_contradict_the_rows_are_named(golden):
    path = golden / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    position = table.schema.get_field_index("length")
    pq.write_table(table.set_column(position, "length", pa.array([4, 3])), path)
    with pytest.raises(DatasetError, match="holds 3 frames of episode 0, its metadata says 4"):
        open_golden(golden)


def test_damaged_image_is_named_when_read(golden):
    path = golden / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    position = table.schema.get_field_index("observation.images.head")
    kind = table.schema.field(position)
    images = table.column(position).to_pylist()
    images[2]["bytes"] = images[2]["bytes"][:40]
    pq.write_table(table.set_column(position, kind, pa.array(images, kind.type)), path)
    dataset = open_golden(golden)
    dataset[1]
    with pytest.raises(ValueError, match=r"file-000\.parquet: row 2, observation\.images\.head"):
        dataset[2]


def test_image_of_another_size_is_named_before_it_is_decoded(golden):
    change_feature(golden, "observation.images.head", shape=[12, 16, 3])
    with pytest.raises(ValueError, match=r"6 x 8 \(height x width\), meta/info.json says 12 x 16"):
        open_golden(golden)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_key": "qpos"}, r"state_key: 'qpos' is no vector feature.*observation\.state"),
        ({"action_key": "observation.images.head"}, "action_key"),
        ({"cameras": {"center": "observation.images.top"}}, r"no camera.*observation\.images\.head"),
        ({"episodes": [0, 5]}, r"episodes: \[5\] do not exist; the dataset has episodes 0 to 1"),
        ({"episodes": []}, "list is empty"),
        ({"episodes": [1, 1]}, "twice"),
        ({"thought_source": "subtask"}, "thought_source"),
        ({"chunk_size": 0}, "chunk_size"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        open_golden(V3, **options)


def test_all_bad_arguments_are_listed_at_once():
    with pytest.raises(DatasetError) as caught:
        open_golden(V3, state_key="a", action_key="b", cameras={"center": "c"}, episodes=[9], thought_source="d")
    assert len(caught.value.problems) == 5


def assert_equal(item: dict, other: dict) -> None:
    assert item.keys() == other.keys()
    for key, value in item.items():
        if key == "images":
            assert list(value) == list(other[key])
            for view, image in value.items():
                np.testing.assert_array_equal(image, other[key][view])
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, other[key])
        else:
            assert value == other[key]


@pytest.mark.parametrize(
    ("hz", "resample"), [(5, "linear"), (20, "linear"), (20, "nearest"), (4, "linear"), (30, "linear")]
)
def test_chunks_at_another_rate_hold_the_targets_of_their_own_times(tmp_path, hz, resample):
    root = record(tmp_path / "data", (9, 12), fps=10)
    dataset = RobotDataset(root, embodiment="x", chunk_size=4, control_hz=hz, resample=resample)
    for index in (0, 3, 8, 10):
        item = dataset[index]
        length = (9, 12)[item["episode_index"]]
        times = item["frame_index"] + np.arange(4) * 10 / hz  # in frames; the recorded action is linear in time
        np.testing.assert_array_equal(item["action_is_pad"], times > length - 1)
        expected = np.minimum(times, length - 1) / 10
        if resample == "nearest":
            expected = np.floor(expected * 10 + 0.5) / 10
        np.testing.assert_allclose(item["actions"][:, 0], expected, atol=1e-6)
    assert dataset.control_hz == hz


def test_impossible_rates_are_refused():
    with pytest.raises(ValueError, match="control_hz: expected a positive number"):
        open_golden(V3, control_hz=0)
    with pytest.raises(ValueError, match="resample: expected 'linear' or 'nearest'"):
        open_golden(V3, resample="cubic")
