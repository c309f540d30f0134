"""Checkpoints are whole or not there: whatever is cut short is passed over or refused by name, and a resumed run is exact."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from syvla.training.run.checkpoints import (
    SEAL_FILE,
    UNFINISHED_FOLDER,
    find_checkpoint,
    last_whole_checkpoint,
    main,
    problems_of,
    publish,
    rotate,
    seal,
)


def write(folder, **files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def sealed(folder, text="weights"):
    seal(write(folder, model=text, state="{}"))
    return folder


def history(folder):
    return [entry for entry in json.loads((folder / "log_history.json").read_text()) if "loss" in entry]


def timeless(entry):
    return {key: value for key, value in entry.items() if not key.startswith("speed/")}


# ---------------------------------------------------------------------- whole or not


def test_a_shortened_a_lost_and_an_unlisted_end_are_found(tmp_path):
    folder = sealed(tmp_path / "checkpoint-3")
    assert problems_of(folder) == []
    (folder / "model").write_text("weig")
    assert problems_of(folder) == ["model: 4 bytes, expected 7 bytes"]
    (folder / "model").unlink()
    assert problems_of(folder) == ["model: missing, expected 7 bytes"]
    (folder / SEAL_FILE).unlink()
    assert "is missing, which is written last" in problems_of(folder)[0]
    (folder / SEAL_FILE).write_text('{"fil')
    assert "cannot be read" in problems_of(folder)[0]


def test_a_half_written_checkpoint_is_refused_by_name_and_passed_over_by_last(tmp_path, caplog):
    sealed(tmp_path / "checkpoint-9")
    whole = sealed(tmp_path / "checkpoint-10")
    half = write(tmp_path / "checkpoint-20", model="wei")
    with pytest.raises(ValueError, match=re.escape(f"{half} is no whole checkpoint")):
        find_checkpoint(str(half), tmp_path)
    for choice in ("last", "auto", True):
        assert find_checkpoint(choice, tmp_path) == whole
    assert f"{half} is no whole checkpoint and is passed over" in caplog.text


def test_where_there_is_none_last_is_an_error_and_auto_starts_anew(tmp_path):
    with pytest.raises(ValueError, match="holds no whole checkpoint; start the run without it"):
        find_checkpoint("last", tmp_path)
    assert find_checkpoint("auto", tmp_path) is None
    assert find_checkpoint(None, tmp_path) is None
    with pytest.raises(ValueError, match="there is no such folder"):
        find_checkpoint(tmp_path / "checkpoint-7", tmp_path)


def test_a_checkpoint_takes_the_place_of_an_earlier_one_of_its_step(tmp_path):
    sealed(tmp_path / "checkpoint-5", "old")
    publish(write(tmp_path / UNFINISHED_FOLDER / "checkpoint-5", model="new"), tmp_path / "checkpoint-5")
    assert (tmp_path / "checkpoint-5" / "model").read_text() == "new"
    assert problems_of(tmp_path / "checkpoint-5") == []
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_rotation_keeps_the_latest_and_the_best(tmp_path):
    for step in (2, 4, 10, 12):
        sealed(tmp_path / f"checkpoint-{step}")
    rotate(tmp_path, None, None)
    assert len(list(tmp_path.iterdir())) == 4
    rotate(tmp_path, 2, str(tmp_path / "checkpoint-4"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-12", "checkpoint-4"]


def test_the_command_checks_and_seals(tmp_path, capsys):
    folder = write(tmp_path / "checkpoint-1", model="x")
    assert main([str(folder)]) == 1
    assert json.loads(capsys.readouterr().out)["whole"] is False
    assert main([str(folder), "--seal"]) == 0
    assert last_whole_checkpoint(tmp_path) == folder


# ---------------------------------------------------------------------- processes that are killed


TRAIN = """
import os, signal, sys
import syvla.training.imitation.trainer
{trap}
from syvla.training.finetune import main
sys.exit(main(sys.argv[1:]))
"""

KILL_WHILE_SAVING = """
original = syvla.training.imitation.trainer.SyVLATrainer._save_rng_state
def killed(self, folder):
    original(self, folder)
    if self.state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
