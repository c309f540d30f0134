"""The harness: full marks for right answers, known ones for constant answers, the paper's units, clear errors."""

import json
import random
import shutil
import sys

import numpy as np
import pytest
import torch

from syvla.evaluation import evaluate_vlm
from syvla.evaluation.vlm_benchmarks.benchmark_report import RULE, VLMResult, read_scores, result_of
from syvla.evaluation.vlm_benchmarks.benchmarks import BENCHMARKS
from syvla.evaluation.vlm_benchmarks.evaluate_vlm import main
from syvla.evaluation.vlm_benchmarks.protocols import PROTOCOLS
from syvla.evaluation.vlm_benchmarks.synthetic_data import oracle_answer, write_benchmarks

BY_TASK = {benchmark.task: name for name, benchmark in BENCHMARKS.items()}


@pytest.fixture(scope="module")
def run(fixed_answers, data_root):
    def run(say, protocol="vlmevalkit", **options):
        return evaluate_vlm(fixed_answers(say), protocol=protocol, data_root=data_root, progress=False, **options)

    return run


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_right_answers_get_full_marks_on_all_five(run, rows, protocol):
    result = run(lambda task, doc: oracle_answer(BY_TASK[task], rows[BY_TASK[task]][doc]), protocol)
    assert result.to_dict()["columns"] == {"DocVQA": 100, "AI2D": 100, "MMMU": 100, "MME": 2800, "HallBench": 100}
    assert result.benchmarks["mme"].parts == {"perception": 2000, "cognition": 800}
    assert {r.unparsable for r in result.benchmarks.values()} == {0.0}
    assert {r.rows for r in result.benchmarks.values()} == {28}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_constant_answers_get_what_chance_gives(run, rows, protocol):
    yes = run(lambda task, doc: "Yes", protocol)
    assert yes.benchmarks["docvqa"].score == yes.benchmarks["ai2d"].score == 0
    assert yes.benchmarks["mme"].parts == {"perception": 500, "cognition": 200}  # 50 + 0 in each of 14 categories
    assert yes.benchmarks["hallusionbench"].parts == {
        "aAcc": 50,
        "qAcc": 0,
        "fAcc": 0,
        "mean": pytest.approx(50 / 3, abs=1e-4),
    }
    assert [yes.benchmarks[name].unparsable for name in ("docvqa", "ai2d", "mme", "hallusionbench")] == [0, 1, 0, 0]
    a = run(lambda task, doc: "A", protocol)
    share = {name: sum(oracle_answer(name, row) == "A" for row in rows[name]) / 28 for name in ("ai2d", "mmmu")}
    assert a.benchmarks["ai2d"].score == pytest.approx(100 * share["ai2d"], abs=1e-3)
    # VLMEvalKit makes an open question's answer option A, so that the letter alone is right.
    opened = sum(row["question_type"] == "open" for row in rows["mmmu"]) / 28 if protocol == "vlmevalkit" else 0.0
    assert a.benchmarks["mmmu"].score == pytest.approx(100 * (share["mmmu"] + opened), abs=1e-3)
    assert a.benchmarks["mme"].score == a.benchmarks["docvqa"].score == 0
    assert 0 < share["ai2d"] < 0.5
    assert a.benchmarks["mme"].unparsable == a.benchmarks["hallusionbench"].unparsable == 1


def test_an_empty_model_scores_nothing_under_vlmevalkit(run):
    result = run(lambda task, doc: "")
    assert {r.unparsable for r in result.benchmarks.values()} == {1.0}
    assert {r.score for r in result.benchmarks.values()} == {0.0}


def test_no_answer_is_unreadable_everywhere_and_mmmu_draws_the_same_letters_again(run, rows):
    first, again = (run(lambda task, doc: "", "lmms-eval") for _ in range(2))
    assert {r.unparsable for r in first.benchmarks.values()} == {1.0}
    assert first.benchmarks["mmmu"].score == again.benchmarks["mmmu"].score > 0
    assert first.benchmarks["hallusionbench"].score == 0


