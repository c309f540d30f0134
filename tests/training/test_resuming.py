"""`--resume_from_checkpoint` means the same in the four commands that train, whatever became of the newest checkpoints."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("faiss", reason="FAISS (extra rl) is not installed")

from syvla.training import finetune, ppo, pretrain, value_warmup
from syvla.training.run.checkpoints import SEAL_FILE, checkpoints_of, problems_of, seal

COMMANDS = ("finetune", "pretrain", "value_warmup", "ppo")
STAGES = dict(zip(COMMANDS, ("imitation", "imitation", "value warm-up", "reinforcement learning"), strict=True))
MAINS = {"finetune": finetune.main, "pretrain": pretrain.main, "value_warmup": value_warmup.main, "ppo": ppo.main}
VIEWS = {"center": "observation.images.head", "left_wrist": "observation.images.left_wrist"}


@pytest.fixture(scope="module")
def options(rl_policy, rl_options, base_checkpoint, robot_dataset_path, tmp_path_factory):
    """Options of each command: six steps, a checkpoint after each."""
    data = json.dumps({"path": str(robot_dataset_path), "embodiment": "two_arms", "cameras": VIEWS})
    common = {"save_strategy": "steps", "save_steps": 1, "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
    imitation = {**common, "robot_datasets": data, "model_path": base_checkpoint, "multimodal_share": 0}
    imitation |= {"max_steps": 6, "per_device_train_batch_size": 2, "warmup_steps": 1}
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}
    value = {**common, "robot_datasets": data, "policy_path": rl_policy, "value_overrides": json.dumps(tiny)}
    value |= {"max_steps": 6, "per_device_train_batch_size": 2, "warmup_steps": 1, "heldout_share": 0.3}
    retrieval = tmp_path_factory.mktemp("retrieval")
    return {
        "finetune": imitation,
        "pretrain": {**imitation, "final_learning_rate": 0},
        "value_warmup": value,
        "ppo": {**rl_options, **common, "retrieval_path": retrieval},
    }


@pytest.fixture
def train(options):
    def train(command, output, **more):
        values = {**options[command], "output_dir": output, **more}
        return MAINS[command]([text for name, value in values.items() for text in (f"--{name}", str(value))])

    return train


@pytest.fixture(scope="module")
def finished(options, tmp_path_factory):
    """`finished(command)`: output folder of an unbroken run, which `auto` started."""
    made = {}

    def run(command):
        if command not in made:
            made[command] = tmp_path_factory.mktemp(command) / "whole"
            values = {**options[command], "output_dir": made[command], "resume_from_checkpoint": "auto"}
            values["save_total_limit"] = 10
            assert MAINS[command]([text for n, v in values.items() for text in (f"--{n}", str(v))]) == 0
        return made[command]

    return run


def truncate(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def halve(folder):
    """As a killed writer without our care leaves it: some files, no list."""
    (folder / SEAL_FILE).unlink()
    (folder / "optimizer.pt").unlink()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("choice", ["auto", "last"])
def test_damaged_newest_checkpoints_are_named_and_the_one_before_is_continued(
    command, choice, train, finished, tmp_path, caplog
):
    whole, output = finished(command), tmp_path / "out"
    for step in (4, 5, 6):
        shutil.copytree(whole / f"checkpoint-{step}", output / f"checkpoint-{step}")
    truncate(output / "checkpoint-5")
    halve(output / "checkpoint-6")
    with caplog.at_level("INFO"):
        assert train(command, output, resume_from_checkpoint=choice) == 0
    assert f"{output / 'checkpoint-6'} is no whole checkpoint and is passed over: {SEAL_FILE} is missing" in caplog.text
    assert f"{output / 'checkpoint-5'} is no whole checkpoint and is passed over: model.safetensors: " in caplog.text
    assert f"continuing {output / 'checkpoint-4'}" in caplog.text
    a, b = load_file(output / "model.safetensors"), load_file(whole / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in b), "not what the unbroken run came to"
    assert all(problems_of(path, STAGES[command]) == [] for path in checkpoints_of(output)), "they were made anew"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", [truncate, halve])
def test_a_damaged_checkpoint_asked_for_is_refused_by_name(command, damage, train, finished, tmp_path, capsys):
    folder = tmp_path / "checkpoint-5"
    shutil.copytree(finished(command) / "checkpoint-5", folder)
    damage(folder)
    assert train(command, tmp_path / "out", resume_from_checkpoint=folder) == 1
    named = "model.safetensors: " if damage is truncate else f"{SEAL_FILE} is missing"
    assert f"resume_from_checkpoint: {folder} is no whole checkpoint: {named}" in capsys.readouterr().err
    assert not checkpoints_of(tmp_path / "out"), "it trained"


@pytest.mark.parametrize("command", COMMANDS)
def test_last_needs_a_checkpoint(command, train, tmp_path, capsys):
    assert train(command, tmp_path / "out", resume_from_checkpoint="last") == 1
    assert re.search(r"resume_from_checkpoint: .*out holds no whole checkpoint; start", capsys.readouterr().err)


@pytest.mark.parametrize("command", ["finetune", "value_warmup", "ppo"])
def test_checkpoints_of_another_stage_are_refused(command, train, finished, tmp_path, capsys, caplog):
    other = {"finetune": "ppo", "value_warmup": "finetune", "ppo": "finetune"}[command]
    folder = tmp_path / "out" / "checkpoint-6"
    shutil.copytree(finished(other) / "checkpoint-6", folder)
    assert train(command, tmp_path / "out", resume_from_checkpoint=folder) == 1
    text = f"it belongs to another stage of training: {STAGES[other]}, this run is {STAGES[command]}"
    assert text in capsys.readouterr().err
    assert train(command, tmp_path / "out", resume_from_checkpoint="last") == 1
    assert text in caplog.text


def test_a_checkpoint_that_another_program_wrote_can_be_sealed_and_continued(train, finished, tmp_path):
    folder = tmp_path / "checkpoint-5"
    shutil.copytree(finished("ppo") / "checkpoint-5", folder)
    seal(folder)  # without a stage, as `--seal` does
    assert train("ppo", tmp_path / "out", resume_from_checkpoint=folder) == 0


def test_none_starts_anew(train, finished, tmp_path, caplog):
    output = tmp_path / "out"
    shutil.copytree(finished("ppo") / "checkpoint-5", output / "checkpoint-5")
    with caplog.at_level("INFO"):
        assert train("ppo", output, resume_from_checkpoint="none", overwrite_output_dir=True, max_rl_updates=1) == 0
    assert "continuing" not in caplog.text
