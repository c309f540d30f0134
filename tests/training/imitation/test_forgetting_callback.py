"""Benchmarks during training: logged, right, and without any trace in the training itself."""

import importlib.util
import json

import datasets
import pytest
import torch
from safetensors.torch import load_file

from syvla.evaluation import evaluate_vlm
from syvla.evaluation.vlm_benchmarks.synthetic_data import write_benchmarks
from syvla.evaluation.vlm_benchmarks.synthetic_rows import MME_SUFFIX

needs_lmms_eval = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None,
    reason="lmms-eval is not installed: scripts/install_test_peers.sh",
)
TASKS = ["ai2d", "mme"]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"), 6, tasks=TASKS)


def log(folder):
    return json.loads((folder / "log_history.json").read_text())


def measured(folder):
    return {entry["step"]: entry for entry in log(folder) if "eval_vlm/ai2d" in entry}


@needs_lmms_eval
@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"adapter": "lora", "ema_decay": 0.5}], ids=["whole", "adapter and average"])
def test_training_is_the_same_with_and_without_it(finetune, multimodal_path, data_root, tmp_path, options, monkeypatch):
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "cache"))
    common = {"multimodal_datasets": multimodal_path, "multimodal_share": 0.5, "max_steps": 5, **options}
    common |= {"gradient_accumulation_steps": 2, "gradient_checkpointing": True}
    measuring = {"vlm_eval_steps": 2, "vlm_eval_rows": 4, "vlm_eval_data_root": data_root, "vlm_eval_max_new_tokens": 2}
    assert finetune(tmp_path / "without", **common) == 0
    assert finetune(tmp_path / "with", **common, **measuring) == 0
    losses = [[e["loss"] for e in log(tmp_path / name) if "loss" in e] for name in ("without", "with")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 5
    name = "adapter_model.safetensors" if options else "model.safetensors"
    weights = [load_file(tmp_path / folder / name) for folder in ("without", "with")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert measured(tmp_path / "without") == {}
    assert sorted(measured(tmp_path / "with")) == [0, 2, 4, 5], "before, every two steps, and at the end"
    for entry in measured(tmp_path / "with").values():
        assert 0 <= entry["eval_vlm/ai2d"] <= 100
        assert 0 <= entry["eval_vlm/mme"] <= 2800


@needs_lmms_eval
@pytest.mark.slow
def test_logged_scores_are_those_of_the_saved_checkpoint(finetune, data_root, tmp_path, monkeypatch):
    """With a checkpoint that learns to answer, so that the score is not zero whatever is measured."""
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "cache"))
    from PIL import Image

    chats = tmp_path / "chats.jsonl"
    ask = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"Is it red?{MME_SUFFIX}"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Yes"}]}
    lines = []
    pictures = datasets.Dataset.from_parquet(str(next((data_root / "MME").rglob("*.parquet"))))["image"]
    for number in range(8):  # turned, so that they are not the measured ones
        pictures[number % 6].convert("RGB").transpose(Image.Transpose(number % 7)).save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"messages": [ask, answer], "images": [f"{number}.png"]}))
    chats.write_text("\n".join(lines) + "\n")
    output = tmp_path / "out"
    options = {"multimodal_datasets": chats, "multimodal_share": 0.75, "max_steps": 80, "learning_rate": 5e-3}
    options |= {
        "ignore_thoughts": True,
        "vlm_eval_steps": 40,
        "vlm_eval_rows": 4,
        "vlm_eval_data_root": data_root,
        "final_learning_rate": 5e-3,
    }
    assert finetune(output, **options) == 0
    logged = measured(output)
    assert sorted(logged) == [0, 40, 80]
    asked = {"protocol": "lmms-eval", "image_budget": "checkpoint", "limit": 4, "max_new_tokens": 16}
    result = evaluate_vlm(str(output), TASKS, data_root=data_root, device="cpu", progress=False, **asked)
    assert logged[80]["eval_vlm/mme"] == result.benchmarks["mme"].score > 0, "it has learned to say yes"
    assert logged[0]["eval_vlm/mme"] == 0
    assert logged[40]["eval_vlm/ai2d"] == result.benchmarks["ai2d"].score


@needs_lmms_eval
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vlm_eval_data_root": "no/place"}, "no test-*.parquet for AI2D below no/place/ai2d; put the dataset"),
        ({"vlm_eval_tasks": "gqa"}, "'gqa' is unknown, expected any of docvqa"),
        ({"vlm_eval_rows": 3}, "MME scores pairs of questions, so it needs an even number, got 3"),
        ({"vlm_eval_steps": -1}, "vlm_eval_steps: expected 0 (off) or more, got -1"),
    ],
)
def test_bad_input_is_found_before_training(finetune, data_root, tmp_path, capsys, change, message):
    assert finetune(tmp_path, **{"vlm_eval_steps": 2, "vlm_eval_data_root": data_root, **change}) == 1
    assert message in capsys.readouterr().err