@pytest.mark.parametrize(
    ("answer", "right"),
    [("{}.", True), ("({})", True), (" {} ", True), ("{}. text", True), ("The answer is {}.", False)],
)
def test_the_two_protocols_read_the_same_answers_each_in_its_own_way(run, rows, answer, right):
    def say(task, doc):
        return answer.format(oracle_answer("ai2d", rows["ai2d"][doc]))

    lmms, kit = (run(say, name, tasks=["ai2d"], limit=6).benchmarks["ai2d"] for name in ("lmms-eval", "vlmevalkit"))
    assert (lmms.score, lmms.unparsable) == ((100, 0) if right else (0, 1))
    assert (kit.score, kit.unparsable) == (100, 0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_training_chats_are_the_prompts_of_the_protocol(rows, lmms_eval, data_root, protocol):
    """So that a model trained on synthetic chats is asked in the words it was trained on."""
    from syvla.evaluation.vlm_benchmarks.image_rows import read_rows
    from syvla.evaluation.vlm_benchmarks.lmms_model import _load_chat
    from syvla.evaluation.vlm_benchmarks.synthetic_data import chat_of
    from syvla.evaluation.vlm_benchmarks.task_loading import load_task
    from syvla.evaluation.vlm_benchmarks.vlmevalkit_protocol import _chat

    for name, benchmark in BENCHMARKS.items():
        task = load_task(benchmark, data_root) if protocol == "lmms-eval" else None
        data = read_rows(benchmark, data_root)
        for i, row in enumerate(rows[name]):
            (message,) = _load_chat(task.doc_to_messages, task.test_docs(), i) if task else _chat(name, data, i)
            content, images, _ = chat_of(name, row, protocol)
            asked = [part for part in message["content"] if part["type"] == "text"]
            assert asked == [part for part in content if part["type"] == "text"], name
            seen = [part["image"] for part in message["content"] if part["type"] == "image"]
            assert [i.tobytes() for i in seen] == [i.convert("RGB").tobytes() for i in images]
            assert [p["type"] for p in message["content"]] == [p["type"] for p in content]


def test_generators_of_the_caller_are_left_as_they_were(run):
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    run(lambda task, doc: "", tasks=["mmmu"], limit=4)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


def test_a_limited_run_is_never_called_the_papers_table(run):
    result = run(lambda task, doc: "Yes", tasks=["mme", "ai2d"], limit=4)
    assert not result.complete
    for text in (result.to_text(), json.dumps(result.to_dict())):
        assert "NOT comparable with other tables: 4 of 3088 rows of AI2D, 4 of 2374 rows of MME" in text
        assert ": comparable with" not in text
    assert list(result.benchmarks) == ["ai2d", "mme"], "in the order of the paper's table"
    assert list(result.benchmarks["mme"].parts) == ["perception"], "no row of cognition was asked"


HELD = {"protocol": "vlmevalkit", "limit": None, "pixel_limits": [1003520, 12845056], "headline": "mean", "judge": RULE}


def result_with(settings=None, name="ai2d", unparsable=0.0, rows=None, damaged=None):
    benchmark = BENCHMARKS[name]
    parts = {"accuracy": 67.66} if name == "ai2d" else {"aAcc": 60.0, "qAcc": 40.0, "fAcc": 30.0}
    column = result_of(benchmark, parts, rows or benchmark.rows, unparsable, 1.0, damaged=damaged)
    return VLMResult({name: column}, {**HELD, **(settings or {})})


def test_comparable_is_what_holds_every_condition_of_its_protocol():
    whole = result_with()
    assert whole.complete
    assert whole.label == (
        "protocol vlmevalkit, images of 1003520 to 12845056 pixels, 100.0% or more readable; official splits, complete: "
        "comparable with tables made by vlmevalkit"
    )
    assert result_with(unparsable=0.05).complete
    assert result_with(name="hallusionbench").complete


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": 3087}, "3087 of 3088 rows of AI2D"),
        ({"unparsable": 0.051}, "94.9% of the answers of AI2D readable"),
        ({"unparsable": 1.0}, "0.0% of the answers of AI2D readable"),
        ({"damaged": {7: "its image is missing"}}, "1 damaged rows of AI2D"),
        ({"settings": {"limit": 3088}}, "3088 of 3088 rows of AI2D"),
        ({"settings": {"max_new_tokens": 4}}, "answers cut at 4 tokens"),
        ({"settings": {"pixel_limits": [784, 784]}}, "images of 784 to 784 pixels, where the protocol has 1003520 to"),
        (
            {"settings": {"protocol": "lmms-eval"}},
            "images of 1003520 to 12845056 pixels, where the protocol has 200704",
        ),
        (
            {"settings": {"headline": "aAcc"}, "name": "hallusionbench"},
            "aAcc of HallBench, where tables print the mean",
        ),
        (
            {"settings": {"protocol": "lmms-eval", "pixel_limits": [200704, 1605632]}, "name": "hallusionbench"},
            "HallBench judged by a rule, where lmms-eval asks a model",
        ),
    ],
)
def test_whatever_departs_from_the_protocol_is_named_and_not_comparable(change, said):
    result = result_with(**change)
    assert not result.complete
    assert "NOT comparable with other tables: " in result.label
    assert said in result.label
    assert ": comparable with" not in result.label


