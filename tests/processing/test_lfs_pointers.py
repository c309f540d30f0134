"""Git LFS pointers in place of any data file: the message says `git lfs pull`, never that the file is damaged."""

import json

import pytest
from dataset_recordings import record
from PIL import Image

from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
from syvla.modeling_syvla.tensor_files import _read_header
from syvla.processing import MultimodalDataset, RobotDataset
from syvla.processing.lfs_pointers import is_lfs_pointer
from syvla.processing.multimodal.sources import BrokenRow
from syvla.serving.policies.loading import load_for_inference
from syvla.training.imitation.command import load_checkpoint
from syvla.training.run.arguments import ModelArguments

POINTER = """version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 12345
"""


@pytest.mark.parametrize(
    "file",
    ["meta/info.json", "meta/tasks.parquet", "meta/episodes/**/*.parquet", "data/**/*.parquet", "videos/**/*.mp4"],
)
def test_files_of_a_robot_data_set(file, tmp_path):
    root = record(tmp_path / "set", (5,), use_videos=True, video_codec="h264")
    (path, *_) = root.glob(file)
    path.write_text(POINTER)
    with pytest.raises(ValueError, match=r"run `git lfs pull`") as caught:
        RobotDataset(root, embodiment="x", chunk_size=2)[0]
    assert path.name in str(caught.value)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("file", ["meta/tasks.jsonl", "meta/episodes.jsonl"])
def test_files_of_an_older_robot_data_set(file, tmp_path):
    import shutil
    from pathlib import Path

    root = Path(shutil.copytree(Path(__file__).parents[1] / "data" / "lerobot_v21_tiny", tmp_path / "data"))
    (root / file).write_text(POINTER)
    with pytest.raises(ValueError, match=r"git lfs pull"):
        RobotDataset(root, embodiment="x", chunk_size=2)


def test_files_of_web_data(tmp_path):
    for name in ("chats.jsonl", "chats.json", "chats.parquet"):
        (tmp_path / name).write_text(POINTER)
        for streaming in (False, True):
            with pytest.raises(ValueError, match=r"git lfs pull"):
                MultimodalDataset(tmp_path / name, streaming=streaming, rows=1)[0]
    with pytest.raises(ValueError, match=r"chats\.parquet.*: Git LFS pointers"):
        MultimodalDataset(tmp_path)


def test_pictures_of_web_data(tmp_path):
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
    row = {"messages": [user, {"role": "assistant", "content": [{"type": "text", "text": "No."}]}], "images": ["a.png"]}
    (tmp_path / "chats.jsonl").write_text(json.dumps(row))
    (tmp_path / "a.png").write_text(POINTER)
    with pytest.raises(BrokenRow, match=r"a\.png: is a Git LFS pointer.*git lfs pull"):
        MultimodalDataset(tmp_path / "chats.jsonl").read_row(0)


def test_weights(tmp_path):
    SyVLAModel(SyVLAConfig.tiny()).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_text(POINTER)
    with pytest.raises(ValueError, match=r"model\.safetensors: a Git LFS pointer.*git lfs pull"):
        SyVLAModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"git lfs pull"):
        _read_header(path)


def test_other_files_of_a_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text(POINTER)
    for load in (lambda: load_for_inference(str(tmp_path)), lambda: load_checkpoint(ModelArguments(str(tmp_path)))):
        with pytest.raises(ValueError, match=r"config\.json: Git LFS pointers.*git lfs pull"):
            load()


def test_what_is_no_pointer(tmp_path):
    (tmp_path / "notes.txt").write_text(POINTER + "and much more text" * 100)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert not any(map(is_lfs_pointer, (tmp_path / "notes.txt", tmp_path / "a.png", tmp_path / "missing", tmp_path)))
