"""Multi-modal data: the same chats from JSON, parquet and saved datasets; what cannot be read is skipped and counted."""

import io
import json

import datasets
import numpy as np
import pytest
from PIL import Image

from syvla.processing import MultimodalDataset
from syvla.processing.multimodal.sources import BrokenRow


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(seed)).save(file, "png")
    return file.getvalue()


def chat(*images: int) -> list[dict]:
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": "What is it?"}]
    return [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "A cube."}]},
    ]


ROWS = [(0,), (1, 2), ()]


def rows(image) -> list[dict]:
    return [{"messages": chat(*numbers), "images": [image(n) for n in numbers]} for numbers in ROWS]


def write_pictures(folder):
    (folder / "pictures").mkdir()
    for n in range(3):
        (folder / "pictures" / f"{n}.png").write_bytes(png(n))


def as_jsonl(folder):
    write_pictures(folder)
    lines = [json.dumps(row) for row in rows(lambda n: f"pictures/{n}.png")]
    (folder / "chats.jsonl").write_text("\n".join(lines))
    return folder / "chats.jsonl"


def as_json(folder):
    write_pictures(folder)
    (folder / "chats.json").write_text(json.dumps(rows(lambda n: f"pictures/{n}.png")))
    return folder / "chats.json"


def embedded(folder):
    text = datasets.Value("string")
    messages = [{"role": text, "content": [{"type": text, "text": text}]}]
    features = datasets.Features({"messages": messages, "images": datasets.List(datasets.Image())})
    data = rows(lambda n: {"bytes": png(n), "path": None})
    for row in data:
        for message in row["messages"]:
            message["content"] = [{"type": p["type"], "text": p.get("text")} for p in message["content"]]
    return datasets.Dataset.from_list(data, features=features)


def as_parquet(folder):
    embedded(folder).to_parquet(folder / "chats.parquet")
    return folder / "chats.parquet"


def as_raw_parquet(folder):
    """Images as {"bytes", "path"} structs that no metadata declares to be images."""
    data = embedded(folder).cast_column("images", datasets.List(datasets.Image(decode=False)))
    import pyarrow.parquet

    table = data.data.table.replace_schema_metadata(None)
    pyarrow.parquet.write_table(table, folder / "raw.parquet")
    return folder / "raw.parquet"


def as_saved(folder):
    embedded(folder).save_to_disk(folder / "saved")
    return folder / "saved"


def as_saved_splits(folder):
    datasets.DatasetDict({"train": embedded(folder), "test": embedded(folder).select([0])}).save_to_disk(
        folder / "both"
    )
    return folder / "both"


@pytest.mark.parametrize(
    "write", [as_jsonl, as_json, as_parquet, as_raw_parquet, as_saved, as_saved_splits], ids=lambda f: f.__name__
)
def test_every_form_gives_the_same_chats(write, tmp_path):
    data = MultimodalDataset(write(tmp_path))
    assert len(data) == 3
    for row, numbers in enumerate(ROWS):
        item = data[row]
        assert item["messages"] == chat(*numbers), "without the empty fields of columnar storage"
        assert len(item["images"]) == len(numbers)
        for image, n in zip(item["images"], numbers, strict=True):
            assert image.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(image), pixels(n))


def test_items_go_through_the_processor(tiny_processor, tmp_path):
    data = MultimodalDataset(as_parquet(tmp_path))
    batch = tiny_processor.collate([data[i] for i in range(3)])
    labels = [tiny_processor.tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert labels == ["A cube.<|im_end|>"] * 3
    assert len(batch["image_grid_thw"]) == 3


def test_split_is_chosen(tmp_path):
    assert len(MultimodalDataset(as_saved_splits(tmp_path), split="test")) == 1


def test_answers_may_be_plain_strings(tmp_path):
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}], "images": []}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    item = MultimodalDataset(tmp_path / "a.jsonl")[0]
    assert {key: item[key] for key in row} == row


