"""Synthetic benchmarks: the official files and columns, reproducible, held out from their training chats."""

import ast
import hashlib
import json
import random
from collections import Counter

import pytest

from syvla.evaluation.vlm_benchmarks.benchmarks import BENCHMARKS
from syvla.evaluation.vlm_benchmarks.synthetic_data import CHATS, main, oracle_answer, write_benchmarks, write_chats
from syvla.evaluation.vlm_benchmarks.synthetic_rows import MME_CATEGORIES, ROWS
from syvla.processing import MultimodalDataset


def rows_of(root, benchmark):
    import datasets

    files = [str(path) for path in (root / benchmark.folder).rglob(f"{benchmark.split}-*.parquet")]
    return datasets.load_dataset("parquet", data_files=files, split="train")


def pictures(rows):
    for row in rows:
        for name, value in row.items():
            if name.startswith("image") and value is not None:
                yield hashlib.sha256(value.tobytes()).hexdigest()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_equal_seeds_give_equal_rows_and_other_seeds_other_pictures(name):
    first, again, other = (ROWS[name](random.Random(seed), 40) for seed in (0, 0, 1))
    assert list(pictures(first)) == list(pictures(again))
    texts = [[{k: v for k, v in row.items() if not hasattr(v, "tobytes")} for row in rows] for rows in (first, again)]
    assert texts[0] == texts[1]
    assert not set(pictures(first)) & set(pictures(other))


def test_benchmarks_are_held_out_from_the_chats_of_the_same_seed(tmp_path):
    root, chats = write_benchmarks(tmp_path / "b", 24), MultimodalDataset(write_chats(tmp_path / "c", 200))
    trained = {hashlib.sha256(image.tobytes()).hexdigest() for i in range(200) for image in chats[i]["images"]}
    assert len(trained) > 150
    for benchmark in BENCHMARKS.values():
        assert not set(pictures(rows_of(root, benchmark))) & trained


def test_files_have_the_official_types(tmp_path):
    root = write_benchmarks(tmp_path, 7)
    counts = {}
    for benchmark in BENCHMARKS.values():
        rows = rows_of(root, benchmark)
        counts[benchmark.name] = len(rows)
        assert next(pictures(rows)), benchmark.name
    assert counts == {"docvqa": 7, "ai2d": 7, "mmmu": 7, "mme": 8, "hallusionbench": 7}  # MME: whole pairs
    docvqa = rows_of(root, BENCHMARKS["docvqa"])
    assert docvqa.features["answers"].feature.dtype == "string"
    assert docvqa.features["docId"].dtype == "int64"
    assert (root / "DocVQA" / "DocVQA").is_dir(), "as on the Hub, where other configs lie beside it"
    mmmu = rows_of(root, BENCHMARKS["mmmu"])
    assert isinstance(ast.literal_eval(mmmu[0]["options"]), list), "MMMU keeps options as the text of a list"
    assert set(mmmu.features) >= {"image_1", "image_7", "subfield", "topic_difficulty", "explanation", "img_type"}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_no_answer_is_common_enough_to_be_guessed(name):
    answers = Counter(oracle_answer(name, row) for row in ROWS[name](random.Random(5), 600))
    limit = {"mme": 0.5, "hallusionbench": 0.5, "ai2d": 0.33, "mmmu": 0.33, "docvqa": 0.2}[name]
    assert answers.most_common(1)[0][1] / 600 <= limit, answers


def test_yes_and_no_are_asked_about_the_same_picture():
    rows = ROWS["mme"](random.Random(0), 56)
    assert {row["category"] for row in rows} == set(MME_CATEGORIES)
    for yes, no in zip(rows[::2], rows[1::2], strict=True):
        assert (yes["answer"], no["answer"]) == ("Yes", "No")
        assert yes["question_id"] == no["question_id"]
        assert yes["image"].tobytes() == no["image"].tobytes()
        assert yes["question"] != no["question"]
    sets = ROWS["hallusionbench"](random.Random(0), 40)
    for key in ("figure_id", "question_id"):  # one yes and one no in every group that is scored together
        groups = Counter((r["category"], r["set_id"], r[key], r["gt_answer"]) for r in sets)
        assert set(groups.values()) == {1}


def test_chats_become_training_batches(tmp_path, tiny_processor):
    chats = MultimodalDataset(write_chats(tmp_path, 25, seed=3))
    items = [chats[i] for i in range(25)]
    batch = tiny_processor.collate(items)
    assert batch["image_grid_thw"].shape[0] == sum(len(item["images"]) for item in items) > 25
    trained = [row[row >= 0] for row in batch["labels"]]
    for item, ids in zip(items, trained, strict=True):
        assert tiny_processor.decode(ids, skip_special_tokens=True) == item["messages"][-1]["content"][0]["text"]


def test_every_chat_ends_with_the_answer_to_its_row():
    for name, make in ROWS.items():
        for row in make(random.Random(1), 12):
            content, images, answer = CHATS[name](row)
            assert answer == oracle_answer(name, row)
            assert sum(part["type"] == "image" for part in content) == len(images) >= 1


def test_command_writes_both_and_says_where(tmp_path, capsys):
    assert main(["--output", str(tmp_path), "--rows", "4", "--train-rows", "5"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["data_root"] == str(tmp_path / "benchmarks")
    assert len(MultimodalDataset(said["multimodal_dataset"])) == 5
    assert main(["--output", str(tmp_path), "--rows", "0"]) == 1
    assert "rows: expected at least 1, got 0" in capsys.readouterr().err
