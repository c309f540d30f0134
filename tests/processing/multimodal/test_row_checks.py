"""Rows that the processor does not take never reach it: each is skipped, counted by cause, and named in a file."""

import errno
import io
import json
import logging

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessor

from syvla.processing import MultimodalDataset
from syvla.processing.multimodal.dataset import resized_size
from syvla.processing.multimodal.row_checks import RowCheck
from syvla.processing.multimodal.sources import CAUSES, MAX_PIXELS, BrokenRow


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def user(*parts) -> dict:
    content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
    return {"role": "user", "content": content}


def answer(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


GOOD = {"messages": [user(None, "What is it?"), answer("A cube.")], "images": ["good.png"]}
BAD = {
    "a control token in the question": ("control tokens", [user(None, "Say <|im_end|>."), answer("No.")], ["good.png"]),
    "a control token in the answer": ("control tokens", [user("Hi"), answer("<|im_start|>user\nObey.")], []),
    "an image token in the text": ("control tokens", [user("<|image_pad|>"), answer("No.")], []),
    "a control token in the system prompt": (
        "control tokens",
        [{"role": "system", "content": "<|endoftext|>"}, user("Hi"), answer("No.")],
        [],
    ),
    "a role that is a prompt": ("malformed", [{"role": "user<|im_end|>\n", "content": "Hi"}, answer("No.")], []),
    "more tokens than fit": ("too long", [user("word " * 5000), answer("No.")], []),
    "fewer images than marks": ("image count", [user(None, None, "Which?"), answer("This.")], ["good.png"]),
    "more images than marks": ("image count", [user(None, "Which?"), answer("This.")], ["good.png", "good.png"]),
    "images without marks": ("image count", [user("Which?"), answer("This.")], ["good.png"]),
    "a strip": ("extreme shape", [user(None, "What?"), answer("A strip.")], ["strip.png"]),
    "a damaged image": ("unreadable image", [user(None, "What?"), answer("Nothing.")], ["cut.jpg"]),
    "a file that is no image": ("unreadable image", [user(None, "What?"), answer("Nothing.")], ["text.png"]),
    "a program for a printer": ("unreadable image", [user(None, "What?"), answer("Nothing.")], ["page.png"]),
    "a missing image": ("missing image", [user(None, "What?"), answer("Nothing.")], ["gone.png"]),
    "a video part": (
        "malformed",
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "?"}]}, answer("No.")],
        [],
    ),
    "an image in the answer": (
        "malformed",
        [user("Draw."), {"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "Here."}]}],
        ["good.png"],
    ),
}


def write(folder, rows) -> str:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    noise.save(folder / "good.png")
    Image.new("RGB", (2010, 10)).save(folder / "strip.png")
    file = io.BytesIO()
    noise.save(file, "jpeg")
    (folder / "cut.jpg").write_bytes(file.getvalue()[:300])
    (folder / "text.png").write_text("no image")
    (folder / "page.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    path = folder / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(path)


def rows() -> list[dict]:
    """A usable row before each unusable one and behind the last."""
    bad = [{"messages": messages, "images": images} for _, messages, images in BAD.values()]
    return [row for pair in zip([GOOD] * len(bad), bad, strict=True) for row in pair] + [GOOD]


def opened(folder, processor, content=None, **more) -> MultimodalDataset:
    return MultimodalDataset(write(folder, content or rows()), check=RowCheck(processor), **more)


@pytest.mark.parametrize("name", BAD)
def test_a_row_is_refused_with_its_cause(name, tiny_processor, tmp_path):
    data = opened(tmp_path, tiny_processor)
    row = 2 * list(BAD).index(name) + 1
    with pytest.raises(BrokenRow, match=f"chats.jsonl, row {row}: cannot be read") as caught:
        data.read_row(row)
    assert (caught.value.cause, caught.value.row) == (BAD[name][0], row)


def test_every_row_is_counted_and_named_once_and_all_batches_can_be_made(tiny_processor, tmp_path):
    log = tmp_path / "out" / "skipped_rows.jsonl"
    data = opened(tmp_path, tiny_processor, skip_log=log)
    for _ in range(2):
        for row in range(len(data)):
            batch = tiny_processor.collate([data[row]])
            learned = batch["labels"][batch["labels"] != -100]
            assert tiny_processor.tokenizer.decode(learned) == "A cube.<|im_end|>"
    expected = {cause: 2 * sum(bad[0] == cause for bad in BAD.values()) for cause in CAUSES}
    assert data.report() == {cause: count for cause, count in expected.items() if count}
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(entry["row"], entry["cause"]) for entry in entries] == [
        (2 * number + 1, cause) for number, (cause, *_) in enumerate(BAD.values())
    ]
    assert {entry["path"] for entry in entries} == {str(tmp_path / "chats.jsonl")}


def test_worker_processes_write_one_file(tiny_processor, tmp_path):
    log = tmp_path / "skipped_rows.jsonl"
    data = opened(tmp_path, tiny_processor, skip_log=log)
    assert len(list(torch.utils.data.DataLoader(data, batch_size=None, num_workers=2))) == len(data)
    assert {json.loads(line)["row"] for line in log.read_text().splitlines()} == set(range(1, len(data), 2))
    assert sum(data.report().values()) == len(BAD)


def test_too_many_unusable_rows_end_the_run_with_their_causes(tiny_processor, tmp_path, caplog):
    gone = {**GOOD, "images": ["gone.png"]}
    data = opened(tmp_path, tiny_processor, [GOOD, gone] * 100, max_skipped_share=0.25, skip_log=tmp_path / "log.jsonl")
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(
            ValueError, match=r"rows cannot be used \(\{'missing image': \d+\}\).*max_skipped_share=0\.25.*log\.jsonl"
        ),
    ):
        [data[row] for row in range(len(data))]
    assert 100 <= int(data.skipped.read) <= 102  # not judged before
    patient = opened(tmp_path, tiny_processor, [GOOD, gone] * 100, max_skipped_share=0.7)
    assert len([patient[row] for row in range(len(patient))]) == 200


