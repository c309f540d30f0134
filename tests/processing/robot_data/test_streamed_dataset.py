"""A streamed dataset gives the samples of the local one, bit for bit, and reads `meta/` alone when it is opened."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.data_loader import SkipBatchSampler
from dataset_recordings import record

from benchmarks.throttled_server import FolderServer
from syvla.processing.mixture import MixtureBatchSampler, MixtureDataset
from syvla.processing.robot_data.frame_filter import FrameFilter, dataset_digest
from syvla.processing.robot_data.lerobot_format import DatasetError
from syvla.processing.robot_data.robot_dataset import RobotDataset
from syvla.processing.robot_data.streamed_dataset import StreamedRobotDataset, open_robot_dataset
from syvla.processing.streaming.file_cache import CacheError
from syvla.processing.streaming.prefetch import LookAheadBatchSampler
from syvla.processing.streaming.remote_folder import StreamingError

DATA = Path(__file__).parents[2] / "data"
OPTIONS = {"embodiment": "robot", "chunk_size": 4}
LENGTHS = (5, 7, 4, 6)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        other = b[key]
        if key == "images":
            assert value.keys() == other.keys()
            for view in value:
                np.testing.assert_array_equal(value[view], other[view])
        elif isinstance(value, np.ndarray):
            assert value.dtype == other.dtype
            np.testing.assert_array_equal(value, other)
        else:
            assert value == other, key


@pytest.fixture(scope="module", params=[False, True], ids=["images", "videos"])
def root(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded") / "set"
    return record(folder, LENGTHS, use_videos=request.param, thoughts=True)


@pytest.fixture
def stream(tmp_path):
    """Opens a folder by a server: `stream(root, **options) -> dataset`; `stream.server` is the last one's."""
    contexts = []

    def open_streamed(root, **options):
        context = FolderServer.running(root)
        contexts.append(context)
        open_streamed.server = context.__enter__()
        given = {"cache_dir": tmp_path / "cache", "cache_gb": 0.01, "patience": 0.2, **OPTIONS, **options}
        return StreamedRobotDataset(open_streamed.server.url, **given)

    yield open_streamed
    for context in contexts:
        context.__exit__(None, None, None)


def test_every_sample_is_that_of_the_local_dataset(root, stream):
    local, streamed = RobotDataset(root, **OPTIONS), stream(root)
    assert len(streamed) == len(local) == sum(LENGTHS)
    for index in range(-1, len(local)):
        assert_same(streamed[index], local[index])
    assert streamed.episode_lengths.tolist() == list(LENGTHS)
    assert streamed.episode_starts.tolist() == local.episode_starts.tolist()
    assert (streamed.state_dim, streamed.action_dim) == (local.state_dim, local.action_dim)
    with pytest.raises(IndexError, match="index 22 is out of range: http"):
        streamed[22]


@pytest.mark.parametrize("name", ["lerobot_v3_tiny", "lerobot_v21_tiny"])
def test_the_golden_datasets_are_read_exactly(name, stream):
    cameras = {"center": "observation.images.head", "left_wrist": "observation.images.left_wrist"}
    local, streamed = RobotDataset(DATA / name, cameras=cameras, **OPTIONS), stream(DATA / name, cameras=cameras)
    for index in range(len(local)):
        assert_same(streamed[index], local[index])


def test_options_mean_the_same(root, stream, tmp_path):
    local = RobotDataset(root, **OPTIONS)
    kept = FrameFilter(dataset_digest(local.metadata), {2: "short"}, {1: [(0, 1), (3, 5)]})
    kept.save(tmp_path / "filter.json")
    options = {"episodes": [3, 2, 1], "filter_file": tmp_path / "filter.json", "control_hz": 7.0}
    local, streamed = RobotDataset(root, **{**OPTIONS, **options}), stream(root, **options)
    assert len(streamed) == len(local) == 10
    assert streamed.episodes == local.episodes == [3, 1]
    for index in range(len(local)):
        assert_same(streamed[index], local[index])


