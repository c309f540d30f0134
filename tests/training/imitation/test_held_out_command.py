"""Held-out data in `syvla-finetune`: what is trained on, when it is measured, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launching import launch
from safetensors.torch import load_file
from transformers import AutoProcessor

from syvla.evaluation.open_loop.command import main as openloop
from syvla.processing import RobotDataset
from syvla.training.finetune import main
from syvla.training.imitation.command import train
from syvla.training.run.arguments import DataArguments, ModelArguments, SyVLATrainingArguments
from syvla.training.run.recipe import parse_recipe

CAMERAS = {"center": "observation.images.head", "left_wrist": "observation.images.left_wrist"}


@pytest.fixture
def run(finetune_arguments):
    """Trains as the command does, but returns the trainer: `run(output, **options)`."""

    def start(*args, **options):
        types = (ModelArguments, DataArguments, SyVLATrainingArguments)
        return train(*parse_recipe(types, finetune_arguments(*args, **options)))

    return start


def entry(path, **more):
    return json.dumps({"path": str(path), "embodiment": "two_arms", "cameras": CAMERAS, **more})


def results(folder):
    return json.loads((folder / "eval_results.json").read_text())


def test_held_out_episodes_enter_neither_training_nor_its_statistics(
    run, robot_dataset_path, multimodal_path, tmp_path
):
    chats = json.dumps({"path": str(multimodal_path), "eval_rows": 2})
    options = {"eval_split": "[1]", "multimodal_datasets": chats, "multimodal_share": 0.25, "eval_steps": 2}
    trainer = run(tmp_path, **options)
    (robot,), (rows,) = trainer.train_dataset.robot_datasets, trainer.train_dataset.multimodal_datasets
    held_robot, held_rows = trainer.eval_dataset.datasets
    assert {robot[i]["episode_index"] for i in range(len(robot))} == {0, 2}
    assert {held_robot[i]["episode_index"] for i in range(len(held_robot))} == {1}
    trained, measured = ({data[i]["row"] for i in range(len(data))} for data in (rows, held_rows))
    assert (len(measured), trained | measured, trained & measured) == (2, set(range(8)), set())
    statistics = AutoProcessor.from_pretrained(tmp_path).embodiments["two_arms"]["statistics"]
    alone = RobotDataset(robot_dataset_path, embodiment="two_arms", episodes=[0, 2]).statistics()
    for kind in ("state", "action"):
        assert statistics[kind]["mean"] == alone[kind]["mean"]
    log = json.loads((tmp_path / "log_history.json").read_text())
    assert [e["step"] for e in log if "eval_loss" in e] == [2, 3]
    last = [e for e in log if "eval_loss" in e][-1]
    assert results(tmp_path)["eval_loss"] == last["eval_loss"]
    assert results(tmp_path)["eval_samples"] == 14
    assert {"eval_vlm_loss", "eval_loss_by_embodiment/two_arms", "eval_action_loss_by_source/robot"} <= set(last)
    assert "last vlm_loss on held-out data" in (tmp_path / "README.md").read_text()


def test_measuring_alone_gives_what_the_run_measured_and_changes_nothing(finetune, tmp_path, capsys):
    assert finetune(tmp_path / "run", eval_split="[1]", save_strategy="no") == 0
    capsys.readouterr()
    options = {"model": tmp_path / "run", "do_train": "false", "eval_split": "[1]"}
    for batch in (1, 5):
        assert finetune(tmp_path / "alone", **options, per_device_eval_batch_size=batch) == 0
        printed = json.loads(capsys.readouterr().out.splitlines()[-1])
        for name in ("eval_loss", "eval_action_loss", "eval_lm_loss"):
            assert printed[name] == pytest.approx(results(tmp_path / "run")[name], rel=2e-5)
    assert sorted(path.name for path in (tmp_path / "alone").iterdir()) == ["eval_results.json"]


def test_the_final_folder_alone_says_what_was_held_out(finetune, robot_dataset_path, tmp_path):
    """The open-loop command asks it, also of a run that saved no checkpoint on its way."""
    folder = tmp_path / "run"
    assert finetune(folder, eval_split="[1]", save_strategy="no", max_steps=1) == 0
    assert not list(folder.glob("checkpoint-*"))
    output = tmp_path / "report"
    options = ["--output", str(output), "--draws", "1", "--plots", "0", "--worst", "0", "--neighbor-images", "0"]
    assert openloop([str(folder), str(robot_dataset_path), *options, "--quiet", "--device", "cpu"]) == 0
    settings = json.loads((output / "openloop.json").read_text())["settings"]
    assert (settings["episodes"], settings["episodes_chosen"]) == ([1], "held out by the training run")


def test_the_best_checkpoint_is_loaded_at_the_end(run, tmp_path):
    """Huge steps make the loss worse, so that an early checkpoint is the best one, whatever the metric's name ends with."""
    options = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1, "max_steps": 3}
    options |= {"learning_rate": 0.05, "final_learning_rate": 0.05, "warmup_steps": 0, "load_best_model_at_end": True}
    metric = "eval_action_loss_by_source/robot"
    trainer = run(tmp_path, **options, metric_for_best_model=metric, eval_split=0.34)
    *during, end = [(e["step"], e[metric]) for e in trainer.state.log_history if "eval_loss" in e]
    assert [step for step, _ in during] == [1, 2, 3]
    best = min(during, key=lambda entry: entry[1])
    assert best[0] < 3
    saved, chosen = (load_file(path / "model.safetensors") for path in (tmp_path, tmp_path / f"checkpoint-{best[0]}"))
    assert all(torch.equal(saved[name], chosen[name]) for name in saved)
    assert results(tmp_path)[metric] == end[1] == pytest.approx(best[1], rel=1e-5)


