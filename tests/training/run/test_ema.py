"""Average of the weights: the recursion, what is saved, exact resume."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from syvla.training.run.ema import AVERAGE_FILE, RAW_FILE, WeightAverage, load_raw_weights


def test_average_equals_the_recursion_in_float64():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    average = WeightAverage(model, 0.9)
    expected = model.weight.detach().double()
    for step in range(1, 101):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update(model)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
    assert set(average.weights) == {"weight"}
    torch.testing.assert_close(average.weights["weight"].double(), expected, atol=1e-5, rtol=1e-5)


def test_average_of_low_precision_weights_keeps_small_steps():
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(model.weight)
    average = WeightAverage(model, 0.999)
    average.updates = 10**6
    nn.init.constant_(model.weight, 2.0)
    for _ in range(100):
        average.update(model)
    assert average.weights["weight"].item() == pytest.approx(2 - 0.999**100, rel=1e-4)


def test_raw_weights_come_back_bit_for_bit_even_after_an_error():
    model = nn.Linear(4, 4).to(torch.bfloat16)
    average = WeightAverage(model, 0.5)
    nn.init.normal_(model.weight)
    raw = model.weight.detach().clone()

    def fail():
        with average.applied(model), average.applied(model):
            assert not torch.equal(model.weight, raw)
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail()
    assert torch.equal(model.weight, raw)


def test_files_restore_average_and_raw_weights(tmp_path):
    model, fresh = nn.Linear(2, 2), nn.Linear(2, 2)
    average = WeightAverage(model, 0.9)
    nn.init.normal_(model.weight)
    average.update(model)
    average.save(tmp_path, model)
    load_raw_weights(tmp_path, fresh)
    assert torch.equal(fresh.weight, model.weight)
    restored = WeightAverage.load(tmp_path, fresh, 0.9)
    assert restored.updates == 1
    assert all(torch.equal(restored.weights[k], average.weights[k]) for k in average.weights)
    fresh.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="holds other weights than this run trains"):
        WeightAverage.load(tmp_path, fresh, 0.9)


def test_a_file_of_an_earlier_version_goes_on_where_it_stopped(tmp_path):
    """Names, float32 values and the two facts of the file, written here without the class."""
    facts = {"decay": "0.9", "updates": "2"}
    stored = {"weight": torch.tensor([[2.0]]), "bias": torch.tensor([-1.0])}
    save_file(stored, tmp_path / AVERAGE_FILE, metadata=facts)
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(6.0)
        model.bias.fill_(3.0)
    average = WeightAverage.load(tmp_path, model, 0.9)
    assert {name: weight.tolist() for name, weight in average.weights.items()} == {"weight": [[2.0]], "bias": [-1.0]}
    average.update(model)
    decay = 4 / 13  # (1 + n) / (10 + n) after the third update
    assert average.weights["weight"].item() == pytest.approx(decay * 2 + (1 - decay) * 6)
    assert average.weights["bias"].item() == pytest.approx(decay * -1 + (1 - decay) * 3)
    average.save(tmp_path, model)
    with safe_open(tmp_path / AVERAGE_FILE, "pt") as opened:
        assert opened.metadata() == {"decay": "0.9", "updates": "3"}
        assert sorted(opened.keys()) == ["bias", "weight"]
        assert {opened.get_tensor(name).dtype for name in opened.keys()} == {torch.float32}  # noqa: SIM118
    average.reset(model)
    assert average.weights["weight"].item() == 6.0


@pytest.mark.parametrize("decay", [1.0, -0.1, 1.5])
def test_decay_out_of_range_is_refused(decay, finetune, tmp_path, capsys):
    assert finetune(tmp_path, ema_decay=decay) == 1
    assert "ema_decay: expected a number in [0, 1)" in capsys.readouterr().err


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_saved_weights_are_the_average_and_resume_is_bit_exact(finetune, tmp_path, adapter):
    """Two micro-batches per step: the average follows optimizer steps, not micro-batches."""
    options = {"ema_decay": 0.9, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 2}
    options |= {"max_steps": 4, "adapter": adapter}
    file = "model.safetensors" if adapter == "none" else "adapter_model.safetensors"
    assert finetune(tmp_path / "whole", **options) == 0
    resume = tmp_path / "whole" / "checkpoint-2"
    assert finetune(tmp_path / "resumed", **options, resume_from_checkpoint=resume) == 0
    for name in (file, f"checkpoint-4/{file}", f"checkpoint-4/{RAW_FILE}", f"checkpoint-4/{AVERAGE_FILE}"):
        whole, resumed = (load_file(tmp_path / run / name) for run in ("whole", "resumed"))
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[key], resumed[key]) for key in whole), name
    with safe_open(tmp_path / "whole" / "checkpoint-4" / AVERAGE_FILE, "pt") as opened:
        assert opened.metadata()["updates"] == "4"
    average = load_file(tmp_path / "whole" / "checkpoint-4" / AVERAGE_FILE)
    raw = load_file(tmp_path / "whole" / "checkpoint-4" / RAW_FILE)
    saved = load_file(tmp_path / "whole" / file)
    key = "action_queries.weight" if adapter == "none" else "base_model.model.action_queries.weight"
    inside = key if adapter == "none" else "base_model.model.action_queries.modules_to_save.default.weight"
    assert torch.equal(saved[key], average[inside])
    assert not torch.equal(saved[key], raw[inside])
    assert not (tmp_path / "whole" / RAW_FILE).exists()


def test_raw_weights_are_those_of_a_run_without_average(finetune, tmp_path):
    """Averaging and saving leave the training itself untouched, bit for bit."""
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    assert finetune(tmp_path / "plain", **options) == 0
    assert finetune(tmp_path / "averaged", **options, ema_decay=0.5) == 0
    plain = load_file(tmp_path / "plain" / "checkpoint-3" / "model.safetensors")
    raw = load_file(tmp_path / "averaged" / "checkpoint-3" / RAW_FILE)
    assert all(torch.equal(plain[key], raw[key]) for key in raw)
    losses = [json.loads((tmp_path / n / "log_history.json").read_text()) for n in ("plain", "averaged")]
    assert [e.get("loss") for e in losses[0]] == [e.get("loss") for e in losses[1]]


def test_each_step_enters_the_average_once_and_at_once(finetune, tmp_path):
    """Average and raw weights of successive checkpoints obey the recursion, also with accumulated gradients."""
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "gradient_accumulation_steps": 2}
    assert finetune(tmp_path, **options, ema_decay=0.15) == 0
    previous: dict = {}
    for step in (1, 2, 3):
        average, raw = (load_file(tmp_path / f"checkpoint-{step}" / name) for name in (AVERAGE_FILE, RAW_FILE))
        for key in previous:
            decay = min(0.15, (1 + step) / (10 + step))
            expected = decay * previous[key].double() + (1 - decay) * raw[key].double()
            torch.testing.assert_close(average[key].double(), expected, atol=1e-6, rtol=1e-5, msg=key)
        previous = average


def test_a_checkpoint_is_resumed_only_with_the_setting_it_was_trained_with(finetune, tmp_path, capsys):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    assert finetune(tmp_path / "plain", **options) == 0
    assert finetune(tmp_path / "averaged", **options, ema_decay=0.5) == 0
    again = {**options, "max_steps": 2}
    resume = tmp_path / "plain" / "checkpoint-1"
    assert finetune(tmp_path / "a", **again, ema_decay=0.5, resume_from_checkpoint=resume) == 1
    assert "was trained without it" in capsys.readouterr().err
    resume = tmp_path / "averaged" / "checkpoint-1"
    assert finetune(tmp_path / "b", **again, resume_from_checkpoint=resume) == 1
    assert "was trained with an average of the weights" in capsys.readouterr().err


def test_evaluation_and_the_choice_of_the_best_checkpoint_concern_the_average(
    make_model, tiny_processor, make_item, tmp_path
):
    """The logged loss is that of the saved weights, and the end is the best checkpoint, not the last average."""
    from syvla.training import SyVLATrainer, SyVLATrainingArguments

    data = [make_item(i) for i in range(4)]
    options = {"eval_strategy": "steps", "save_strategy": "steps", "save_steps": 1, "eval_steps": 1}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    options |= {"max_steps": 3, "warmup_steps": 0, "learning_rate": 1e-3, "lr_scheduler_type": "constant"}
    args = SyVLATrainingArguments(str(tmp_path), ema_decay=0.5, use_cpu=True, disable_tqdm=True, **options)
    trainer = SyVLATrainer(
        make_model(), args, processing_class=tiny_processor, train_dataset=data, eval_dataset=data[:2]
    )
    trainer.train()
    losses = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    best = max(losses, key=losses.get)  # "greater is better" makes it an early one
    assert best < 3
    trainer.save_model(tmp_path / "end")
    end, chosen = (load_file(tmp_path / name / "model.safetensors") for name in ("end", f"checkpoint-{best}"))
    assert all(torch.equal(end[key], chosen[key]) for key in end)
    fresh = make_model()
    fresh.load_state_dict(chosen, strict=False)
    plain = SyVLATrainingArguments(str(tmp_path / "plain"), use_cpu=True, disable_tqdm=True)
    measured = SyVLATrainer(fresh, plain, processing_class=tiny_processor, eval_dataset=data[:2]).evaluate()
    assert measured["eval_loss"] == pytest.approx(losses[best], rel=1e-5)


def test_sharded_weights_are_refused(make_model, tiny_processor, tmp_path, monkeypatch):
    from syvla.training import SyVLATrainer, SyVLATrainingArguments

    args = SyVLATrainingArguments(str(tmp_path), ema_decay=0.9, use_cpu=True)
    trainer = SyVLATrainer(make_model(), args, processing_class=tiny_processor)
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    with pytest.raises(ValueError, match="ema_decay: the average needs whole weights on every process"):
        trainer._require_whole_weights("ema_decay", "the average")