syvla.training.imitation.trainer.SyVLATrainer._save_rng_state = killed
"""

KILL_IN_A_STEP = """
original = syvla.training.imitation.trainer.SyVLATrainer.training_step
def killed(self, *args, **kwargs):
    if self.state.global_step == 4 and self._tr_loss != 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *args, **kwargs)
syvla.training.imitation.trainer.SyVLATrainer.training_step = killed
"""

OPTIONS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "logging_steps": 2, "ema_decay": 0.9}
OPTIONS |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "multimodal_share": 0.25}


def run(trap, arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TRAIN.format(trap=trap), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_run_that_was_killed_in_a_step_goes_on_bit_for_bit(
    finetune, finetune_arguments, multimodal_path, tmp_path, adapter
):
    """Killed by SIGKILL in the second micro-batch of step 5; logs every second step, saves every third: the loss logged at
    step 4 was summed up on both sides of the checkpoint, as were the rows that cannot be used, every second one."""
    folder = shutil.copytree(multimodal_path.parent, tmp_path / "chats")
    lines = [line for usable in multimodal_path.read_text().splitlines() for line in ('{"messages": []}', usable)]
    (folder / multimodal_path.name).write_text("\n".join(lines) + "\n")
    options = {**OPTIONS, "adapter": adapter, "multimodal_datasets": folder / multimodal_path.name}
    assert finetune(tmp_path / "whole", **options) == 0
    killed = run(KILL_IN_A_STEP, finetune_arguments(tmp_path / "killed", **options))
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert finetune(tmp_path / "killed", **options, resume_from_checkpoint="auto") == 0
    whole, resumed = (history(tmp_path / name) for name in ("whole", "killed"))
    assert [entry["step"] for entry in resumed] == [2, 4, 6]
    assert [timeless(entry) for entry in resumed] == [timeless(entry) for entry in whole]
    assert any(key.startswith("skipped_rows/") for key in whole[0])
    file = "model.safetensors" if adapter == "none" else "adapter_model.safetensors"
    weights = [load_file(tmp_path / name / file) for name in ("whole", "killed")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.slow
def test_a_kill_while_saving_leaves_the_checkpoint_before(finetune, finetune_arguments, multimodal_path, tmp_path):
    options = {**OPTIONS, "save_steps": 2, "save_total_limit": 1, "multimodal_datasets": multimodal_path}
    assert finetune(tmp_path / "whole", **options) == 0
    assert [path.name for path in (tmp_path / "whole").glob("*checkpoint*")] == ["checkpoint-6"]
    killed = run(KILL_WHILE_SAVING, finetune_arguments(tmp_path / "killed", **options))
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    half = tmp_path / "killed" / UNFINISHED_FOLDER / "checkpoint-4"
    assert (half / "model.safetensors").is_file()
    with pytest.raises(ValueError, match=re.escape(f"{half} is no whole checkpoint")):
        find_checkpoint(half, tmp_path / "killed")
    assert find_checkpoint("last", tmp_path / "killed") == tmp_path / "killed" / "checkpoint-2"
    assert finetune(tmp_path / "killed", **options, resume_from_checkpoint="last") == 0
    whole, resumed = (history(tmp_path / name) for name in ("whole", "killed"))
    assert [timeless(entry) for entry in resumed] == [timeless(entry) for entry in whole]
    assert not (tmp_path / "killed" / UNFINISHED_FOLDER).exists()
    assert problems_of(tmp_path / "killed" / "checkpoint-6") == []


def test_the_best_checkpoint_is_named_by_its_place(make_model, tiny_processor, make_item, tmp_path):
    """Trainer notes the best checkpoint while it is still being written elsewhere."""
    from syvla.training import SyVLATrainer, SyVLATrainingArguments

    data = [make_item(i) for i in range(4)]
    options = {"eval_strategy": "steps", "save_strategy": "steps", "save_steps": 1, "eval_steps": 1, "max_steps": 2}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "save_total_limit": 1}
    args = SyVLATrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, warmup_steps=0, **options)
    trainer = SyVLATrainer(make_model(), args, processing_class=tiny_processor, train_dataset=data, eval_dataset=data)
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best == str(tmp_path / f"checkpoint-{trainer.state.best_global_step}")
    for folder in tmp_path.glob("checkpoint-*"):
        assert problems_of(folder) == []
    saved = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert saved["best_model_checkpoint"] == best