def test_lmms_evals_scores_are_in_the_papers_units():
    benchmark = BENCHMARKS["ai2d"]
    assert read_scores(benchmark, {"exact_match,flexible-extract": 0.6766}, 3088, 0.0, 1.0).score == 67.66


def test_the_protocol_brings_its_own_image_budget_and_answer_length(checkpoint, data_root, monkeypatch):
    """The real path to the model, up to its first question."""
    from syvla.evaluation.vlm_benchmarks.answer_generation import AnswerGenerator

    asked = {}

    def answer(self, questions):
        asked[self.renderer.pixel_limits] = questions[0].generation
        raise KeyboardInterrupt

    monkeypatch.setattr(AnswerGenerator, "answer", answer)
    options = {"tasks": ["ai2d"], "data_root": data_root, "progress": False, "limit": 2}
    for more in ({}, {"protocol": "lmms-eval"}, {"min_pixels": 64, "max_pixels": 4096}):
        with pytest.raises(KeyboardInterrupt):
            evaluate_vlm(str(checkpoint), **options, **more)
    kit = {"max_new_tokens": 2048, "repetition_penalty": 1.0}
    assert asked[1280 * 28 * 28, 16384 * 28 * 28] == asked[64, 4096] == kit
    assert asked[256 * 28 * 28, 1605632]["max_new_tokens"] == 16


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_damaged_or_missing_image_is_counted_named_and_does_not_end_the_run(
    fixed_answers, data_root, rows, tmp_path, protocol
):
    import datasets

    path = next((data_root / "ai2d").rglob("*.parquet"))
    table = datasets.load_dataset("parquet", data_files=str(path), split="train").cast_column(
        "image", datasets.Image(False)
    )
    broken = table.to_list()
    broken[1]["image"] = {"bytes": broken[1]["image"]["bytes"][:-40], "path": None}
    broken[2]["image"] = None
    broken[3]["image"] = {"bytes": b"no picture", "path": None}
    (tmp_path / "ai2d").mkdir()
    datasets.Dataset.from_list(
        broken, features=datasets.Features({**table.features, "image": datasets.Image()})
    ).to_parquet(tmp_path / "ai2d" / "test-00000-of-00001.parquet")
    oracle = fixed_answers(lambda task, doc: oracle_answer("ai2d", rows["ai2d"][doc]))
    column = evaluate_vlm(oracle, ["ai2d"], protocol=protocol, data_root=tmp_path, progress=False).benchmarks["ai2d"]
    assert sorted(column.damaged) == [1, 2, 3]
    assert "image" in column.damaged[2]
    assert (column.rows, column.score) == (28, pytest.approx(100 * 25 / 28, abs=1e-3))
    text = VLMResult({"ai2d": column}, HELD).to_text()
    assert "AI2D: row 1 counts as wrong: an image cannot be read" in text
    assert "3 damaged rows of AI2D" in text


def test_headline_of_hallusionbench_is_a_setting(run):
    for headline, expected in (("aAcc", 50), ("qAcc", 0), ("fAcc", 0), ("mean", 50 / 3)):
        result = run(lambda task, doc: "No", tasks=["hallusionbench"], headline=headline)
        assert result.benchmarks["hallusionbench"].score == pytest.approx(expected, abs=1e-4)
        assert result.benchmarks["hallusionbench"].unit == f"{headline} %"