def test_only_metadata_is_read_when_it_is_opened(root, stream):
    streamed = stream(root)
    server = stream.server
    assert {path.split("/")[0] for _, path in server.link.requests} == {"meta"}
    streamed.statistics()
    assert streamed.tasks == ["task 0", "task 1"]
    assert {path.split("/")[0] for _, path in server.link.requests} == {"meta"}
    before = len(server.link.requests)
    streamed[0]
    fetched = {path for method, path in server.link.requests[before:] if method == "GET"}
    assert fetched == set(streamed.files_of(0)), "and then what the sample needs"


def test_a_second_opening_fetches_no_metadata_again(root, stream, tmp_path):
    streamed = stream(root)
    fetched = {path for path in stream.server.link.paths("GET") if (root / path).is_file()}
    assert "meta/tasks.parquet" in fetched
    before = len(stream.server.link.requests)
    again = StreamedRobotDataset(stream.server.url, cache_dir=tmp_path / "cache", cache_gb=0.01, **OPTIONS)
    after = stream.server.link.requests[before:]
    assert [path for method, path in after if method == "GET" and (root / path).is_file()] == ["meta/info.json"]
    assert again.root == streamed.root


def loaded(dataset, workers, skip=0, ahead=False):
    """Batches as the trainer's loader makes them, after some that were trained on before."""
    sampler = MixtureBatchSampler([len(dataset)], batch_size=4, multimodal_share=0.0, seed=3, with_pass=True)
    if ahead:
        sampler = LookAheadBatchSampler(sampler, {0: dataset}, window=10**7, skipped=skip, in_flight=2 * workers)
    batches = SkipBatchSampler(sampler, skip_batches=skip) if skip else sampler
    loader = torch.utils.data.DataLoader(
        MixtureDataset([dataset]), batch_sampler=batches, collate_fn=list, num_workers=workers
    )
    return list(loader)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("skip", [0, 4])
def test_batches_are_those_of_the_local_data_also_after_a_resumption(root, stream, workers, skip):
    expected = loaded(RobotDataset(root, **OPTIONS), 0)[skip:]
    found = loaded(stream(root), workers, skip, ahead=True)
    assert len(found) == len(expected) == 6 - skip
    for batch, other in zip(found, expected, strict=True):
        for item, wanted in zip(batch, other, strict=True):
            assert_same(item, wanted)


def test_a_small_cache_is_enough_and_is_never_exceeded(stream, tmp_path):
    root = record(tmp_path / "set", LENGTHS, use_videos=True, size=64)
    largest = max(path.stat().st_size for path in root.rglob("*") if path.is_file() and "meta" not in path.parts)
    limit = 2 * largest
    streamed = stream(root, cache_gb=limit / 1e9)
    local = RobotDataset(root, **OPTIONS)
    for batch in loaded(streamed, 2, ahead=True):
        for item in batch:
            assert_same({**item, "source": 0}, {**local[item["index"]], "source": 0})
        assert streamed.files.cache.stored_bytes() <= streamed.files.cache.limit


def test_a_missing_video_a_cut_parquet_file_and_a_refusal_are_named(stream, tmp_path):
    root = record(tmp_path / "set", (3, 3), use_videos=True)
    video = "videos/observation.images.head/chunk-000/file-001.mp4"
    streamed = stream(root)
    shutil.move(root / video, tmp_path / "video.mp4")
    with pytest.raises(StreamingError, match=rf"{stream.server.url}/{video}: missing at the source \(404\)"):
        streamed[4]
    (root / video).write_bytes((tmp_path / "video.mp4").read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"{stream.server.url}/{video}: "):
        streamed[4]
    stream.server.link.status = 403
    with pytest.raises(StreamingError, match=r"file-00\d.mp4: the source refuses access \(403\)"):
        streamed[1]
    stream.server.link.status = None
    data = root / "data/chunk-000/file-000.parquet"
    data.write_bytes(data.read_bytes()[:-300])
    shutil.rmtree(tmp_path / "cache")
    cut = stream(root)
    with pytest.raises(DatasetError, match=rf"{stream.server.url}: 1 problem\n- data/chunk-000/file-000.parquet: "):
        cut[0]