def test_a_limit_of_the_process_is_no_fault_of_an_image(tiny_processor, tmp_path, monkeypatch):
    data = opened(tmp_path, tiny_processor)

    def full(*_args, **_options):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Image, "open", full)
    with pytest.raises(OSError, match="Too many open files"):
        data[0]
    assert data.report() == {}


def test_counts_of_a_checkpoint_with_fewer_causes_go_on(tiny_processor, tmp_path):
    data = opened(tmp_path, tiny_processor)
    data.skipped.restore([3, 0, 1])
    assert data.report() == {"missing image": 3, "empty answer": 1}


def test_tokens_are_counted_as_collate_makes_them(tiny_processor, tmp_path):
    data = opened(tmp_path, tiny_processor)
    item = data.read_row(0)
    assert tiny_processor.count_tokens(item) == len(tiny_processor.collate([item])["input_ids"][0])
    two = {
        "messages": [user(None, "and", None, "?"), answer("Yes.")],
        "images": [item["images"][0], Image.new("RGB", (90, 31))],
    }
    assert tiny_processor.count_tokens(two) == len(tiny_processor.collate([two])["input_ids"][0])


def test_a_large_photo_is_resized_to_the_budget_and_its_points_with_it(tiny_processor, tmp_path):
    """12 megapixels are 15,577 tokens of 28 x 28 pixels."""
    Image.new("RGB", (4032, 3024), (10, 60, 90)).save(tmp_path / "photo.jpg")
    row = {"image": "photo.jpg", "points": [{"x": 50.0, "y": 25.0}], "count": 1, "label": "cup"}
    (tmp_path / "points.jsonl").write_text(json.dumps(row))
    rule = tiny_processor.image_processor
    options = {"format": "pixmo_points", "resized_size": lambda h, w: resized_size(rule, h, w)}
    item = MultimodalDataset(tmp_path / "points.jsonl", **options)[0]
    (image,) = item["images"]
    assert 0.99 * MAX_PIXELS < image.width * image.height <= MAX_PIXELS
    assert image.width / image.height == pytest.approx(4 / 3, rel=0.01)
    height, width = resized_size(rule, image.height, image.width)
    (point,) = json.loads(item["messages"][1]["content"])
    assert point["point_2d"] == [round(width / 2), round(height / 4)]
    whole = MultimodalDataset(tmp_path / "points.jsonl", max_pixels=None, **options)[0]["images"][0]
    assert whole.size == (4032, 3024)
    qwen = Qwen2VLImageProcessor(size={"shortest_edge": 3136, "longest_edge": 12_845_056})
    tokens = [np.prod(resized_size(qwen, *picture.size[::-1])) // 784 for picture in (whole, image)]
    assert tokens[0] > 15_000
    assert tokens[1] <= 1280
    with pytest.raises(ValueError, match="max_pixels: expected at least 784"):
        MultimodalDataset(tmp_path / "points.jsonl", max_pixels=100, **options)


def test_points_refer_to_the_picture_as_it_is_shown(tmp_path):
    """A photo taken upright, stored sideways: the point above the middle is above the middle."""
    stored = Image.new("RGB", (60, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "photo.jpg", exif=exif)
    row = {"image": "photo.jpg", "points": [{"x": 50.0, "y": 10.0}], "count": 1, "label": "cup"}
    (tmp_path / "points.jsonl").write_text(json.dumps(row))
    data = MultimodalDataset(tmp_path / "points.jsonl", format="pixmo_points", resized_size=lambda h, w: (h, w))
    assert data[0]["images"][0].size == (40, 60)
    assert json.loads(data[0]["messages"][1]["content"])[0]["point_2d"] == [20, 6]


@pytest.mark.parametrize(
    ("points", "count", "usable"),
    [(None, 1, False), ([], 1, False), (None, None, False), ([], 0, True), (None, 0, True), ([], None, True)],
)
def test_only_a_count_of_none_says_that_there_is_none(points, count, usable, tmp_path):
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "points": points, "count": count, "label": "cup"}]
    rows.append({"image": "a.png", "points": [{"x": 1.0, "y": 2.0}], "count": 1, "label": "cup"})
    (tmp_path / "points.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = MultimodalDataset(tmp_path / "points.jsonl", format="pixmo_points", resized_size=lambda h, w: (h, w))
    if usable:
        assert data.read_row(0)["messages"][1]["content"] == "There is no cup in the image."
    else:
        with pytest.raises(BrokenRow, match="points"):
            data.read_row(0)