def test_a_split_of_the_dataset_and_shares_per_dataset(run, robot_dataset_path, tmp_path, caplog):
    one = entry(robot_dataset_path, eval_split=0.34)
    arguments = {"robot_datasets": one, "eval_split": "test", "max_steps": 1}
    with caplog.at_level("INFO"):
        trainer = run(tmp_path / "a", **arguments)  # the dataset's own wins
    assert len(trainer.eval_dataset.datasets[0].episodes) == 1
    assert f"held out from training: episodes {trainer.eval_dataset.datasets[0].episodes}" in caplog.text
    none = entry(robot_dataset_path, eval_split=None)
    assert run(tmp_path / "b", **{**arguments, "robot_datasets": none}).eval_dataset is None
    assert not (tmp_path / "b" / "eval_results.json").exists()


def test_a_run_goes_on_only_with_the_same_held_out_episodes(finetune, tmp_path, capsys):
    options = {"save_strategy": "steps", "save_steps": 1}
    assert finetune(tmp_path, **options, eval_split="[1]", max_steps=1) == 0
    again = {**options, "max_steps": 2, "resume_from_checkpoint": "auto"}
    assert finetune(tmp_path, **again, eval_split="[2]") == 1
    assert "held_out was [['robot', [1]]], is [['robot', [2]]]" in capsys.readouterr().err
    assert finetune(tmp_path, **again, eval_split="[1]") == 0


