"""The paper's five multi-modal datasets in their published schemas, written as small files and read back as chats."""

import hashlib
import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from syvla.processing import MultimodalDataset
from syvla.processing.multimodal.adapters import SHORT_ANSWER
from syvla.processing.multimodal.dataset import resized_size
from syvla.processing.multimodal.sources import BrokenRow


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture(path: Path, width: int = 40, height: int = 30, level: int = 90) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (level, 20, 30)).save(file, "jpeg")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.getvalue())
    return file.getvalue()


def coco(folder: Path) -> dict:
    for number in (139, 285):
        picture(folder / "train2017" / f"{number:012d}.jpg", level=number % 255)
    annotations = [
        {"image_id": 139, "id": 1, "caption": "A woman stands in the dining area. "},
        {"image_id": 285, "id": 2, "caption": "A big brown bear."},
        {"image_id": 632, "id": 3, "caption": "Bedroom scene with a bookcase."},
        {"image_id": 139, "id": 4, "caption": "  "},
    ]
    images = [{"id": 139, "file_name": "000000000139.jpg", "height": 30, "width": 40}]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    (folder / "captions_train2017.json").write_text(json.dumps(content))
    return {
        "path": folder / "captions_train2017.json",
        "format": "coco_captions",
        "images": folder / "train2017",
    }


def vqa(folder: Path) -> dict:
    picture(folder / "train2014" / "COCO_train2014_000000458752.jpg")
    questions = [
        {"image_id": 458752, "question": "What is this photo taken looking through?", "question_id": 458752000},
        {"image_id": 458752, "question": "What position is this man playing?", "question_id": 458752001},
        {"image_id": 458752, "question": "Is nobody here?", "question_id": 7},
        {"image_id": 9, "question": "Where is the picture?", "question_id": 458752002},
    ]
    answers = [{"answer": "net", "answer_confidence": "yes", "answer_id": i} for i in range(10)]
    annotations = [
        {
            "question_type": "what",
            "multiple_choice_answer": answer,
            "answers": answers,
            "image_id": 458752,
            "answer_type": "other",
            "question_id": number,
        }
        for number, answer in ((458752002, "lost"), (458752001, "pitcher"), (458752000, "net"))
    ]
    common = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": "train2014"}
    (folder / "questions.json").write_text(json.dumps({**common, "task_type": "Open-Ended", "questions": questions}))
    (folder / "annotations.json").write_text(json.dumps({**common, "annotations": annotations}))
    return {
        "path": folder / "questions.json",
        "annotations": folder / "annotations.json",
        "format": "vqa_v2",
        "images": folder / "train2014",
    }


def hashed(folder: Path, **size) -> dict[str, str]:
    content = picture(folder / "images" / "new.jpg", **size)
    digest = hashlib.sha256(content).hexdigest()
    (folder / "images" / "new.jpg").rename(folder / "images" / digest)
    return {"image_url": "https://example.org/a.jpg", "image_sha256": digest}


def points(folder: Path) -> dict:
    image = hashed(folder, width=100, height=50)
    rows = [
        {**image, "points": [{"x": 10.0, "y": 20.0}, {"x": 100.0, "y": 50.0}], "count": 2, "label": "red cube"},
        {**image, "points": [], "count": 0, "label": "dog"},
        {**image, "points": [{"x": 250.0, "y": 20.0}], "count": 1, "label": "outside"},
        {**image, "points": [{"x": 1.0, "y": 1.0}] * 60, "count": 60, "label": "window"},
        {**image, "image_sha256": "0" * 64, "points": [{"x": 1.0, "y": 1.0}], "count": 1, "label": "gone"},
    ]
    for row in rows:
        row["collection_method"] = "pointing"
    datasets.Dataset.from_list(rows).to_parquet(folder / "train-00000-of-00001.parquet")
    return {"path": folder / "train-00000-of-00001.parquet", "format": "pixmo_points", "images": folder / "images"}


def explanations(folder: Path) -> dict:
    image = hashed(folder, width=100, height=50)
    tag = '<point x="50.0" y="50.0" alt="the handle">handle</point>'
    tags = '<points x1="10.0" y1="20.0" x2="20.0" y2="20.0" alt="the legs">legs</points>'
    rows = [
        {
            "response": f"Pull the {tag} to open it.",
            "parsed_response": "Pull the <|POINT|> to open it.",
            "alt_text": ["the handle"],
            "inline_text": ["handle"],
            "points": [[{"x": 50.0, "y": 50.0}]],
        },
        {
            "response": f"It stands on its {tags}.",
            "parsed_response": None,
            "alt_text": None,
            "inline_text": None,
            "points": None,
        },
        {"response": "", "parsed_response": None, "alt_text": None, "inline_text": None, "points": None},
    ]
    rows = [{**image, "question": "How do I open it?", **row} for row in rows]
    datasets.Dataset.from_list(rows).to_parquet(folder / "a.parquet")
    return {"path": folder / "a.parquet", "format": "pixmo_point_explanations", "images": folder / "images"}