def test_values_are_checked_when_they_are_read(stream, tmp_path):
    root = record(tmp_path / "set", (3, 3))
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    values = np.array(table.column("action").to_pylist(), np.float32)
    values[4, 1] = np.nan
    column = pa.FixedSizeListArray.from_arrays(values.reshape(-1), 2)
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), path)
    streamed = stream(root)
    streamed[0]
    with pytest.raises(
        DatasetError, match=r"file-000.parquet: action dimension 1 of episode 1, frame 1, is nan; repair it"
    ):
        streamed[3]


def test_what_needs_every_frame_says_so(root, stream):
    streamed = stream(root)
    for name in ("states", "actions", "timestamps", "task_indices", "num_frames_with_thought"):
        with pytest.raises(ValueError, match=f"{name}: http.* is streamed, and its frames are never all in memory"):
            getattr(streamed, name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"streaming": True},
            "streaming: .* is a local folder, which is read without it; leave streaming and cache_gb out",
        ),
        ({"cache_gb": 3}, "cache_gb: .* has no effect without it; set streaming: true"),
        ({"streaming": "yes"}, "streaming: expected true or false, got 'yes'"),
        ({"streaming": True, "cache_gb": -1}, "cache_gb: expected a positive number of gigabytes, got -1"),
        ({"streaming": True, "cache_images": True}, "cache_images: has no effect with streaming"),
        ({"streaming": True, "memory_limit": 5}, "memory_limit: has no effect with streaming"),
    ],
)
def test_settings_without_effect_are_refused(root, options, message):
    with pytest.raises(ValueError, match=message):
        open_robot_dataset(root, **OPTIONS, **options)


def test_a_url_without_streaming_and_a_revision_without_the_hub_are_refused(root):
    with pytest.raises(ValueError, match="path: s3://bucket/set is a URL, which is only read with streaming: true"):
        open_robot_dataset("s3://bucket/set", **OPTIONS)
    with pytest.raises(ValueError, match=r"revision: http://127.0.0.1/set has none, only datasets on the Hub do"):
        open_robot_dataset("http://127.0.0.1/set", streaming=True, revision="v3.0", **OPTIONS)
    with pytest.raises(ValueError, match=r"streaming, cache_gb: .*: every frame is needed here"):
        RobotDataset(root, streaming=True, **OPTIONS)


def test_another_bound_for_the_same_cache_is_refused(root, stream, tmp_path):
    streamed = stream(root)
    with pytest.raises(CacheError, match=r"cache_gb: 0.02 here, but 0.01 of a run or dataset that is using"):
        StreamedRobotDataset(stream.server.url, cache_dir=tmp_path / "cache", cache_gb=0.02, **OPTIONS)
    assert len(streamed)


def test_a_page_that_is_no_dataset_is_refused(tmp_path, stream):
    (tmp_path / "web/meta").mkdir(parents=True)
    (tmp_path / "web/meta/info.json").write_text("<html>")
    with pytest.raises(StreamingError, match=r"meta/info.json: is no info.json of a LeRobot dataset; check the path"):
        stream(tmp_path / "web")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StreamingError, match=r"meta/info.json: missing at the source \(404\)"):
        stream(tmp_path / "empty")
    info = json.loads((DATA / "lerobot_v3_tiny/meta/info.json").read_text())
    (tmp_path / "web/meta/info.json").write_text(json.dumps({**info, "codebase_version": "v1.6"}))
    with pytest.raises(DatasetError, match=r"http://127.0.0.1:\d+: .*problem"):
        stream(tmp_path / "web")