def test_predicted_and_recorded_actions_are_compared_while_training_goes_on(run, tmp_path):
    """The logged error is that of the saved weights, measured anew; training draws the same numbers with and without."""
    from syvla.evaluation.open_loop.evaluation import measure_open_loop

    trainer = run(tmp_path / "a", eval_split="[1]", open_loop_steps=2)
    measured = [entry for entry in trainer.state.log_history if "eval_open_loop/robot/error" in entry]
    assert [entry["step"] for entry in measured] == [2, 3]
    trainer.model.eval()
    again = measure_open_loop(trainer.policy, trainer.processing_class, trainer.eval_dataset.robot_datasets[0])
    for name, value in again.items():
        assert measured[-1][f"eval_open_loop/robot/{name}"] == pytest.approx(value, rel=1e-4), name
    plain = run(tmp_path / "b", eval_split="[1]")
    losses = [[e["loss"] for e in one.state.log_history if "loss" in e] for one in (trainer, plain)]
    assert losses[0] == losses[1]
    assert "eval_open_loop/robot" in (tmp_path / "a" / "index.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_split": 1.0}, "holds out all 3 episodes and leaves none to train on"),
        ({"eval_split": "[0, 1, 2]"}, "leaves none to train on"),
        ({"eval_split": "test"}, "'test' is no split of this dataset"),
        ({"eval_split": "[1, 9]"}, "episodes [9] do not exist; the dataset has episodes 0 to 2"),
        ({"eval_split": '{"a": 1}'}, "eval_split: expected a share such as 0.1"),
        ({"eval_split": "NaN"}, "eval_split: expected a share such as 0.1"),
        ({"eval_steps": 1}, "eval_strategy=steps: there is no held-out data to measure on; hold some out"),
        ({"do_eval": True}, "do_eval: there is no held-out data"),
        ({"do_train": "false"}, "do_train false: there is no held-out data"),
        ({"eval_samples": 5}, "eval_samples: there is no held-out data"),
        ({"open_loop_steps": 2}, "open_loop_steps: there is no held-out data"),
        ({"eval_split": 0.34, "open_loop_steps": -1}, "open_loop_steps: expected 0 (off) or more"),
        ({"eval_split": 0.34, "do_train": "false", "open_loop_steps": 2}, "run syvla-openloop on the checkpoint"),
        ({"eval_split": 0.34, "eval_samples": -1}, "eval_samples: expected 0 (all) or more"),
        ({"eval_split": 0.34, "do_train": "false", "do_eval": "false"}, "do_train and do_eval are both false"),
        ({"eval_split": 0.34, "do_eval": "false", "eval_steps": 1}, "do_eval: false contradicts eval_strategy=steps"),
        ({"eval_split": 0.34, "do_train": "false"}, "which the checkpoint does not know; it knows none. Train first"),
        ({"eval_split": 0.34, "do_train": "false", "resume_from_checkpoint": "last"}, "name the checkpoint to measure"),
        ({"eval_split": 0.34, "multimodal_eval_rows": 8, "chats": True}, "eval_rows=8 leaves none of its 8 rows"),
        ({"eval_split": 0.34, "multimodal_eval_rows": -1, "chats": True}, "eval_rows: expected a number of rows"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_error(options, message, finetune, multimodal_path, tmp_path, capsys):
    if options.pop("chats", False):
        options |= {"multimodal_datasets": multimodal_path, "multimodal_share": 0.25}
    assert finetune(tmp_path, **options) == 1
    error = capsys.readouterr().err
    assert message in error
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_measure_the_same(finetune_arguments, multimodal_path, tmp_path):
    """Nine samples of chats and twelve of the robot over two gloo processes, against one."""
    chats = json.dumps({"path": str(multimodal_path), "eval_rows": 3})
    options = {"eval_split": "[1]", "multimodal_datasets": chats, "multimodal_share": 0.25, "max_steps": 1}
    assert main(finetune_arguments(tmp_path / "start", **options)) == 0
    options |= {"model": tmp_path / "start", "do_train": "false", "per_device_eval_batch_size": 4}
    script = Path(__file__).parents[3] / "training" / "finetune.py"
    command = [sys.executable, "-m", *launch(2), str(script), *finetune_arguments(tmp_path / "two", **options)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = results(tmp_path / "start"), results(tmp_path / "two")
    losses = [name for name in one if "loss" in name]
    assert len(losses) >= 10
    assert {name: two[name] for name in losses} == pytest.approx(
        {name: one[name] for name in losses}, rel=5e-5, abs=2e-6
    )
    assert two["eval_samples"] == one["eval_samples"] == 15