def cambrian(folder: Path) -> dict:
    picture(folder / "coco" / "1.jpg")
    human, gpt = (lambda text: {"from": "human", "value": text}), (lambda text: {"from": "gpt", "value": text})
    rows = [
        {"id": "a", "image": "coco/1.jpg", "conversations": [human("<image>\nWhat is it?"), gpt("A cube.")]},
        {"id": "b", "image": None, "conversations": [human("2 + 2?"), gpt("4"), human("Plus 1?"), gpt("5")]},
        {"id": "c", "image": "coco/1.jpg", "conversations": [human("What is it?"), gpt("A cube.")]},
        {"id": "d", "image": "coco/2.jpg", "conversations": [human("<image>\nWhat?"), gpt("A cube.")]},
        {"id": "e", "image": "coco/1.jpg", "conversations": [human("<image>\nWhat?"), gpt(" ")]},
        {"id": "f", "image": None, "conversations": [human("<image>\nWhat?"), gpt("A cube.")]},
        {"id": "g", "image": None, "conversations": [human("What?"), human("What?"), gpt("A cube.")]},
    ]
    (folder / "Cambrian7M.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"path": folder / "Cambrian7M.jsonl", "format": "cambrian", "images": folder}


FORMATS = {"coco": coco, "vqa": vqa, "points": points, "explanations": explanations, "cambrian": cambrian}


def open_format(name: str, folder: Path, **options) -> MultimodalDataset:
    folder.mkdir(parents=True, exist_ok=True)
    spec = {**FORMATS[name](folder), "resized_size": lambda height, width: (2 * height, 2 * width), **options}
    return MultimodalDataset(spec.pop("path"), **spec)


def turns(item) -> list[str]:
    """Text of each turn, with the images in their places."""
    result = []
    for message in item["messages"]:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        result.append("".join("[image]" if part["type"] == "image" else part["text"] for part in parts))
    return result


EXPECTED = {
    ("coco", 0): ["[image]Describe the image in one sentence.", "A woman stands in the dining area."],
    ("coco", 1): ["[image]Describe the image in one sentence.", "A big brown bear."],
    ("vqa", 0): [f"[image]What is this photo taken looking through?{SHORT_ANSWER}", "net"],
    ("vqa", 1): [f"[image]What position is this man playing?{SHORT_ANSWER}", "pitcher"],
    # 100 x 50 pixels are seen at 200 x 100; the right edge is the last pixel.
    ("points", 0): [
        "[image]Point to every red cube.",
        '[{"point_2d": [20, 20], "label": "red cube"}, {"point_2d": [199, 50], "label": "red cube"}]',
    ],
    ("points", 1): ["[image]Point to every dog.", "There is no dog in the image."],
    ("explanations", 0): ["[image]How do I open it?", "Pull the handle ([100, 50]) to open it."],
    ("explanations", 1): ["[image]How do I open it?", "It stands on its legs ([20, 20], [40, 20])."],
    ("cambrian", 0): ["[image]What is it?", "A cube."],
    ("cambrian", 1): ["2 + 2?", "4", "Plus 1?", "5"],
    ("cambrian", 2): ["[image]What is it?", "A cube."],
}
BROKEN = {
    ("coco", 2): "missing image",
    ("coco", 3): "empty answer",
    ("vqa", 2): "empty answer",
    ("vqa", 3): "missing image",
    ("points", 2): "malformed",
    ("points", 3): "too many points",
    ("points", 4): "missing image",
    ("explanations", 2): "empty answer",
    ("cambrian", 3): "missing image",
    ("cambrian", 4): "empty answer",
    ("cambrian", 5): "missing image",
    ("cambrian", 6): "malformed",
}


@pytest.mark.parametrize("name", FORMATS)
def test_rows_become_chats_and_broken_ones_say_why(name, tmp_path):
    data = open_format(name, tmp_path / "data")
    rows = [row for fmt, row in (*EXPECTED, *BROKEN) if fmt == name]
    assert sorted(rows) == list(range(len(data)))
    for row in range(len(data)):
        if (name, row) in BROKEN:
            with pytest.raises(BrokenRow, match=f"row {row}: cannot be read") as caught:
                data.read_row(row)
            assert caught.value.cause == BROKEN[name, row]
            continue
        item = data.read_row(row)
        assert turns(item) == EXPECTED[name, row]
        assert len(item["images"]) == sum(text.count("[image]") for text in turns(item))


@pytest.mark.parametrize("name", FORMATS)
def test_broken_rows_are_skipped_and_counted(name, tmp_path):
    data = open_format(name, tmp_path / "data")
    expected = [turns(data.read_row(row)) for row in range(len(data)) if (name, row) not in BROKEN]
    assert all(turns(data[row]) in expected for row in range(len(data)))
    assert set(data.report()) == {cause for (fmt, _), cause in BROKEN.items() if fmt == name}


@pytest.mark.parametrize("name", FORMATS)
def test_the_loss_falls_on_the_answers_alone(name, tiny_processor, tmp_path):
    data = open_format(name, tmp_path / "data")
    items = [data.read_row(row) for fmt, row in EXPECTED if fmt == name]
    batch = tiny_processor.collate(items)
    for item, ids, labels in zip(items, batch["input_ids"], batch["labels"], strict=True):
        learned = tiny_processor.tokenizer.decode(ids[labels != -100])
        assert learned == "".join(f"{answer}<|im_end|>" for answer in turns(item)[1::2])


def test_workers_share_one_count(tmp_path):
    data = open_format("coco", tmp_path / "data")
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=2)
    assert len(list(loader)) == 4
    assert sum(data.report().values()) == 3, "row 2 meets two broken rows before the first usable one, row 3 one"