def test_rows_that_changed_on_disk_are_read_anew(fixed_answers, data_root, rows, tmp_path):
    """`datasets` keeps copies; a rewritten file of the same name must not be answered from them."""
    shutil.copytree(data_root, tmp_path / "data")
    oracle = fixed_answers(lambda task, doc: oracle_answer("docvqa", rows["docvqa"][doc]))
    scores = []
    for seed in (11, 12):
        write_benchmarks(tmp_path / "data", 28, seed=seed, tasks=["docvqa"])
        result = evaluate_vlm(oracle, ["docvqa"], data_root=tmp_path / "data", progress=False)
        scores.append(result.benchmarks["docvqa"].score)
    assert scores[0] == 100
    assert scores[1] < 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tasks": ["docvq"]},
            "'docvq' is unknown, expected any of docvqa, ai2d, mmmu, mme, hallusionbench; did you mean",
        ),
        ({"limit": 5}, "limit: MME scores pairs of questions, so it needs an even number, got 5; pass 6"),
        ({"limit": 0}, "limit: expected at least 1, got 0"),
        (
            {"data_root": "no/such/place"},
            "no validation-*.parquet for DocVQA below no/such/place/DocVQA; put the dataset ",
        ),
        ({"protocol": "vlmeval"}, "protocol: expected one of vlmevalkit, lmms-eval, got 'vlmeval'; did you mean"),
        ({"image_budget": "big"}, "image_budget: expected one of protocol, checkpoint, got 'big'"),
        ({"headline": "best"}, "headline: expected one of aAcc, qAcc, fAcc, mean, got 'best'"),
        ({"resume": True}, "resume: needs the output folder"),
        ({"judge_url": "ftp://judge", "tasks": ["ai2d"]}, "judge_url: expected http:// or https://"),
    ],
)
def test_bad_input_is_one_clear_error(run, fixed_answers, data_root, change, message):
    with pytest.raises((ValueError, OSError)) as error:
        evaluate_vlm(fixed_answers(lambda task, doc: ""), **{"data_root": data_root, **change})
    assert message in str(error.value)


def test_an_odd_limit_is_fine_without_mme(run):
    assert run(lambda task, doc: "A", tasks=["ai2d"], limit=3).benchmarks["ai2d"].rows == 3


def test_damaged_and_foreign_files_are_named(tmp_path, data_root, capsys):
    import datasets

    shutil.copytree(data_root, tmp_path / "data")
    path = next((tmp_path / "data" / "MME").rglob("*.parquet"))
    datasets.Dataset.from_list([{"question": "?"}]).to_parquet(path)
    arguments = ["--model", "none", "--data-root", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert (
        "lacks the columns ['question_id', 'image', 'answer', 'category'] of lmms-lab-encoder/MME"
        in capsys.readouterr().err
    )
    path.write_bytes(b"PAR1 not really")
    assert main(arguments) == 1
    assert f"{path}: no readable parquet file" in capsys.readouterr().err


def test_half_a_pair_of_mme_is_named(run, fixed_answers, data_root, tmp_path):
    import datasets

    rows = datasets.load_dataset("parquet", data_files=str(next((data_root / "MME").rglob("*.parquet"))), split="train")
    (tmp_path / "MME").mkdir()
    rows.select([0, 1, 2]).to_parquet(tmp_path / "MME" / "test-00000-of-00001.parquet")
    for protocol in PROTOCOLS:
        options = {"data_root": tmp_path, "progress": False, "protocol": protocol}
        with pytest.raises(ValueError, match="MME: a question lacks the second one of its pair"):
            evaluate_vlm(fixed_answers(lambda task, doc: "Yes"), ["mme"], **options)


def test_missing_lmms_eval_says_what_to_install(monkeypatch, capsys, data_root, tmp_path):
    for name in [name for name in sys.modules if name.split(".")[0] == "lmms_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    arguments = ["--model", "none", "--data-root", str(data_root), "--output", str(tmp_path)]
    assert main([*arguments, "--protocol", "lmms-eval"]) == 1
    error = capsys.readouterr().err
    assert "pip install 'syvla[eval]'" in error
    assert "in a checkout: scripts/install_lmms_eval.sh" in error


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_hub_data_that_cannot_be_had_says_what_to_put_where(fixed_answers, monkeypatch, tmp_path, protocol):
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError, match=r"lmms-lab-encoder/ai2d .* put the dataset .* into DIR/ai2d and pass --data-root"
    ):
        evaluate_vlm(fixed_answers(lambda task, doc: ""), ["ai2d"], protocol=protocol, progress=False)
