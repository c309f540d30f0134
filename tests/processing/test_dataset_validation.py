"""Validation lists everything wrong at once, each with its fix, and accepts what is right."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_recordings import record
from PIL import Image

from syvla.processing import MultimodalDataset, RobotDataset
from syvla.processing.dataset_validation import WARNING, require_valid, require_valid_chats, validate_dataset

VIEWS = ["center", "left_wrist", "right_wrist"]


@pytest.fixture(scope="module")
def video_set(tmp_path_factory) -> Path:
    return record(tmp_path_factory.mktemp("recorded") / "set", (5, 7, 4), use_videos=True, thoughts=True)


@pytest.fixture
def copy(video_set, tmp_path) -> Path:
    return Path(shutil.copytree(video_set, tmp_path / "set"))


def open_set(root: Path, **options) -> RobotDataset:
    return RobotDataset(root, **{"embodiment": "toy", "chunk_size": 4, **options})


def config(**changes) -> SimpleNamespace:
    values = {"embodiments": {"toy": {"state_dim": 3, "action_dim": 2}}, "views": VIEWS, "chunk_size": 4}
    return SimpleNamespace(**{**values, **changes})


def processor(dataset: RobotDataset, **changes) -> SimpleNamespace:
    entry = {"statistics": dataset.statistics(), "normalization": {"state": "mean_std", "action": "quantile"}}
    values = {
        "embodiments": {"toy": entry},
        "views": VIEWS,
        "chunk_size": 4,
        "max_length": 64,
        "tokenizer": lambda text: {"input_ids": text.split()},
        "collate": lambda items: items,
    }
    return SimpleNamespace(**{**values, **changes})


def change_state(root: Path, frame: int, value: float) -> None:
    path = next(root.glob("data/*/*.parquet"))
    table = pq.read_table(path)
    position = table.schema.get_field_index("observation.state")
    states = np.array(table.column(position).to_pylist(), np.float32)
    states[frame, 1] = value
    column = pa.array(states.tolist(), table.schema.field(position).type)
    pq.write_table(table.set_column(position, table.schema.field(position), column), path)


def errors(problems: list[str]) -> list[str]:
    return [problem for problem in problems if not problem.startswith(WARNING)]


def test_a_sound_data_set_passes_with_warnings_only(video_set, caplog):
    dataset = open_set(video_set)
    problems = validate_dataset(dataset, config(), processor(dataset), images="all")
    assert problems == [f"{WARNING}cameras: no camera for ['right_wrist']; these views are masked"]
    require_valid(dataset, config(), processor(dataset))
    assert "these views are masked" in caplog.text
    assert validate_dataset(dataset) == []


def test_everything_wrong_is_listed_at_once(copy):
    change_state(copy, 6, np.nan)
    change_state(copy, 7, np.inf)
    videos = sorted(copy.glob("videos/observation.images.head/*/*.mp4"))
    videos[0].unlink()
    videos[1].write_bytes(videos[1].read_bytes()[:300])
    shutil.copy(videos[2], sorted(copy.glob("videos/observation.images.left_wrist/*/*.mp4"))[1])  # 4 frames for 7
    dataset = open_set(copy, chunk_size=6, cameras={
        "center": "observation.images.head", "wrist": "observation.images.left_wrist",
    })  # fmt: skip
    bad_statistics = {"state": {"mean": [0.0], "std": [1.0]}, "action": {"mean": [0.0, 0.0]}}
    bad = processor(
        dataset if np.isfinite(dataset.states).all() else open_set(copy, episodes=[0, 2]),
        embodiments={"toy": {"statistics": bad_statistics, "normalization": {}}},
        max_length=1,
    )
    problems = validate_dataset(dataset, config(embodiments={"toy": {"state_dim": 14, "action_dim": 14}}), bad)
    expected = [
        "observation.state: 3 dimensions, but the model's embodiment 'toy' has state_dim 14",
        "action: 2 dimensions, but the model's embodiment 'toy' has action_dim 14",
        "cameras: 'wrist' is no view of the model",
        "statistics: state of embodiment 'toy' has 1 dimensions, the dataset has 3",
        "mode 'mean_std' needs 'std', which is missing",
        "observation.state: 2 values are NaN or infinite, in dimensions [1] of episodes 1",
        "chunk_size: 6 here, 4 in the model",
        "chunk_size: 6 here, 4 in the processor",
        "chunk_size 6 is longer than 2 of 3 episodes (the shortest has 4 frames)",
        "instruction: 2 of 2 have more than the 1 tokens that fit, the longest 2 ('task 0'...)",
        "thought: 9 of 9 have more than the 1 tokens that fit, the longest 5",
        f"{videos[0].name}: the video file is missing",
        f"{videos[1].name}: holds no video stream",
        "the video has 4 frames, its episodes have 7",
    ]
    for text in expected:
        assert any(text in problem for problem in problems), f"{text}\nnot in\n" + "\n".join(problems)
    with pytest.raises(ValueError) as caught:
        require_valid(dataset, config(embodiments={"toy": {"state_dim": 14, "action_dim": 14}}), bad)
    for text in errors(problems):
        assert text in str(caught.value)
    assert "is longer than" not in str(caught.value)  # a warning does not stop training


def test_missing_statistics_and_embodiments_are_named(video_set):
    dataset = open_set(video_set)
    problems = validate_dataset(dataset, config(embodiments={}), processor(dataset, embodiments={}))
    assert any("model.add_embodiment('toy', 3, 2)" in problem for problem in problems)
    assert any("processor.set_embodiment('toy', statistics=dataset.statistics())" in problem for problem in problems)


def test_the_longest_sample_goes_through_the_processor(video_set):
    def collate(items):
        raise ValueError("sample 0: 99 tokens exceed max_length=64; shorten the instruction")

    dataset = open_set(video_set)
    problems = validate_dataset(dataset, config(), processor(dataset, collate=collate))
    assert any("99 tokens exceed max_length" in problem for problem in errors(problems))


def test_own_token_counter_and_limit(video_set):
    problems = validate_dataset(open_set(video_set), count_tokens=len, max_tokens=10)
    assert len(problems) == 1
    assert problems[0].startswith("thought: 9 of 9 have more than the 10 tokens that fit, the longest 19")


def test_too_few_frames_in_a_shared_video_are_counted(tmp_path):
    golden = Path(__file__).parents[1] / "data/lerobot_v3_tiny"
    root = Path(shutil.copytree(golden, tmp_path / "set"))
    dataset = RobotDataset(root, embodiment="toy", chunk_size=2)
    assert validate_dataset(dataset) == []
    short = golden.parent / "lerobot_v21_tiny/videos/chunk-000/observation.images.left_wrist/episode_000001.mp4"
    shutil.copy(short, next(root.glob("videos/*/*/*.mp4")))
    problems = validate_dataset(RobotDataset(root, embodiment="toy", chunk_size=2))
    assert any("the video has 4 frames, its episodes have 7" in problem for problem in problems)
    assert any("no frame at" in problem for problem in problems)


def test_several_data_sets_are_checked_together(copy, video_set):
    next(copy.glob("videos/*/*/*.mp4")).unlink()
    change_state(copy, 0, np.nan)
    with pytest.raises(ValueError, match=r"2 datasets: 2 problems") as caught:
        require_valid([open_set(video_set), open_set(copy)])
    assert str(copy) in str(caught.value)


def test_a_wrong_rate_is_refused_when_opened(copy):
    info = json.loads((copy / "meta/info.json").read_text())
    (copy / "meta/info.json").write_text(json.dumps({**info, "fps": -5}))
    with pytest.raises(ValueError, match=r"fps is -5.*correct it"):
        open_set(copy)


def test_a_chunk_longer_than_every_episode_is_an_error(video_set):
    problems = validate_dataset(open_set(video_set, chunk_size=8), config(chunk_size=8))
    assert [p for p in errors(problems) if "longer than every episode (the longest has 7 frames)" in p]
    assert not errors(validate_dataset(open_set(video_set, chunk_size=7), config(chunk_size=7)))


def test_damage_in_the_middle_of_a_video_is_found_where_all_images_are_read(tmp_path):
    root = record(tmp_path / "set", (40,), use_videos=True, size=64)
    path = next(root.glob("videos/observation.images.head/*/*.mp4"))
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for position, size in packets[18:22]:
        content[position : position + size] = bytes([0xA5]) * size
    path.write_bytes(content)
    assert any("the file is damaged" in problem for problem in validate_dataset(open_set(root), images="all"))


def test_rows_of_multimodal_data_are_tried(tmp_path, tiny_processor, caplog):
    def chats(name, *images):
        messages = [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "two"}]
        path = tmp_path / name
        path.write_text("".join(json.dumps({"messages": messages, "images": [i]}) + "\n" for i in images))
        return MultimodalDataset(path)

    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    require_valid_chats([chats("good.jsonl", *["a.png"] * 3)], tiny_processor, rows=2)
    some = [chats("some.jsonl", "a.png", "none.png")]
    require_valid_chats(some, tiny_processor)
    assert "some.jsonl: 1 of 2 rows tried cannot be used and will be skipped" in caplog.text
    bad = [chats("one.jsonl", "none.png", "none.png"), chats("two.jsonl", "broken.png")]
    with pytest.raises(ValueError, match="multi-modal data: 2 problems") as caught:
        require_valid_chats(bad, tiny_processor)
    assert "one.jsonl: none of the 2 rows tried can be used" in str(caught.value)
    assert "two.jsonl, row 0: cannot be read" in str(caught.value)
    tiny_processor.max_length = 5
    with pytest.raises(ValueError, match=r"good.jsonl, row 0: .* exceed max_length=5"):
        require_valid_chats([chats("good.jsonl", "a.png")], tiny_processor)
