"""A used output folder is refused, and a resumed run with other data or settings says what differs."""

import json
import logging

import pytest
from safetensors.torch import load_file

from syvla.training.run.checkpoints import checkpoints_of, rotate, seal
from syvla.training.run.run_settings import require_same_settings, save_settings, used_folder_problem

SAVING = {"save_strategy": "steps", "save_steps": 1}


def steps(folder):
    return [int(path.name.split("-")[1]) for path in checkpoints_of(folder)]


def test_a_new_run_into_a_used_folder_is_refused_and_deletes_nothing(finetune, tmp_path, capsys):
    assert finetune(tmp_path, **SAVING) == 0
    before = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert finetune(tmp_path, **SAVING, max_steps=1, save_total_limit=1) == 1
    error = capsys.readouterr().err
    assert "holds checkpoints of another run (checkpoint-1, checkpoint-2, checkpoint-3)" in error
    assert "overwrite_output_dir" in error
    assert steps(tmp_path) == [1, 2, 3]
    assert before.keys() == load_file(tmp_path / "checkpoint-3" / "model.safetensors").keys()
    assert finetune(tmp_path, **SAVING, max_steps=1, overwrite_output_dir=True) == 0
    assert steps(tmp_path) == [1]


def test_the_weights_of_a_finished_run_are_not_replaced_in_silence(finetune, tmp_path, capsys):
    assert finetune(tmp_path, max_steps=1) == 0
    assert finetune(tmp_path, max_steps=1) == 1
    assert "holds the weights of a finished run (model.safetensors)" in capsys.readouterr().err
    assert finetune(tmp_path, max_steps=1, overwrite_output_dir=True) == 0


def test_resuming_with_other_data_or_share_says_what_differs(finetune, multimodal_path, tmp_path, capsys):
    assert finetune(tmp_path, **SAVING, max_steps=1) == 0
    resume = {**SAVING, "resume_from_checkpoint": "auto"}
    change = {"multimodal_datasets": multimodal_path, "multimodal_share": 0.25, "per_device_train_batch_size": 2}
    assert finetune(tmp_path, **resume, **change) == 1
    error = capsys.readouterr().err
    assert "multimodal_share was 0.0, is 0.25" in error
    assert "per_device_train_batch_size was 4, is 2" in error
    assert "datasets was [['robot', 36]], is [['robot', 36], ['chats.jsonl', 8]]" in error
    assert finetune(tmp_path, **resume, freeze="vlm") == 1
    assert "freeze was 'none', is 'vlm'" in capsys.readouterr().err


def test_resuming_with_another_learning_rate_is_allowed_and_said(finetune, tmp_path, caplog):
    assert finetune(tmp_path, **SAVING, max_steps=1) == 0
    with caplog.at_level(logging.WARNING):
        assert finetune(tmp_path, **SAVING, max_steps=2, resume_from_checkpoint="auto", learning_rate=1e-4) == 0
    assert "max_steps was 1, is 2; learning_rate was 0.001, is 0.0001" in caplog.text


def test_an_earlier_checkpoint_is_resumed_only_where_no_later_one_stands(finetune, tmp_path, capsys):
    assert finetune(tmp_path, **SAVING) == 0
    resume = {**SAVING, "resume_from_checkpoint": tmp_path / "checkpoint-1"}
    assert finetune(tmp_path, **resume) == 1
    assert "holds checkpoints later than checkpoint-1: checkpoint-2, checkpoint-3" in capsys.readouterr().err
    assert finetune(tmp_path, **resume, max_steps=2, overwrite_output_dir=True) == 0
    assert steps(tmp_path) == [1, 2]


def test_a_checkpoint_of_elsewhere_needs_a_free_folder(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    problem = used_folder_problem(tmp_path, [tmp_path / "checkpoint-2"], tmp_path / "other" / "checkpoint-1")
    assert "holds checkpoints of another run (checkpoint-2)" in problem


def test_a_broken_checkpoint_does_not_push_whole_ones_out(tmp_path):
    """Resumed at 4 past a broken 6, a run that keeps one checkpoint saves 5."""
    for step in (4, 5, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model").write_text("weights")
        seal(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-6" / "model").write_text("wei")
    rotate(tmp_path, 1, None)
    assert steps(tmp_path) == [5, 6]


def test_settings_are_compared_by_value_and_old_checkpoints_pass(tmp_path, caplog):
    settings = {"fixed": {"datasets": [("a", 3)]}, "free": {"learning_rate": 1e-5}}
    with caplog.at_level(logging.WARNING):
        require_same_settings(tmp_path, settings)
    assert "has no run_settings.json" in caplog.text
    save_settings(tmp_path, settings)
    assert json.loads((tmp_path / "run_settings.json").read_text())["fixed"] == {"datasets": [["a", 3]]}
    caplog.clear()
    require_same_settings(tmp_path, settings)
    assert not caplog.records
    with pytest.raises(ValueError, match=r"datasets was \[\['a', 3\]\], is \[\['a', 4\]\]"):
        require_same_settings(tmp_path, {"fixed": {"datasets": [("a", 4)]}, "free": {}})
