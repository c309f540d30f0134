"""A sample of infinite loss: the step changes nothing, is counted, and the run ends if such steps go on."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from syvla.processing.mixture import MixtureDataset
from syvla.training import SyVLATrainer, SyVLATrainingArguments
from syvla.training.run.finite_steps import NonFiniteError, require_finite_weights

TOO_LARGE = 1e30  # finite itself, but its square is not


class Rows(torch.utils.data.Dataset):
    """One robot's samples, some of them with actions too large; named like a dataset on disk."""

    name = "recordings/kitchen"

    def __init__(self, make_item, bad=()):
        self.items = [{**make_item(i), "episode_index": 7, "frame_index": i} for i in range(8)]
        for index in bad:
            self.items[index]["actions"] = self.items[index]["actions"] * 0 + TOO_LARGE

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


@pytest.fixture
def trainer_of(tiny_model, tiny_processor, make_item, tmp_path):
    """`trainer_of(bad rows, folder, **arguments)`: one sample a step, eight steps an epoch."""

    def make(bad=(), folder="run", **arguments):
        fields = {
            "per_device_train_batch_size": 1,
            "max_steps": 8,
            "warmup_steps": 0,
            "logging_steps": 1,
            "save_steps": 1,
            "learning_rate": 1e-3,
            "use_cpu": True,
            "disable_tqdm": True,
            **arguments,
        }
        torch.manual_seed(0)
        return SyVLATrainer(
            tiny_model,
            SyVLATrainingArguments(str(tmp_path / folder), **fields),
            processing_class=tiny_processor,
            train_dataset=MixtureDataset([Rows(make_item, bad)]),
        )

    return make


def history(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("nan_filter", [True, False])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_one_bad_sample_changes_no_weight_no_moment_and_no_average(trainer_of, nan_filter, ema_decay):
    trainer = trainer_of([3], logging_nan_inf_filter=nan_filter, ema_decay=ema_decay)
    trainer.train()
    log = history(trainer)
    (number,) = [i for i, entry in enumerate(log) if not math.isfinite(entry["loss"])]
    assert [entry.get("nonfinite_steps") for entry in log] == [None] * number + [1.0] * (8 - number)
    assert trainer.nonfinite_steps == 1
    folder = trainer.args.output_dir
    saved = [load_file(f"{folder}/checkpoint-{step}/model.safetensors") for step in range(1, 9)]
    assert number > 0
    for name, weight in saved[number].items():
        assert torch.equal(weight, saved[number - 1][name]), name
        assert torch.isfinite(saved[-1][name]).all(), name
    moments = [torch.load(f"{folder}/checkpoint-{step}/optimizer.pt")["state"] for step in (number, number + 1)]
    assert all(torch.equal(moments[0][i][key], moments[1][i][key]) for i in moments[0] for key in moments[0][i])
    assert any(not torch.equal(saved[-1][name], saved[number][name]) for name in saved[-1])
    assert "whose loss or gradient was not finite: 1" in Path(f"{folder}/checkpoint-8/README.md").read_text()


def test_a_mean_over_steps_leaves_the_skipped_one_out(trainer_of):
    trainer = trainer_of([3], logging_steps=8, save_strategy="no")
    trainer.train()
    (entry,) = history(trainer)
    assert 0 < entry["loss"] < 100
    assert entry["loss"] == pytest.approx(entry["action_loss"], rel=1e-4)  # which counts samples, not steps


def test_steps_in_a_row_end_the_run_with_the_rows_and_keep_the_good_checkpoints(trainer_of):
    trainer = trainer_of([0, 1, 2, 3, 4, 5, 6, 7], max_nonfinite_steps=2)
    with pytest.raises(NonFiniteError, match=r"3 steps in a row are not finite.*kitchen: episode 7, frame \d"):
        trainer.train()
    saved = load_file(f"{trainer.args.output_dir}/checkpoint-2/model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in saved.values())


def test_only_the_guilty_sample_of_a_batch_is_named(trainer_of, caplog):
    trainer = trainer_of([5], per_device_train_batch_size=8, max_steps=1, save_strategy="no")
    trainer.train()
    assert "rows: kitchen: episode 7, frame 5" in caplog.text
    assert "frame 4" not in caplog.text


def test_the_command_ends_with_an_error_and_saves_nothing_bad(finetune, tmp_path, capsys):
    """A learning rate at which weights overflow after a few steps."""
    assert finetune(tmp_path, learning_rate=1e30, final_learning_rate=1e30, max_steps=12, save_strategy="steps",
                    save_steps=1, warmup_steps=0) == 1  # fmt: skip
    error = capsys.readouterr().err
    assert "not finite" in error
    for path in tmp_path.glob("checkpoint-*/model.safetensors"):
        assert all(torch.isfinite(weight).all() for weight in load_file(path).values()), path
    assert not (tmp_path / "model.safetensors").exists()


def test_weights_that_are_not_finite_are_never_written(trainer_of):
    trainer = trainer_of()
    trainer.model.adapter[0].bias.data[1] = math.nan
    with pytest.raises(NonFiniteError, match=r"1 weights are not finite, such as adapter\.0\.bias"):
        trainer.save_model()
    with pytest.raises(NonFiniteError, match=r"adapter\.0\.bias"):
        require_finite_weights(trainer.model)


def test_the_count_outlives_a_resumed_run(trainer_of):
    first = trainer_of([0, 1, 2, 3, 4, 5, 6, 7], max_nonfinite_steps=9, max_steps=8, save_steps=4)
    first.train()
    state = json.loads(Path(first.args.output_dir, "checkpoint-4", "unlogged_losses_0.json").read_text())
    assert state["nonfinite_steps"] == 4