def test_texts_and_lists_of_parts_may_be_mixed(tmp_path):
    """`datasets` then reads the texts as JSON: "3" as a number."""
    lines = []
    for answer in ("3", "true", "-1.5", "A cube."):
        user = {"role": "user", "content": [{"type": "text", "text": "How many?"}]}
        lines.append(json.dumps({"messages": [user, {"role": "assistant", "content": answer}], "images": []}))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    data = MultimodalDataset(tmp_path / "a.jsonl")
    assert [data.read_row(row)["messages"][1]["content"] for row in range(4)] == ["3", "true", "-1.5", "A cube."]


def test_iteration_ends(tmp_path):
    data = MultimodalDataset(as_jsonl(tmp_path))
    assert len(list(data)) == 3
    with pytest.raises(IndexError, match="row 3 of 3"):
        data[3]


@pytest.mark.parametrize(
    "image", ["pictures/9.png", "../secret.png", "/etc/hostname", "pictures/broken.png", "pictures"]
)
def test_unreadable_images_name_their_row(image, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    path = as_jsonl(folder)
    (tmp_path / "secret.png").write_bytes(png(0))
    (folder / "pictures" / "broken.png").write_bytes(png(0)[:100])
    good = json.dumps({"messages": chat(0), "images": ["pictures/0.png"]})
    path.write_text(good + "\n" + json.dumps({"messages": chat(0), "images": [image]}))
    data = MultimodalDataset(path)
    assert data[0]["images"]
    with pytest.raises(BrokenRow, match=r"chats\.jsonl, row 1: cannot be read \("):
        data.read_row(1)
    if ".." in image or image.startswith("/"):
        with pytest.raises(ValueError, match="lies outside the dataset's folder"):
            data.read_row(1)
    assert data[1]["messages"] == data[0]["messages"], "the next usable row takes its place"
    assert sum(data.report().values()) == 1


def test_a_link_does_not_lead_outside(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    path = as_jsonl(folder)
    (tmp_path / "secret.png").write_bytes(png(0))
    (folder / "pictures" / "0.png").unlink()
    (folder / "pictures" / "0.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match="lies outside"):
        MultimodalDataset(path).read_row(0)


@pytest.mark.parametrize("broken", [{"bytes": png(0)[:80], "path": None}, None], ids=["cut", "empty"])
@pytest.mark.parametrize("decode", [True, False])
def test_damaged_embedded_images_name_their_row(decode, broken, tmp_path):
    """Whether `datasets` decodes the image or leaves it to us."""
    data = embedded(tmp_path).cast_column("images", datasets.List(datasets.Image(decode=False))).to_list()
    data[1]["images"] = [broken, broken]
    features = embedded(tmp_path).features.copy()
    features["images"] = datasets.List(datasets.Image(decode=decode))
    datasets.Dataset.from_list(data, features=features).save_to_disk(tmp_path / "saved")
    loaded = MultimodalDataset(tmp_path / "saved")
    assert len(loaded[0]["images"]) == 1
    with pytest.raises(ValueError, match="row 1: cannot be read"):
        loaded.read_row(1)


def test_damaged_messages_name_their_row(tmp_path):
    lines = [{"messages": chat(), "images": []}, {"messages": None, "images": []}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = MultimodalDataset(tmp_path / "a.jsonl")
    assert data[0]["messages"] == chat()
    with pytest.raises(ValueError, match="row 1: cannot be read"):
        data.read_row(1)


def test_files_of_another_kind_are_refused(tmp_path):
    (tmp_path / "chats.txt").write_text("hi")
    with pytest.raises(ValueError, match=r"expected a \.jsonl, \.json or \.parquet file, got '\.txt'"):
        MultimodalDataset(tmp_path / "chats.txt")
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "a", "images": []}))
    with pytest.raises(ValueError, match=r"lacks the columns \['messages'\]; it has \['question', 'images'\]"):
        MultimodalDataset(tmp_path / "a.jsonl")