def test_a_data_set_without_a_usable_row_says_what_is_wrong(tmp_path):
    data = open_format("coco", tmp_path / "data")
    for path in (tmp_path / "data" / "train2017").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"4 rows in a row are unusable: .*'missing image': 4"):
        data[0]


def test_points_lie_in_the_image_that_the_vlm_sees(tiny_processor, tmp_path):
    processor = tiny_processor.image_processor
    data = open_format("points", tmp_path / "data", resized_size=lambda h, w: resized_size(processor, h, w))
    item = data.read_row(0)
    grid = tiny_processor.collate([item])["image_grid_thw"][0].numpy()
    height, width = grid[1:] * processor.patch_size
    found = [entry["point_2d"] for entry in json.loads(turns(item)[1])]
    np.testing.assert_allclose(found, [[0.1 * width, 0.2 * height], [width - 1, 0.5 * height]], atol=1)


def test_rows_with_embedded_images_are_read_as_well(tmp_path):
    """As the Hub copies of VQA-v2 and COCO hold them."""
    image = {"bytes": picture(tmp_path / "a.jpg"), "path": None}
    features = {
        "image": datasets.Image(),
        "question": datasets.Value("string"),
        "answers": [{"answer": datasets.Value("string")}],
    }
    rows = [{"image": image, "question": "How many?", "answers": [{"answer": a} for a in ("two", "3", "two")]}]
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(tmp_path / "vqa.parquet")
    assert turns(MultimodalDataset(tmp_path / "vqa.parquet", format="vqa_v2")[0])[1] == "two"
    captions = [{"image": image, "captions": ["", "A plate."]}]
    features = {"image": datasets.Image(), "captions": [datasets.Value("string")]}
    datasets.Dataset.from_list(captions, features=datasets.Features(features)).save_to_disk(tmp_path / "coco")
    assert turns(MultimodalDataset(tmp_path / "coco", format="coco_captions")[0])[1] == "A plate."


def test_a_folder_of_parquet_files_is_one_data_set(tmp_path):
    open_format("points", tmp_path)
    (tmp_path / "train-00000-of-00001.parquet").rename(tmp_path / "train-00000-of-00002.parquet")
    second = tmp_path / "train-00001-of-00002.parquet"
    second.write_bytes((tmp_path / "train-00000-of-00002.parquet").read_bytes())
    data = MultimodalDataset(tmp_path, format="pixmo_points", images=tmp_path / "images")
    assert len(data) == 10


def test_a_stream_gives_its_rows_in_turn_and_each_worker_its_own(tmp_path):
    data = open_format("cambrian", tmp_path / "data", streaming=True, rows=7, shuffle_buffer=1)
    usable = [EXPECTED["cambrian", row] for row in range(3)]
    assert [turns(data[0]) for _ in range(6)] == [*usable, *usable]
    loader = torch.utils.data.DataLoader(data, batch_size=None, sampler=[0] * 6, num_workers=2)
    even, odd = [usable[0], usable[2], usable[0]], [usable[1]] * 3  # the two workers' rows, over and over
    assert sorted(turns(item) for item in loader) == sorted([*even, *odd])
    again = open_format("cambrian", tmp_path / "data", streaming=True, rows=7, shuffle_buffer=100)
    assert [turns(again[0]) for _ in range(6)] != [*usable, *usable]


def test_a_resumed_stream_comes_in_another_order(tmp_path):
    data = open_format("cambrian", tmp_path / "data", streaming=True, rows=7, shuffle_buffer=100)
    usable = sorted(str(EXPECTED["cambrian", row]) for row in range(3))

    def order(step):
        data.begin_at(step)
        return [str(turns(data[0])) for _ in range(3)]

    orders = {step: order(step) for step in range(0, 1000, 100)}
    assert all(sorted(found) == usable for found in orders.values())
    assert len(set(map(tuple, orders.values()))) > 1
    assert order(300) == orders[300]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "coco"}, "format: expected one of .*coco_captions"),
        ({"images": "nowhere"}, "images: nowhere is no folder"),
        ({"annotations": None}, "holds VQA-v2 questions without answers"),
        ({"annotations": "nowhere.json"}, "annotations: nowhere.json is no file"),
        ({"streaming": True}, "rows: a stream has no length of its own"),
        ({"format": "cambrian"}, r"lacks the columns \['conversations'\]"),
    ],
)
def test_arguments_that_do_not_fit_are_named(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_format("vqa", tmp_path / "data", **options)


def test_points_need_the_resized_size(tmp_path):
    with pytest.raises(ValueError, match="resized_size: points need"):
        open_format("points", tmp_path / "data", resized_size=None).read_row(0)
